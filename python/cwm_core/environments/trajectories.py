"""What happened in a rollout, and files of that which survive crashes and show damage.

A file holds a trajectory a line, as JSON: ``{"crc32":"0a1b2c3d","trajectory":{...}}``. The checksum is of the bytes of
the inner object. Lines are only ever added; a last line without its end is what a crash left of one.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

from ..support.files import sync
from .agents import Message
from .tasks import Task

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 1 << 28
_BEGIN, _MIDDLE, _END = b'{"crc32":"', b'","trajectory":', b"}\n"
_HEADER = len(_BEGIN) + 8 + len(_MIDDLE)


@dataclass(frozen=True)
class Turn:
    """An action and what came of it; what `Reply` and `Transition` say, under their names."""

    action: str
    observation: str = ""
    """Empty where the action ended the episode."""
    role: str = "user"
    """Of the observation's message."""
    exit_code: int | None = None
    seconds: float = 0.0
    """That the environment took."""
    agent_seconds: float = 0.0
    """That the agent took."""
    finish: str = "stop"
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """A rollout from its first message to its reward."""

    name: str
    """Unique in a file."""
    task: Task
    seed: int
    settings: dict[str, Any]
    """What else it depended on: of the agent, the budget, the environment."""
    messages: tuple[Message, ...]
    """Those before the first action."""
    turns: tuple[Turn, ...]
    reward: float
    reason: str
    """Why the reward is what it is."""
    end: str
    """"done" (a message without a tool call), "turns", "seconds", "context tokens", "action tokens", "prompt tokens",
    "script", "malformed", or "failed"."""
    failure: str | None = None
    """The error that broke it off, for "failed": of the agent or the machine, not of what the agent did."""
    started: float = 0.0
    """Seconds since 1970."""
    seconds: float = 0.0

    @property
    def solved(self) -> bool:
        """Whether the reward is full."""
        return self.reward >= 1.0

    @property
    def tokens(self) -> int | None:
        """How many tokens the agent generated; None where it did not say."""
        counts = [turn.tokens for turn in self.turns if turn.tokens is not None]
        return sum(counts) if counts else None

    def conversation(self) -> list[Message]:
        """The whole as `Tokenizer.encode_chat` takes it, without an action that a limit cut."""
        chat = [dict(message) for message in self.messages]
        for turn in self.turns:
            if turn.finish != "length":
                chat.append({"role": "assistant", "content": turn.action})
            if turn.observation:
                chat.append({"role": turn.role, "content": turn.observation})
        return chat

    def to_json(self) -> bytes:
        """One line of JSON, without its end. Raises ValueError for what JSON does not have, such as a reward of NaN.

        Where texts hold surrogates, it is UTF-8 but for those (``errors="surrogatepass"``), so that none is changed.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        folder = self.task.folder
        values["task"] = asdict(self.task) | {"folder": None if folder is None else os.fspath(folder)}
        values["turns"] = [asdict(turn) for turn in self.turns]
        try:
            text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"trajectory {self.name!r} cannot be written as JSON: {error}") from None
        return text.encode(errors="surrogatepass")

    @classmethod
    def from_json(cls, line: bytes) -> "Trajectory":
        """Read what `to_json` wrote. Raises ValueError that names what is missing, unknown or of another type."""
        try:
            values = json.loads(line.decode(errors="surrogatepass"), parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("a trajectory's JSON is nested too deeply") from None
        _check(values, cls, "a trajectory", _TRAJECTORY)
        for turn in values["turns"]:
            _check(turn, Turn, "a turn", _TURN)
            for name, kinds in (("ids", (int,)), ("logprobs", (float, int, type(None)))):
                if turn.get(name) is not None:
                    if not all(type(value) in kinds for value in turn[name]):
                        raise ValueError(f"a turn's {name} are not numbers")
                    turn[name] = tuple(turn[name])
        for message in values["messages"]:
            if not isinstance(message, dict) or not all(isinstance(text, str) for text in message.values()):
                raise ValueError("a trajectory's message is no object of strings")
        try:
            values["task"] = Task.from_json(json.dumps(values["task"], ensure_ascii=False))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"a trajectory's task: {error}") from None
        turns = tuple(Turn(**turn) for turn in values["turns"])
        return cls(**values | {"turns": turns, "messages": tuple(values["messages"])})


_NUMBER, _MAYBE_INT, _MAYBE_LIST = (int, float), (int, type(None)), (list, type(None))
_TRAJECTORY: dict[str, tuple[type, ...]] = {
    "name": (str,), "task": (dict,), "seed": (int,), "settings": (dict,), "messages": (list,), "turns": (list,),
    "reward": _NUMBER, "reason": (str,), "end": (str,), "failure": (str, type(None)), "started": _NUMBER,
    "seconds": _NUMBER,
}  # fmt: skip
_TURN: dict[str, tuple[type, ...]] = {
    "action": (str,), "observation": (str,), "role": (str,), "exit_code": _MAYBE_INT, "seconds": _NUMBER,
    "agent_seconds": _NUMBER, "finish": (str,), "ids": _MAYBE_LIST, "logprobs": _MAYBE_LIST, "tokens": _MAYBE_INT,
    "prompt_tokens": _MAYBE_INT, "cached_tokens": _MAYBE_INT,
}  # fmt: skip


def _check(values: Any, kind: type, what: str, types: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ValueError unless `values` are those of the dataclass `kind`."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} is a JSON object, not {type(values).__name__}")
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{what} has no field {min(unknown)!r}")
    for f in fields(kind):
        if f.name not in values and f.default is MISSING:
            raise ValueError(f"{what} has no {f.name}")
        if f.name in values and type(values[f.name]) not in types[f.name]:
            raise ValueError(f"{what}'s {f.name} is not of the type {types[f.name][0].__name__}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class TrajectoryWriter:
    """Adds trajectories to a file, each on disk before `add` returns; a context manager.

    One writer at a time has the file. What a crash left of a last line is cut off, with a warning in the log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file, made if need be, and read what it holds.

        Raises BlockingIOError while another writer has it, OSError if it cannot be written, ValueError for a damaged
        record or one that is none.
        """
        self._path = Path(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.names: dict[str, str] = {}
        """Of the trajectories in the file, each with the `task_digest` of its task."""
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(11, "another run is writing to it", os.fspath(path)) from None
            sync(self._path.absolute().parent)
            reader = TrajectoryReader(path)
            self.settings: dict[str, Any] | None = None
            """Of the first trajectory in the file."""
            for trajectory in reader:
                self.names[trajectory.name] = task_digest(trajectory.task)
                self.settings = trajectory.settings if self.settings is None else self.settings
            os.truncate(self._file, reader.whole_bytes)
        except BaseException:
            os.close(self._file)
            raise

    def add(self, trajectory: Trajectory) -> None:
        """Add a trajectory. Raises ValueError for a name that is there, and as `to_json`, OSError if writing fails.

        Such a trajectory is not added.
        """
        if trajectory.name in self.names:
            raise ValueError(f"{self._path} holds a trajectory named {trajectory.name!r} already")
        record = trajectory.to_json()
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"trajectory {trajectory.name!r} takes {len(record)} bytes, more than {MAX_RECORD_BYTES}")
        line = b"%s%08x%s%s%s" % (_BEGIN, zlib.crc32(record), _MIDDLE, record, _END)
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except BaseException:
            os.truncate(self._file, size)
            raise
        self.names[trajectory.name] = task_digest(trajectory.task)
        self.settings = trajectory.settings if self.settings is None else self.settings

    def close(self) -> None:
        """Let go of the file. Safe to call again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


