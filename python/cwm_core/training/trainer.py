"""The one training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..model import Transformer
from . import failure
from .batches import to_device
from .checkpoint import Checkpoints
from .config import TrainConfig
from .gpus import peak_flops
from .metrics import Progress, Sums, batch_flops, peak_memory, position_sources
from .optimizer import learning_rate_factor, make_optimizers, set_learning_rate
from .parallel import check_replicas, clip_grad_norm
from .world import World

# Settings that a resumed run may change: when it ends, where and how it computes the same, and what it keeps.
RESUMABLE_WITH_CHANGED = {
    "max_steps", "max_seconds", "device", "checkpoint_folder", "checkpoint_every", "keep_checkpoints",
    "data_parallel_replicas", "tensor_parallel", "context_parallel", "activation_checkpointing", "compile", "attention",
    "deterministic",
}  # fmt: skip


class _MicroBatch(NamedTuple):
    """What a rank computes at a time."""

    batch: Any
    """All of the rows that its context ranks have together."""
    share: Any
    """This rank's tokens of them."""
    offsets: Tensor
    """Its `cu_seqlens`, on the host if they ever were: the model looks at them there."""
    sources: Tensor | None
    """Of each token of the share."""
    flops: float
    """Of the batch."""


class Trainer:
    """Trains a model on an iterable of batches, by steps or by time.

    A batch has `.tokens`, `.targets`, `.loss_mask`, `.position_ids` (each [rows, seq_len]) and `.cu_seqlens` (offsets
    of documents in the flattened batch); one whose arrays are not tensors has `.to_torch(device)`, which gives the
    batch with tensors. Tensors on another device are moved. `on_step` is called after every step. When
    `config.checkpoint_folder` holds a checkpoint, the run goes on from it, and ends as the uninterrupted one would
    have, bit for bit on one machine; for this the loader needs `state_dict()` and `load_state_dict()`. SIGTERM and
    Ctrl-C end the run after the current step, with a checkpoint.
    """

    def __init__(
        self,
        model: Transformer,
        loader: Iterable[Any],
        config: TrainConfig,
        on_step: Callable[[Progress], None] | None = None,
        world: World | None = None,
    ) -> None:
        """Move `model` to the device. In a `world` of several ranks it is one that `parallelize` has divided.

        Raises ValueError when it is not, and when checkpoints are asked of a loader without a state.
        """
        if config.checkpoint_folder and not hasattr(loader, "state_dict"):
            raise ValueError("checkpoints need a loader with state_dict() and load_state_dict()")
        self.world = world or World.create(config)
        if self.world.size > 1 and not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError(f"call parallelize(model, config, world) first: there are {self.world.size} ranks")
        self.device = self.world.device
        self.model = model.to(self.device)
        self.loader = loader
        self.config = config
        self.on_step = on_step
        self.optimizers = make_optimizers(model, config)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._sources: list[str] = list(getattr(loader, "sources", ()))
        # FSDP casts the weights itself.
        self._autocast = config.dtype != "float32" and self.world.size == 1
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        self._peak = peak_flops(name, config.dtype)
        self._checkpoints = (
            Checkpoints(config.checkpoint_folder, config.keep_checkpoints) if config.checkpoint_folder else None
        )
        self._saved_step = 0
        self._stop_signal: int | None = None

    def run(self) -> str:
        """Train to the end; returns why it ended: "finished", "data" (the loader is exhausted) or "signal".

        Raises FloatingPointError, naming the step, when loss or gradient is not finite: the model then still has the
        weights from before that step, and no checkpoint is written. Raises BlockingIOError when another run uses
        `config.checkpoint_folder`, ValueError when replicas of the weights differ between ranks, and OSError when a
        checkpoint could not be written: after the state at that time was saved, if that is possible.
        """
        with self._checkpoints.locked() if self._checkpoints else nullcontext():
            return self._run()

    def _run(self) -> str:
        self._start()
        try:
            with _deterministic(self.config.deterministic or self.device.type == "cpu"), self._stop_on_signals():
                reason = self._loop()
            if self._checkpoints and self.step > self._saved_step:
                self.save_checkpoint()
        finally:
            if self._checkpoints:
                self._checkpoints.wait()
        return reason

    def save_checkpoint(self) -> None:
        """Save the state of the run as it is now to `config.checkpoint_folder`, while the run goes on."""
        self._saved_step = self.step  # also where it fails: then it was tried
        self._save(self._checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        state = {
            "config": asdict(self.config),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "loader": self.loader.state_dict(),  # type: ignore[attr-defined]
        }
        checkpoints.save(self.step, self.model, self.optimizers, state)

    def load_checkpoint(self) -> bool:
        """Continue from the newest whole checkpoint; False when there is none.

        Raises what `Checkpoints.resume` raises, and ValueError when the run had other settings.
        """
        state = self._checkpoints.resume(self.model, self.optimizers, self._check_settings)
        if state is None:
            return False
        self.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        self.step = self._saved_step = state["step"]
        self.seconds, self.tokens = state["seconds"], state["tokens"]
        return True

    def _check_settings(self, state: dict[str, Any]) -> None:
        for key, value in asdict(self.config).items():
            if key not in RESUMABLE_WITH_CHANGED and value != state["config"].get(key):
                raise ValueError(f"the run to resume has {key} = {state['config'].get(key)!r}, not {value!r}")

    def fraction(self) -> float:
        """Share of the run that lies behind, by steps or time, whichever is further."""
        by_steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        by_time = self.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def _start(self) -> None:
        if self.step:
            return  # run() called again
        if not (self._checkpoints and self.load_checkpoint()):
            torch.manual_seed(self.config.seed)
        check_replicas(self.model)

    def _loop(self) -> str:
        self.model.train()
        batches = iter(self.loader)
        clock = time.monotonic()
        while self.fraction() < 1.0:
            began = time.monotonic()
            micro_batches = self._next_batches(batches)
            wait = time.monotonic() - began
            if self.world.any(not micro_batches):
                return "data"
            figures = self._step(micro_batches)
            now = time.monotonic()
            # What happened since the last step, reports and copies for a checkpoint, counts too.
            memory, wait, took = self.world.max([peak_memory(self.device), wait, now - clock])
            clock = now
            self.step += 1
            self.seconds += took
            self.tokens += figures["tokens"]
            if self.on_step:
                self.on_step(self._progress(figures, int(memory), wait, took))
            if self.world.any(self._stop_signal is not None):
                return "signal"
            if self._checkpoints and self.step % self.config.checkpoint_every == 0:
                self.save_checkpoint()
        return "finished"

    def _next_batches(self, batches: Iterator[Any]) -> list[_MicroBatch]:
        """The batches of one step; fewer at the end of the data, none when nothing is left."""
        taken = []
        for arrays in batches:
            flops = batch_flops(self.model.config, arrays)  # while they are still on the CPU
            batch = to_device(arrays, self.device)
            sources = position_sources(batch) if self._sources else None
            own = None if sources is None else self.world.slice_tokens(sources)
            offsets = torch.as_tensor(arrays.cu_seqlens)
            taken.append(_MicroBatch(batch, self.world.slice(batch), offsets, own, flops))
            if len(taken) == self.config.grad_accumulation:
                break
        return taken

    def _step(self, micro_batches: list[_MicroBatch]) -> dict[str, Any]:
        """One update from the mean loss over all tokens of all ranks; returns fields of `Progress`, and `flops`."""
        sums = Sums(self._sources, self.device)
        losses = self._backward(micro_batches, sums)
        norm = clip_grad_norm(self.model.parameters(), self.config.grad_clip)
        positions = sum(micro.share.tokens.numel() for micro in micro_batches)
        flops = sum(micro.flops for micro in micro_batches) / self.world.context_parallel
        all_sums = self.world.sum(torch.cat((sums.values(), sums.values().new_tensor([positions, flops]))))
        # The one time in a step that the CPU waits for the GPU.
        *values, tokens, flops, grad_norm = torch.cat((all_sums, norm.to(all_sums.dtype)[None])).tolist()
        loss, by_source = sums.means(values)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._fail(loss, grad_norm, micro_batches, losses)
        factor = self._update()
        return {
            "loss": loss,
            "losses": by_source,
            "grad_norm": grad_norm,
            "learning_rate": self.config.learning_rate * factor,
            "tokens": int(tokens),
            "loss_tokens": int(values[1]),
            "flops": flops,
        }

    def _backward(self, micro_batches: list[_MicroBatch], sums: Sums) -> list[Tensor]:
        """Add up gradients of the mean loss over all tokens of all ranks; returns each position's loss."""
        masks = [micro.share.loss_mask for micro in micro_batches]
        loss_tokens = self.world.sum(torch.stack([mask.sum() for mask in masks]).sum()[None]).clamp(min=1)
        losses = []
        for micro in micro_batches:
            batch = micro.share
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                total, of_tokens = self.model.loss(
                    batch.tokens,
                    batch.targets,
                    batch.loss_mask,
                    micro.offsets,
                    batch.position_ids,
                    # A loader of the user's own need not know of it.
                    global_window=getattr(batch, "global_window", None),
                )
            (total / loss_tokens[0]).backward()
            sums.add(of_tokens, batch.loss_mask, micro.sources)
            losses.append(of_tokens)
        return losses

    def _update(self) -> float:
        """Take the optimizers' step; returns the learning rate's factor."""
        factor = learning_rate_factor(self.config, self.step, self._schedule_progress())
        set_learning_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        return factor

    def _fail(self, loss: float, norm: float, micro_batches: list[_MicroBatch], losses: list[Tensor]) -> NoReturn:
        """Keep what helps to find out why, and raise."""
        batches = [micro.batch for micro in micro_batches]
        losses = [self.world.gather_tokens(values) for values in losses]
        found = failure.documents(batches, losses, self._sources)
        step = self.step + 1
        text = f"step {step}: loss is {loss}, norm of the gradient {norm}; {failure.message(found)}"
        if self.config.checkpoint_folder:
            folder = Path(self.config.checkpoint_folder) / f"failed-step-{step:09d}"
            report = {
                "step": step,
                "loss": loss,
                "grad_norm": norm,
                "non_finite_gradients": failure.bad_gradients(self.model),
                "documents": found,
            }
            failure.write(folder, self.world.rank, report, batches, losses)
            self._save(Checkpoints(folder, asynchronous=False))
            text += f"; the batches, losses and weights are in {folder}"
        self._zero_grad()
        raise FloatingPointError(text)

    def _progress(self, figures: dict[str, Any], memory: int, wait: float, took: float) -> Progress:
        flops = figures.pop("flops")
        return Progress(
            step=self.step,
            **figures,
            tokens_per_second=figures["tokens"] / took,
            mfu=flops / (took * self._peak * self.world.size) if self._peak else None,
            memory=memory,
            data_wait=wait,
            step_seconds=took,
            seconds=self.seconds,
            fraction=self.fraction(),
        )

    def _schedule_progress(self) -> float:
        """Share of the schedule that lies behind: of the stages' joint horizon, or of this run."""
        if self.config.horizon_tokens:
            return (self.config.start_tokens + self.tokens) / self.config.horizon_tokens
        return self.fraction()

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
def _deterministic(wanted: bool) -> Iterator[None]:
    """Ask PyTorch for algorithms that give the same result every time, and put its settings back afterwards."""
    if not wanted:
        yield
        return
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
