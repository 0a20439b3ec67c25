"""The one training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..model import Transformer
from . import checkpoint
from .config import TrainConfig
from .optimizer import learning_rate_factor, make_optimizers, set_learning_rate

# Settings that a resumed run may change: when it ends, where it computes and what it keeps.
RESUMABLE_WITH_CHANGED = {
    "max_steps", "max_seconds", "device", "checkpoint_folder", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """What one optimizer step did."""

    step: int
    """Steps taken so far, this one included."""
    loss: float
    """Mean cross entropy in nats over the step's tokens with loss, before its update."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens the model read in this step."""
    loss_tokens: int
    """Of them, those with loss."""
    tokens_per_second: float
    seconds: float
    """Training time so far, over all resumes."""
    fraction: float
    """Of the run, from 0 to 1."""


class Trainer:
    """Trains a model on an iterable of batches, by steps or by time.

    A batch has `.tokens`, `.targets`, `.loss_mask`, `.position_ids` (each [rows, seq_len]) and `.cu_seqlens` (offsets
    of documents in the flattened batch); one whose arrays are not tensors has `.to_torch(device)`, which gives the
    batch with tensors. `on_step` is called after every step. When `config.checkpoint_folder` holds a checkpoint, the
    run goes on from it, and ends as the uninterrupted one would have, bit for bit on one machine; for this the loader
    needs `state_dict()` and `load_state_dict()`. SIGTERM and Ctrl-C end the run after the current step, with a
    checkpoint.
    """

    def __init__(
        self,
        model: Transformer,
        loader: Iterable[Any],
        config: TrainConfig,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        """Move `model` to the device; raises ValueError when checkpoints are asked of a loader without a state."""
        if config.checkpoint_folder and not hasattr(loader, "state_dict"):
            raise ValueError("checkpoints need a loader with state_dict() and load_state_dict()")
        self.device = torch.device(config.device)
        self.model = model.to(self.device)
        self.loader = loader
        self.config = config
        self.on_step = on_step
        self.optimizers = make_optimizers(model, config)
        self.step = 0
        self.seconds = 0.0
        self._saved_step = 0
        self._stop_signal: int | None = None

    def run(self) -> str:
        """Train to the end; returns why it ended: "finished", "data" (the loader is exhausted) or "signal".

        Raises FloatingPointError, naming the step, when loss or gradient is not finite: the model then still has the
        weights from before that step, and no checkpoint is written.
        """
        self._start()
        with _deterministic(), self._stop_on_signals():
            reason = self._loop()
        if self.config.checkpoint_folder and self.step > self._saved_step:
            self.save_checkpoint()
        return reason

    def save_checkpoint(self) -> None:
        """Write the state of the run as it is now to `config.checkpoint_folder`."""
        state = {
            "config": asdict(self.config),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),  # type: ignore[attr-defined]
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(self.config.checkpoint_folder, self.step, state, self.config.keep_checkpoints)
        self._saved_step = self.step

    def load_checkpoint(self, state: dict[str, Any]) -> None:
        """Continue from what `checkpoint.load` returned; raises ValueError when the run had other settings."""
        for key, value in asdict(self.config).items():
            if key not in RESUMABLE_WITH_CHANGED and value != state["config"].get(key):
                raise ValueError(f"the run to resume has {key} = {state['config'].get(key)!r}, not {value!r}")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        checkpoint.set_rng_state(state["rng"])
        self.step = self._saved_step = state["step"]
        self.seconds = state["seconds"]

    def fraction(self) -> float:
        """Share of the run that lies behind, by steps or time, whichever is further."""
        by_steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        by_time = self.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def _start(self) -> None:
        if self.step:
            return  # run() called again
        newest = checkpoint.latest(self.config.checkpoint_folder) if self.config.checkpoint_folder else None
        if newest:
            self.load_checkpoint(checkpoint.load(newest))
        else:
            torch.manual_seed(self.config.seed)

    def _loop(self) -> str:
        self.model.train()
        batches = iter(self.loader)
        clock = time.monotonic()
        while self.fraction() < 1.0:
            micro_batches = self._next_batches(batches)
            if not micro_batches:
                return "data"
            loss, grad_norm, rate, loss_tokens = self._step(micro_batches)
            self.step += 1
            now = time.monotonic()
            took, clock = now - clock, now
            self.seconds += took
            if self.on_step:
                tokens = sum(batch.tokens.numel() for batch in micro_batches)
                speed = tokens / took
                self.on_step(
                    Progress(
                        self.step, loss, grad_norm, rate, tokens, loss_tokens, speed, self.seconds, self.fraction()
                    )
                )
            if self._stop_signal is not None:
                return "signal"
            if self.config.checkpoint_folder and self.step % self.config.checkpoint_every == 0:
                self.save_checkpoint()
        return "finished"

    def _next_batches(self, batches: Iterator[Any]) -> list[Any]:
        """The batches of one step; fewer at the end of the data, none when nothing is left."""
        taken = []
        for batch in batches:
            taken.append(batch if isinstance(batch.tokens, Tensor) else batch.to_torch(self.device))
            if len(taken) == self.config.grad_accumulation:
                break
        return taken

    def _step(self, batches: list[Any]) -> tuple[float, float, float, int]:
        """One update from the mean loss over all tokens of `batches`; returns loss, norm, rate, tokens with loss."""
        loss_tokens = sum(int(batch.loss_mask.sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
                loss = self.model.loss(
                    batch.tokens,
                    batch.targets,
                    batch.loss_mask,
                    batch.cu_seqlens,
                    batch.position_ids,
                    # A loader of the user's own need not know of it.
                    global_window=getattr(batch, "global_window", None),
                ).total / max(1, loss_tokens)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._zero_grad()
            raise FloatingPointError(f"step {self.step + 1}: loss is {total}, norm of the gradient {norm}")
        factor = learning_rate_factor(self.config, self.step, self.fraction())
        set_learning_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        return total, norm, self.config.learning_rate * factor, loss_tokens

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Note the first SIGTERM or SIGINT; a second one acts as it did before. Handlers need the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {}

        def note(signum: int, _: FrameType | None) -> None:
            self._stop_signal = signum
            for number, handler in previous.items():
                signal.signal(number, handler)

        self._stop_signal = None
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note) or signal.SIG_DFL
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask PyTorch for algorithms that give the same result every time, and put its settings back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time, and we read no such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
