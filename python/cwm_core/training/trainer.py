"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..model import Objective, Transformer
from . import failure
from .batches import to_device
from .checkpoint import Checkpoints
from .config import TrainConfig
from .gpus import peak_flops
from .metrics import Progress, Sums, batch_flops, peak_memory, position_sources
from .optimizer import learning_rate_factor, make_optimizers, set_learning_rate
from .parallel import check_replicas, clip_grad_norm
from .signals import on_first_signal
from .world import World

# Settings that a resumed run may change: when it ends, how the same result is computed, and which files are kept.
RESUMABLE_WITH_CHANGED = {
    "max_steps", "max_seconds", "device", "checkpoint_folder", "checkpoint_every", "keep_checkpoints",
    "data_parallel_replicas", "tensor_parallel", "context_parallel", "activation_checkpointing", "compile", "attention",
    "deterministic", "initialization",
}  # fmt: skip


class TrainingEnd(StrEnum):
    """Reason that a run ended."""

    FINISHED = "finished"
    """The run took all its steps or all its time."""
    DATA = "data"
    """The loader has no more batches."""
    SIGNAL = "signal"
    """SIGTERM or Ctrl-C arrived."""


@runtime_checkable
class _Resumable(Protocol):
    """A loader whose position can be saved."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class TokenObjective(Protocol):
    """A loss other than the mean cross entropy, of batches that carry what it needs for each token."""

    def of(self, batch: Any) -> Objective:
        """Return the objective of this rank's share of a batch. Its sum over a step is minimized, without a divisor."""
        ...

    def metrics(self, world: World) -> dict[str, float]:
        """Return metrics of the batches since the last call, over all ranks. All ranks call this once a step."""
        ...


