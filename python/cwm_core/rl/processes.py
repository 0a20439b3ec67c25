"""Sample in other processes, whose engines read new weights from files while they generate."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..inference import Engine, Request
from ..model import ModelConfig, Transformer
from ..support import secrets
from ..support.pool import end_with
from .generation import Action, EngineSampler, full_weights

_KEPT = 2  # files of weights; a process may still read the one before the newest
_SHORT = 0.05  # seconds
_END_SECONDS = 10.0  # for a process to end before it is killed


@dataclass(frozen=True)
class EngineSettings:
    """Arguments of `Engine` for a sampler."""

    shape: ModelConfig
    """Shape of the model."""
    dtype: torch.dtype
    """Type of its weights."""
    max_batch: int
    max_length: int
    max_cache_bytes: int | None = None
    prefix_bytes: int = 0

    def sampler(self, device: str | torch.device) -> EngineSampler:
        """Return a sampler with undefined weights on a device."""
        with torch.device("meta"):
            model = Transformer(self.shape).to(self.dtype)
        engine = Engine(
            model.to_empty(device=device),
            max_batch=self.max_batch,
            max_length=self.max_length,
            max_cache_bytes=self.max_cache_bytes,
            prefix_bytes=self.prefix_bytes,
        )
        return EngineSampler(engine)


class ProcessSampler:
    """Samples with an engine in each of several processes of this machine.

    `publish` writes the weights to a file, which names their version. Each process reads the newest file between two
    tokens, so that the weights change within a sequence, and reports the version with each token. Keys and values of
    earlier tokens stay (arXiv 2510.02387). The processes end when this one does.
    """

    def __init__(self, settings: EngineSettings, devices: Sequence[str], folder: Path, writes: bool = True) -> None:
        """Start a process for each device.

        Args:
            settings: Settings of the engines.
            devices: Device of each process; a device may occur several times.
            folder: Folder of the weights, which all ranks share.
            writes: Whether this rank writes the weights.
        """
        self.busy = 0.0
        self._folder, self._writes, self._limits = folder, writes, settings
        self._sending = threading.Lock()
        """Held while a message is sent: `publish` and `submit` are called from different threads."""
        self._number = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._processes = [_Process(settings, device) for device in devices]

    def publish(self, model: Transformer, version: int) -> None:
        """Write the weights, and send their place to the processes."""
        file = self._folder / f"weights-{version:09d}.safetensors"
        weights = {}
        for name, weight in full_weights(model):  # on all ranks, which gather them together
            if self._writes:
                weights[name] = weight.to("cpu", self._limits.dtype).contiguous()
        if self._writes:
            partial = file.with_suffix(".partial")
            save_file(weights, partial, {"version": str(version)})
            partial.replace(file)
            for old in sorted(self._folder.glob("weights-*.safetensors"))[:-_KEPT]:
                old.unlink()
        with self._sending:
            for process in self._processes:
                process.send(("weights", version, file))

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """See `Engine.refusal`."""
        longest = self._limits.max_length
        return None if prompt_tokens < longest else f"leaves no room within max_length, {longest}"

    def submit(self, request: Request) -> Hashable:
        """Start an action in the process with the fewest."""
        if reason := self.refusal(len(request.prompt), request.max_new_tokens):
            raise ValueError(f"a prompt of {len(request.prompt)} tokens {reason}")
        self._number += 1
        process = min(self._processes, key=lambda process: process.running)
        process.running += 1
        with self._sending:
            process.send(("request", self._number, request))
        return self._number

    def step(self) -> list[Action]:
        """Wait a short time for actions that ended.

        Raises:
            RuntimeError: A process failed; the message has its traceback.
        """
        ended: list[Action] = []
        connections = {process.connection: process for process in self._processes}
        for ready in connection.wait(list(connections), _SHORT):
            process = connections[ready]  # type: ignore[index]  # one of those given
            kind, *values = process.receive()
            if kind == "failed":
                raise RuntimeError(f"generation in another process failed:\n{values[0]}")
            actions, busy = values
            process.running -= len(actions)
            ended += actions
            self.busy += busy / len(self._processes)
        return ended

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class _Process:
    """A process with an engine."""

    def __init__(self, settings: EngineSettings, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.running = 0
        arguments = (theirs, os.getpid(), settings, device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, name="rollouts")
        with secrets.hidden():
            self._process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        """Send a message, unless the process has ended."""
        with suppress(BrokenPipeError):  # `receive` says why it ended
            self.connection.send(message)

    def receive(self) -> Any:
        """Return a message; raise RuntimeError if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
            raise RuntimeError(f"a process that generates ended with exit code {code}; resume the run") from None

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.join(_END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def _serve(pipe: connection.Connection, parent: int, settings: EngineSettings, device: str, threads: int) -> None:
    """Generate what the parent asks for until it closes the connection."""
    end_with(parent)
    torch.set_num_threads(threads)
    with suppress(EOFError, ConnectionError):
        try:
            _Server(pipe, settings.sampler(device)).run()
        except (EOFError, ConnectionError):
            raise
        except Exception:
            pipe.send(("failed", traceback.format_exc()))


class _Server:
    """The loop of a process: read messages, load the newest weights, and generate."""

    def __init__(self, pipe: connection.Connection, sampler: EngineSampler) -> None:
        self._pipe, self._sampler = pipe, sampler
        self._numbers: dict[Hashable, int] = {}
        self._waiting: list[tuple[int, Request]] = []
        self._newest: tuple[int, Path] | None = None
        self._reported = 0.0

    def run(self) -> None:
        """Serve forever; raise EOFError when the parent closes the connection."""
        while True:
            self._read()
            if self._newest:
                self._load(*self._newest)
            if self._sampler.version < 0:
                continue  # nothing can be generated without weights
            for number, request in self._waiting:
                self._numbers[self._sampler.submit(request)] = number
            self._waiting.clear()
            if not self._numbers:
                continue
            if ended := self._sampler.step():
                busy, self._reported = self._sampler.busy - self._reported, self._sampler.busy
                actions = [action._replace(sequence=self._numbers.pop(action.sequence)) for action in ended]
                self._pipe.send(("actions", actions, busy))

    def _read(self) -> None:
        """Read the messages that there are; wait for one if there is nothing else to do."""
        idle = not (self._numbers or self._newest or (self._waiting and self._sampler.version >= 0))
        while idle or self._pipe.poll():
            kind, number, value = self._pipe.recv()
            idle = False
            if kind == "weights":
                self._newest = number, value
            else:
                self._waiting.append((number, value))

    def _load(self, version: int, file: Path) -> None:
        """Load the weights of a version, unless another rank is still writing them."""
        try:
            with safe_open(file, "pt") as weights:
                found = (weights.metadata() or {}).get("version")
                if found != str(version):
                    raise ValueError(f"{file} has weights of version {found}, not {version}")
                names = {name for name, _ in self._sampler.engine.model.named_parameters()}
                if names != set(weights.keys()):
                    raise ValueError(f"{file} has other weights than the model")
                self._sampler.load(((name, weights.get_tensor(name)) for name in names), version)
        except FileNotFoundError:
            time.sleep(_SHORT)
            return
        self._newest = None