class TrajectoryReader:
    """The trajectories of a file, in the order they were added; as often as it is iterated over.

    A last line without its end is left out, with a warning in the log: a crash cut it, or it is being written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at a file. Raises OSError if it cannot be read."""
        self.path = os.fspath(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            self.whole_bytes = _end_of_lines(file, size)
            """Where the last whole line ends."""
        self.torn_bytes = size - self.whole_bytes
        """What lies behind it."""
        if self.torn_bytes:
            logger.warning("%s: the last %d bytes are of a record that was cut; left out", self.path, self.torn_bytes)

    def __iter__(self) -> Iterator[Trajectory]:
        """Read one after the other. Raises ValueError that names the first damaged record, and OSError."""
        at = number = 0
        with open(self.path, "rb") as file:
            while at < self.whole_bytes:
                number += 1
                line = file.readline(_HEADER + MAX_RECORD_BYTES + len(_END))
                try:
                    trajectory = Trajectory.from_json(_record(line))
                except ValueError as error:
                    raise ValueError(f"{self.path}, record {number} at byte {at}: {error}") from None
                at += len(line)
                yield trajectory


def read_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Go through a file of trajectories, as `TrajectoryReader` does."""
    return iter(TrajectoryReader(path))


def drop_failed(path: str | os.PathLike[str]) -> int:
    """Write a file anew without the rollouts that failed, so that they are made again; how many they were.

    Raises as `TrajectoryWriter`; the file is then as it was.
    """
    path = os.path.realpath(path)  # a link stays, and leads to the new file
    partial = Path(f"{path}.partial")
    partial.unlink(missing_ok=True)
    dropped = 0
    with TrajectoryWriter(path), TrajectoryWriter(partial) as kept:
        for trajectory in TrajectoryReader(path):
            if trajectory.failure is None:
                kept.add(trajectory)
            else:
                dropped += 1
        partial.replace(path)
        sync(partial.absolute().parent)
    return dropped


def task_digest(task: Task) -> str:
    """A short name for all that a task says."""
    return hashlib.sha256(task.to_json().encode()).hexdigest()[:16]


def is_trajectory_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of trajectories does. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    return start.startswith(_BEGIN) and start.endswith(_MIDDLE)


def _record(line: bytes) -> bytes:
    """The JSON inside a line, its checksum compared."""
    record = line[_HEADER : -len(_END)]
    if line != b"%s%s%s%s%s" % (_BEGIN, line[len(_BEGIN) : len(_BEGIN) + 8], _MIDDLE, record, _END):
        raise ValueError("this is no line of a trajectory")
    if line[len(_BEGIN) : len(_BEGIN) + 8] != b"%08x" % zlib.crc32(record):
        raise ValueError("the checksum does not fit: the record is damaged")
    return record


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Byte after the last line end; 0 where there is none."""
    at = size
    while at > 0:
        start = max(at - (1 << 16), 0)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0