class _StepResult(NamedTuple):
    """Sums of one step over all ranks; fields as in `Progress`."""

    loss: float
    losses: dict[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int
    loss_tokens: int
    flops: float


class _MicroBatch(NamedTuple):
    """One batch of the loader, prepared for this rank."""

    batch: Any
    """Rows that the context ranks share."""
    share: Any
    """This rank's tokens of the rows."""
    offsets: Tensor
    """`cu_seqlens` of the batch, on the host if they were there before: the model reads them on the host."""
    sources: Tensor | None
    """Number of the source of each token of the share."""
    flops: float
    """Model FLOPs of training on the batch."""


class Trainer:
    """Trains a model on an iterable of batches, for a number of steps or seconds.

    A batch has `.tokens`, `.targets`, `.loss_mask`, `.position_ids` (each [rows, seq_len]) and `.cu_seqlens` (offsets
    of documents in the flattened batch). If its arrays are not tensors, it has `.to_torch(device)`, which returns a
    batch of tensors. Tensors on another device are moved.

    If `config.checkpoint_folder` holds a checkpoint, the run resumes from it and ends as an uninterrupted run, bit for
    bit on one machine. SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.

    Attributes:
        world: Ranks of the run.
        device: Device of the model.
        model: Model being trained.
        loader: Iterable of batches.
        config: Settings of the run.
        optimizers: Optimizers of the model.
        step: Steps taken.
        tokens: Tokens read, including padding.
        seconds: Training time over all resumes.
    """

    def __init__(
        self,
        model: Transformer,
        loader: Iterable[Any],
        config: TrainConfig,
        on_step: Callable[[Progress], None] | None = None,
        world: World | None = None,
        *,
        objective: TokenObjective | None = None,
    ) -> None:
        """Move `model` to the device and make its optimizers.

        Args:
            model: Model to train. With several ranks, call `parallelize` on it first.
            loader: Iterable of batches. Checkpoints need its `state_dict()` and `load_state_dict()`.
            config: Settings of the run.
            on_step: Function called with the metrics of every step.
            world: Ranks of the run. Defaults to `World.create(config)`.
            objective: Loss to minimize. Defaults to the mean cross entropy over all loss tokens of a step.

        Raises:
            ValueError: There are several ranks and the model is not sharded, checkpoints are requested with a loader
                without a state, or the dtype is "auto".
        """
        config.check_settled()
        if config.checkpoint_folder and not isinstance(loader, _Resumable):
            raise ValueError("checkpoints need a loader with state_dict() and load_state_dict()")
        self.world = world or World.create(config)
        if self.world.size > 1 and not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError(f"call parallelize(model, config, world) first: there are {self.world.size} ranks")
        self.device = self.world.device
        self.model = model.to(self.device)
        self.loader = loader
        self.config = config
        self.on_step = on_step
        self.objective = objective
        self.optimizers = make_optimizers(model, config)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._sources: list[str] = list(getattr(loader, "sources", ()))
        # With several ranks, FSDP casts the weights.
        self._autocast = config.dtype != "float32" and self.world.size == 1
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        self._peak = peak_flops(name, config.dtype)
        self._checkpoints = (
            Checkpoints(config.checkpoint_folder, config.keep_checkpoints) if config.checkpoint_folder else None
        )
        self._saved_step = 0
        self._stop_signal: int | None = None

    def run(self) -> TrainingEnd:
        """Train until the end and return the reason that the run ended.

        Raises:
            FloatingPointError: Loss or gradient is not finite. The message names the step. The weights are those before
                the step, and no checkpoint is written.
            BlockingIOError: Another run uses `config.checkpoint_folder`.
            ValueError: Copies of the weights differ between ranks.
            OSError: A checkpoint could not be written. If possible, the current state is saved first.
        """
        with self._checkpoints.locked() if self._checkpoints else nullcontext():
            return self._run()

    def _run(self) -> TrainingEnd:
        self._start()
        self._stop_signal = None
        try:
            with (
                _deterministic(self.config.deterministic or self.device.type == "cpu"),
                on_first_signal(self._note_signal),
            ):
                reason = self._loop()
            if self._checkpoints and self.step > self._saved_step:
                self.save_checkpoint()
        finally:
            if self._checkpoints:
                self._checkpoints.wait()
        return reason

    def save_checkpoint(self) -> None:
        """Save the current state of the run to `config.checkpoint_folder`; writing continues in the background."""
        if self._checkpoints is None:
            raise ValueError("config.checkpoint_folder is empty: set it to save checkpoints")
        self._saved_step = self.step  # even if the save fails: it is not tried twice
        self._save(self._checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        state = {
            "config": asdict(self.config),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "loader": self.loader.state_dict() if isinstance(self.loader, _Resumable) else None,
        }
        checkpoints.save(self.step, self.model, self.optimizers, state)

    def load_checkpoint(self) -> bool:
        """Resume from the newest intact checkpoint; return False if there is none.

        Raises:
            ValueError: No checkpoint is usable, or the run had other settings.
        """
        if self._checkpoints is None or not isinstance(self.loader, _Resumable):
            return False
        state = self._checkpoints.resume(self.model, self.optimizers, self._check_settings)
        if state is None:
            return False
        self.loader.load_state_dict(state["loader"])
        self.step = self._saved_step = state["step"]
        self.seconds, self.tokens = state["seconds"], state["tokens"]
        return True

    def _check_settings(self, state: dict[str, Any]) -> None:
        for key, value in asdict(self.config).items():
            if key not in RESUMABLE_WITH_CHANGED and value != state["config"].get(key):
                raise ValueError(
                    f"the run to resume has {key} = {state['config'].get(key)!r}, not {value!r}: keep the setting, or "
                    "use another output folder"
                )

    def fraction(self) -> float:
        """Return the completed share of the run, by steps or time, whichever is larger."""
        by_steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        by_time = self.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def _start(self) -> None:
        if self.step:
            return  # run() called again
        if not (self._checkpoints and self.load_checkpoint()):
            torch.manual_seed(self.config.seed)
        check_replicas(self.model)

    def _loop(self) -> TrainingEnd:
        self.model.train()
        batches = iter(self.loader)
        clock = time.monotonic()
        while self.fraction() < 1.0:
            began = time.monotonic()
            micro_batches = self._next_batches(batches)
            wait = time.monotonic() - began
            if self.world.any(not micro_batches):
                return TrainingEnd.DATA
            result = self._step(micro_batches)
            now = time.monotonic()
            # Reports and copies for a checkpoint since the last step count too.
            memory, wait, took = self.world.max([peak_memory(self.device), wait, now - clock])
            clock = now
            self.step += 1
            self.seconds += took
            self.tokens += result.tokens
            metrics = self.objective.metrics(self.world) if self.objective else {}
            if self.on_step:
                self.on_step(self._progress(result, int(memory), wait, took, metrics))
            if self.world.any(self._stop_signal is not None):
                return TrainingEnd.SIGNAL
            if self._checkpoints and self.step % self.config.checkpoint_every == 0:
                self.save_checkpoint()
        return TrainingEnd.FINISHED

    def _next_batches(self, batches: Iterator[Any]) -> list[_MicroBatch]:
        """Return the batches of one step: fewer at the end of the data, none if no data is left."""
        taken = []
        for arrays in batches:
            flops = batch_flops(self.model.config, arrays)  # before the batch moves to the GPU
            batch = to_device(arrays, self.device)
            sources = position_sources(batch) if self._sources else None
            own = None if sources is None else self.world.slice_tokens(sources)
            offsets = torch.as_tensor(arrays.cu_seqlens)
            taken.append(_MicroBatch(batch, self.world.slice(batch), offsets, own, flops))
            if len(taken) == self.config.grad_accumulation:
                break
        return taken

    def _step(self, micro_batches: list[_MicroBatch]) -> _StepResult:
        """Update once with the loss over all tokens of all ranks."""
        sums = Sums(self._sources, self.device)
        losses = self._backward(micro_batches, sums)
        norm = clip_grad_norm(self.model.parameters(), self.config.grad_clip)
        positions = sum(micro.share.tokens.numel() for micro in micro_batches)
        flops = sum(micro.flops for micro in micro_batches) / self.world.context_parallel
        all_sums = self.world.sum(torch.cat((sums.values(), sums.values().new_tensor([positions, flops]))))
        # The only place in a step where the CPU waits for the GPU.
        *values, tokens, flops, grad_norm = torch.cat((all_sums, norm.to(all_sums.dtype)[None])).tolist()
        loss, by_source = sums.means(values)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._fail(loss, grad_norm, micro_batches, losses)
        factor = self._update()
        learning_rate = self.config.learning_rate * factor
        return _StepResult(loss, by_source, grad_norm, learning_rate, int(tokens), int(values[1]), flops)

    def _backward(self, micro_batches: list[_MicroBatch], sums: Sums) -> list[Tensor]:
        """Add up gradients of the loss over all tokens of all ranks; return each position's cross entropy."""
        divisor: Tensor | int = 1
        if self.objective is None:
            counts = torch.stack([micro.share.loss_mask.sum() for micro in micro_batches])
            divisor = self.world.sum(counts.sum()[None]).clamp(min=1)[0]
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
                    # Batches of other loaders may lack it.
                    global_window=getattr(batch, "global_window", None),
                    objective=self.objective.of(batch) if self.objective else None,
                )
            torch.autograd.backward(total / divisor)
            sums.add(of_tokens, batch.loss_mask, micro.sources)
            losses.append(of_tokens)
        return losses

    def _update(self) -> float:
        """Take an optimizer step; return the learning rate as a fraction of the peak."""
        factor = learning_rate_factor(self.config, self.step, self._schedule_progress())
        set_learning_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        return factor

    def _fail(self, loss: float, norm: float, micro_batches: list[_MicroBatch], losses: list[Tensor]) -> NoReturn:
        """Write diagnostics and raise FloatingPointError."""
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
                "documents": [entry._asdict() for entry in found],
            }
            failure.write(folder, self.world.rank, report, batches, losses)
            self._save(Checkpoints(folder, asynchronous=False))
            text += f"; the batches, losses and weights are in {folder}"
        self._zero_grad()
        raise FloatingPointError(text)

    def _progress(
        self, result: _StepResult, memory: int, wait: float, took: float, metrics: dict[str, float]
    ) -> Progress:
        sums = result._asdict()
        flops = sums.pop("flops")
        return Progress(
            step=self.step,
            **sums,
            tokens_per_second=result.tokens / took,
            mfu=flops / (took * self._peak * self.world.size) if self._peak else None,
            memory=memory,
            data_wait=wait,
            step_seconds=took,
            seconds=self.seconds,
            fraction=self.fraction(),
            metrics=metrics,
        )

    def _schedule_progress(self) -> float:
        """Return the completed share of the learning rate schedule: the horizon of several stages, or this run."""
        if self.config.horizon_tokens:
            return (self.config.start_tokens + self.tokens) / self.config.horizon_tokens
        return self.fraction()

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _note_signal(self, signum: int) -> None:
        self._stop_signal = signum


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms inside the block if `wanted`, and restore PyTorch's settings afterwards."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # PyTorch's stubs lack its one attribute
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # filling costs time, and such memory is never read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill
