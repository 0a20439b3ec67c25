"""Record rollouts as trajectories, in files that survive crashes and reveal damage.

Each line of a file is a JSON object `{"crc32":"0a1b2c3d","trajectory":{...}}`. The checksum covers the bytes of the
inner object. Lines are only appended. An incomplete last line is the result of a crash.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar

from .._native import DamagedFileError
from ..support.files import sync
from ..support.jsonl import loads
from ..support.log import LogReader, ResumableLog
from .agents import EndReason, Message, ReplyEnd
from .tasks import Task

Word = TypeVar("Word", bound=StrEnum)

MAX_RECORD_BYTES = 1 << 28
_BEGIN, _MIDDLE, _END = b'{"crc32":"', b'","trajectory":', b"}\n"
_HEADER = len(_BEGIN) + 8 + len(_MIDDLE)
_MAX_LINE_BYTES = _HEADER + MAX_RECORD_BYTES + len(_END)


@dataclass(frozen=True)
class Turn:
    """An action and its result. Fields with the names of fields of `Reply` and `Transition` have their values."""

    action: str
    """Message of the agent."""
    observation: str = ""
    """Answer of the environment; empty if the action ended the episode."""
    role: str = "user"
    """Role of the observation's message."""
    exit_code: int | None = None
    """Exit code of the command, or None if no command ran."""
    seconds: float = 0.0
    """Time that the environment took, in seconds."""
    agent_seconds: float = 0.0
    """Time that the agent took, in seconds."""
    finish: ReplyEnd = ReplyEnd.STOP
    """Reason of the action's end."""
    ids: tuple[int, ...] | None = None
    """Tokens that the agent generated, or None if they are unknown."""
    logprobs: tuple[float | None, ...] | None = None
    """Log probability of each of `ids`, in nats at temperature 1."""
    tokens: int | None = None
    """Number of generated tokens."""
    prompt_tokens: int | None = None
    """Number of tokens of the conversation before the action."""
    cached_tokens: int | None = None
    """Number of those tokens that came from a cache."""


@dataclass(frozen=True)
class Trajectory:
    """A rollout from its first message to its reward."""

    name: str
    """Name, unique in a file."""
    task: Task
    """Task that the agent worked on."""
    seed: int
    """Seed of the agent's sampling."""
    settings: dict[str, Any]
    """Settings of the agent, the budget, and the environment."""
    messages: tuple[Message, ...]
    """Messages before the first action."""
    turns: tuple[Turn, ...]
    """Actions and their results."""
    reward: float
    """Reward, usually from 0 to 1."""
    reason: str
    """Reason of the reward."""
    end: EndReason
    """Reason of the end."""
    failure: str | None = None
    """Error of the agent or the machine, if the end is `FAILED`; else None."""
    started: float = 0.0
    """Start time, in seconds since 1970."""
    seconds: float = 0.0
    """Duration, in seconds."""

    @property
    def solved(self) -> bool:
        """Whether the reward is at least 1."""
        return self.reward >= 1.0

    @property
    def tokens(self) -> int | None:
        """Number of tokens that the agent generated, or None if it is unknown."""
        counts = [turn.tokens for turn in self.turns if turn.tokens is not None]
        return sum(counts) if counts else None

    def conversation(self) -> list[Message]:
        """Return the messages for `Tokenizer.encode_chat`, without an action that a limit cut."""
        chat = [dict(message) for message in self.messages]
        for turn in self.turns:
            if turn.finish != ReplyEnd.LENGTH:
                chat.append({"role": "assistant", "content": turn.action})
            if turn.observation:
                chat.append({"role": turn.role, "content": turn.observation})
        return chat

    def to_json(self) -> bytes:
        """Return one line of JSON, without a line end.

        The encoding is UTF-8 with `errors="surrogatepass"`, which keeps surrogates in strings.

        Raises:
            ValueError: A value cannot be written as JSON, such as a reward of NaN.
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
        """Read the JSON of `to_json`. Raise ValueError that names a missing, unknown, or mistyped field."""
        values = loads(line.decode(errors="surrogatepass"), parse_constant=_refuse_constant)
        _check(values, cls, "a trajectory", _TRAJECTORY)
        values["end"] = _member(EndReason, values["end"], "a trajectory's end")
        for turn in values["turns"]:
            _check(turn, Turn, "a turn", _TURN)
            turn["finish"] = _member(ReplyEnd, turn.get("finish", ReplyEnd.STOP), "a turn's finish")
            for name, kinds in (("ids", (int,)), ("logprobs", (float, int, type(None)))):
                if turn.get(name) is not None:
                    if not all(type(value) in kinds for value in turn[name]):
                        raise ValueError(f"a turn's {name} must be numbers")
                    turn[name] = tuple(turn[name])
        for message in values["messages"]:
            if not isinstance(message, dict) or not all(isinstance(text, str) for text in message.values()):
                raise ValueError("a trajectory's message must be an object of strings")
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
    """Raise ValueError unless `values` are the fields of the dataclass `kind`."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(values).__name__}")
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{what} has no field {min(unknown)!r}")
    for f in fields(kind):
        if f.name not in values and f.default is MISSING:
            raise ValueError(f"{what} has no {f.name}")
        if f.name in values and type(values[f.name]) not in types[f.name]:
            raise ValueError(f"{what}'s {f.name} must have the type {types[f.name][0].__name__}")


def _member(kind: type[Word], value: str, what: str) -> Word:
    """Return the member of an enumeration with a value. Raise ValueError if there is none."""
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, map(str, kind)))}, got {value[:100]!r}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


class TrajectoryWriter:
    """Appends trajectories to a file; a context manager.

    A trajectory is on disk when `add` returns. Only one writer can open a file at a time. An incomplete last line, the
    result of a crash, is removed with a warning in the log.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file, creating it if necessary, and read its trajectories.

        Raises:
            BlockingIOError: Another writer has opened the file.
            OSError: The file cannot be written.
            DamagedFileError: A record is damaged or is not a trajectory.
        """
        self._path = os.fspath(path)
        self.names: dict[str, str] = {}
        """Names of the trajectories in the file, each with the `task_digest` of its task."""
        self.settings: dict[str, Any] | None = None
        """Settings of the first trajectory in the file."""
        self._log = ResumableLog(path)
        try:
            for trajectory in _trajectories(self._path, self._log.lines(_MAX_LINE_BYTES)):
                self._note(trajectory)
        except BaseException:
            self._log.close()
            raise

    def _note(self, trajectory: Trajectory) -> None:
        self.names[trajectory.name] = task_digest(trajectory.task)
        self.settings = trajectory.settings if self.settings is None else self.settings

    def add(self, trajectory: Trajectory) -> None:
        """Append a trajectory, or leave the file unchanged and raise.

        Raises:
            ValueError: The file has a trajectory with this name, or the trajectory cannot be written as JSON.
            OSError: Writing fails.
        """
        if trajectory.name in self.names:
            raise ValueError(f"{self._path} already has a trajectory named {trajectory.name!r}")
        record = trajectory.to_json()
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"trajectory {trajectory.name!r} takes {len(record)} bytes, more than {MAX_RECORD_BYTES}")
        self._log.append_line(b"%s%08x%s%s}" % (_BEGIN, zlib.crc32(record), _MIDDLE, record))
        self._note(trajectory)

    def close(self) -> None:
        """Close the file. Closing again has no effect."""
        self._log.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


class TrajectoryReader(LogReader):
    """An iterable of the trajectories of a file, in the order in which they were added.

    An incomplete last line is skipped with a warning in the log: a crash cut it, or it is being written.
    """

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories. Raise DamagedFileError that names the first damaged record, and OSError."""
        return _trajectories(self.path, self.lines(_MAX_LINE_BYTES))


def _trajectories(path: str, lines: Iterable[tuple[int, bytes]]) -> Iterator[Trajectory]:
    for number, (at, line) in enumerate(lines, 1):
        try:
            yield Trajectory.from_json(_record(line))
        except ValueError as error:
            raise DamagedFileError(f"{path}, record {number} at byte {at}: {error}") from None


def read_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Return an iterator over the trajectories of a file; see `TrajectoryReader`."""
    return iter(TrajectoryReader(path))


def drop_failed(path: str | os.PathLike[str]) -> int:
    """Remove failed rollouts from a file, so that they are repeated, and return their number.

    If an error is raised, the file is unchanged.

    Raises:
        BlockingIOError: A writer has opened the file.
        OSError: The file cannot be written.
        DamagedFileError: A record is damaged or is not a trajectory.
    """
    path = os.path.realpath(path)  # keep a link, which then leads to the new file
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
    """Return a digest of all fields of a task."""
    return hashlib.sha256(task.to_json().encode()).hexdigest()[:16]


def is_trajectory_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins like a file of trajectories. Raise OSError if it cannot be read."""
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    return start.startswith(_BEGIN) and start.endswith(_MIDDLE)


def _record(line: bytes) -> bytes:
    """Return the JSON inside a line after verifying its checksum."""
    record = line[_HEADER : -len(_END)]
    if line != b"%s%s%s%s%s" % (_BEGIN, line[len(_BEGIN) : len(_BEGIN) + 8], _MIDDLE, record, _END):
        raise ValueError("expected a line with a checksum and a trajectory")
    if line[len(_BEGIN) : len(_BEGIN) + 8] != b"%08x" % zlib.crc32(record):
        raise ValueError("the checksum does not match: the record is damaged")
    return record
