"""Checkpoints: everything that a run needs to resume exactly, on any number of processes.

A checkpoint is a folder such as `step-000000500`:

    .metadata, __0_0.distcp, ...  tensors, written by torch.distributed.checkpoint: parameters as `model.NAME`,
                                  optimizer states as `optimizer.NAME.KEY` by the name of their parameter state.json
                                  step, settings, position of the loader, ... config.json
                                  configuration of the model, with which `cwm_core.model.load` reads the weights
                                  rng-00000.pt, ...             states of each rank's random number generators
                                  manifest.json                 version of this format, and size and CRC-32 of every
                                  other file

A checkpoint is written as `step-000000500.partial` and renamed when it is on disk. All ranks must see the same folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from .._native import DamagedFileError
from ..model import Transformer
from ..support.files import locked, sync
from . import manifest, reader, rng
from .tensors import check_same, make_states, tensors_by_name

T = TypeVar("T")

FORMAT = 2

_PARTIAL = ".partial"  # being written, or deleted
_SKIPPED = ".skipped"  # found unusable
_STATE = "state.json"


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """Return the checkpoint of the highest step, without checking its files, or None."""
    return next(iter(_all(Path(folder))), None)


def stored_settings(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the settings of the run in the newest checkpoint that can be read, without checking it, or None."""
    for path in _all(Path(folder)) if folder else ():
        with suppress(OSError, ValueError, KeyError, RecursionError):
            settings: dict[str, Any] = json.loads((path / _STATE).read_bytes())["config"]
            return settings
    return None


class Checkpoints:
    """Saves and restores the state of a run, in one process or on all ranks of a process group.

    With several ranks, call every method on all of them; all return or all raise. Weights and optimizer states may be
    DTensors of any layout. The run that resumes may use another layout.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, asynchronous: bool = True) -> None:
        """Use `folder`, which is made when needed.

        Args:
            folder: Folder of the checkpoints.
            keep: Number of newest checkpoints to keep; older ones are deleted.
            asynchronous: Whether `save` returns after copying the state to host memory (the buffers are kept for the
                next save) instead of after writing it.
        """
        self.folder = Path(folder).absolute()  # independent of later changes of the working directory
        self.keep = keep
        self.asynchronous = asynchronous
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._stager: DefaultStager | None = None

    @cached_property
    def _ranks(self) -> _Ranks:
        """Made on first use, by all ranks together."""
        return _Ranks()

    def save(self, step: int, model: nn.Module, optimizers: Iterable[Optimizer], state: dict[str, Any]) -> None:
        """Save the current state, after waiting for a save that is still running.

        If the earlier save failed, this one is written before the call returns, and then the failure is raised.

        Args:
            step: Number of the step.
            model: Model to save.
            optimizers: Optimizers whose states to save, without the settings of their parameter groups.
            state: Dictionary that `resume` returns, stored as JSON. Rank 0's is stored for all ranks.

        Raises:
            OSError: An earlier save failed, or this one if not asynchronous.
            TypeError: `state` does not survive JSON, or a state of the model or an optimizer is not a tensor.
        """
        files = {_STATE: _to_json(state | {"step": step})}
        if isinstance(model, Transformer):
            files["config.json"] = json.dumps(model.config.to_hf(), indent=2).encode()
        failure = self._settle()
        tensors, device = tensors_by_name(model, optimizers), _device(model)
        random = rng.state(device)
        if self.asynchronous:
            self._stager = self._stager or _stager(device)
            staged: Any = self._stager.stage(tensors)  # typed as if every stager copied in the background
            self._pending = self._thread.submit(self._write, step, staged, files, random)
        else:
            self._write(step, tensors, files, random)
        if failure is not None:
            if also := self._settle():
                failure.add_note(str(also))
            raise failure

    def wait(self) -> None:
        """Wait until the last save is on disk; raise OSError, naming the folder, if it failed."""
        if failure := self._settle():
            raise failure

    def _settle(self) -> BaseException | None:
        """Wait for a running save and return its exception, or None."""
        if self._pending is None:
            return None
        wait_for([self._pending])
        done, self._pending = self._pending, None
        return done.exception()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder exclusively; raise BlockingIOError on all ranks if another run holds it."""
        ranks = self._ranks
        with ExitStack() as stack:
            ranks.lead(lambda: stack.enter_context(locked(self.folder, "training run")))
            yield

    def resume(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer],
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any] | None:
        """Restore the newest intact checkpoint: weights and optimizer states in place, and random number generators.

        Checkpoints that are damaged or of another format are skipped with a warning and renamed. A rank without
        generators in the checkpoint seeds them from the checksum of rank 0's and its own number.

        Args:
            model: Model to restore into.
            optimizers: Optimizers to restore into.
            check: Function that raises if the run cannot resume from the given state, called before anything changes.

        Returns:
            The state passed to `save`, including "step", or None if there are no checkpoints.

        Raises:
            DamagedFileError: No checkpoint is usable; nothing is changed then.
            ValueError: The newest checkpoint is of another model; nothing is changed then.
        """
        self.wait()
        ranks = self._ranks
        skipped: list[Path] = []
        for path in ranks.lead(self._begin):
            found, reason = self._inspect(path)
            if found:
                break
            skipped.append(path)
            if ranks.rank == 0:
                warnings.warn(f"skipping checkpoint {path}: {reason}", stacklevel=2)
        else:
            if skipped:
                raise DamagedFileError(f"{self.folder} has no usable checkpoint, the last of {len(skipped)}: {reason}")
            return None
        if check:
            ranks.gather(lambda: check(found.state))
        self._restore(found, model, list(optimizers))
        ranks.lead(lambda: _set_aside(skipped))
        return found.state

    def _begin(self) -> list[Path]:
        """Remove partial checkpoints left by a kill; return the checkpoints, newest first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(f"step-*{_PARTIAL}"):
            shutil.rmtree(partial)
        return _all(self.folder)

    def _inspect(self, path: Path) -> tuple[_Found | None, str]:
        """Return the content of a checkpoint, or None and the reason that it is unusable.

        Each rank checks its share of the files.
        """
        found, reason = None, ""
        try:
            files = manifest.read(path, FORMAT)
            for file in (".metadata", _STATE, _rng_file(0)):
                if file not in files:
                    raise DamagedFileError(f"{path / manifest.FILE} does not name {file}")
            manifest.check(path, dict(sorted(files.items())[self._ranks.rank :: self._ranks.size]))
            found = _Found(path, files, reader.read_metadata(path, files), json.loads((path / _STATE).read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error)
        reason = next(filter(None, self._ranks.gather(lambda: reason)), "")
        return (None if reason else found), reason

    def _restore(self, found: _Found, model: nn.Module, optimizers: list[Optimizer]) -> None:
        stored = found.tensors
        self._ranks.gather(lambda: check_same(found.path, stored, model, optimizers))
        make_states(stored, model, optimizers)
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # PyTorch warns of a single process
                load(
                    tensors_by_name(model, optimizers),
                    storage_reader=reader.Reader(found.path, found.metadata),
                    planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                    process_group=self._ranks.group,
                    no_dist=self._ranks.group is None,
                )
        except CheckpointException as error:
            raise ValueError(f"{found.path}: {_cause(error)}") from error
        self._ranks.gather(lambda: self._restore_rng(found, _device(model)))

    def _restore_rng(self, found: _Found, device: torch.device) -> None:
        file = _rng_file(self._ranks.rank)
        if file not in found.files:
            rng.seed_all(found.files[_rng_file(0)].crc32, self._ranks.rank)
            return
        try:
            rng.set_state((found.path / file).read_bytes(), device)
        except Exception as error:  # damaged bytes raise nearly anything
            raise DamagedFileError(f"{found.path / file} has no generator states: {error}") from None

    def _write(self, step: int, tensors: dict[str, Tensor], files: dict[str, bytes], random: bytes) -> None:
        """Write a complete checkpoint on all ranks; on failure remove it and keep the earlier ones."""
        path = self.folder / f"step-{step:09d}"
        partial = path.with_name(path.name + _PARTIAL)
        ranks = self._ranks
        own = {_rng_file(ranks.rank): random} | (files if ranks.rank == 0 else {})
        try:
            ranks.lead(lambda: _make_empty(partial))
            _write_tensors(partial, tensors, ranks)
            parts = ranks.gather(lambda: _write_own(partial, ranks.rank, own))
            ranks.lead(lambda: self._finish(path, partial, parts))
        except (Exception, CheckpointException) as error:
            if ranks.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"the checkpoint {path} could not be written: {_cause(error)}") from error

    def _finish(self, path: Path, partial: Path, parts: list[manifest.Entries]) -> None:
        """Complete the checkpoint that all ranks have written, and delete the oldest ones."""
        metadata = manifest.entries([partial / ".metadata"])
        manifest.write(partial, FORMAT, {name: entry for part in (metadata, *parts) for name, entry in part.items()})
        sync(partial)
        if path.exists():
            _delete(path)
        partial.rename(path)
        sync(self.folder)
        for old in _all(self.folder)[self.keep :]:
            _delete(old)


class _Found(NamedTuple):
    """Content of an intact checkpoint."""

    path: Path
    files: manifest.Entries
    metadata: Metadata
    state: dict[str, Any]

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Metadata of the tensors; `read_metadata` accepts nothing else."""
        entries = self.metadata.state_dict_metadata.items()
        return {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


class _Ranks:
    """Ranks that save and resume together: those of the default process group, or this process alone.

    They communicate over a gloo group of their own, which a thread can use while training uses other groups.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if together else None
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on each rank and return all results by rank; if one rank raises, raise its exception on all."""
        try:
            result: T | Exception = work()
        except Exception as error:
            result = error
        gathered: list[Any] = [result]
        if self.group is not None:
            # Exceptions of libraries may not survive pickling.
            known = not isinstance(result, Exception) or type(result).__module__ in ("builtins", "cwm_core")
            gathered = [None] * self.size
            dist.all_gather_object(gathered, result if known else RuntimeError(repr(result)), self.group)
        for each in gathered:
            if isinstance(each, Exception):
                raise each
        return gathered

    def lead(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only; return its result or raise its exception on all ranks."""
        result: Any = self.gather(lambda: work() if self.rank == 0 else None)[0]
        return cast("T", result)


def _write_tensors(folder: Path, tensors: dict[str, Tensor], ranks: _Ranks) -> None:
    # PyTorch warns of a single process. catch_warnings would affect other threads for a while.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    save(
        tensors,
        storage_writer=FileSystemWriter(folder),
        planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=ranks.group,
        no_dist=ranks.group is None,
    )


def _write_own(folder: Path, rank: int, files: dict[str, bytes]) -> manifest.Entries:
    """Write `files`; return the manifest entries of these and of the tensor files of this rank."""
    for name, content in files.items():
        manifest.write_synced(folder / name, content)
    return manifest.entries([*(folder / name for name in files), *folder.glob(f"__{rank}_*.distcp")])


def _stager(device: torch.device) -> DefaultStager:
    gpu = device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
        )
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


def _to_json(state: dict[str, Any]) -> bytes:
    """Return `state` as JSON; raise TypeError if JSON would change it in other ways than turning tuples into lists."""
    try:
        text = json.dumps(state, indent=1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the state of a run and of its loader must be valid JSON: {error}") from None
    if not _has_text_keys(state):
        raise TypeError("the state of a run and of its loader must be valid JSON: a key is not a string")
    return text.encode()


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def _cause(error: BaseException) -> BaseException:
    """Return the exception of the first rank that failed."""
    if isinstance(error, CheckpointException):
        return next(failure for failure, _ in error.failures.values())
    return error


def _all(folder: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    steps = {int(match[1]): path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return [steps[step] for step in sorted(steps, reverse=True) if steps[step].is_dir()]


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint so that an interruption does not leave a folder that looks like one."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _set_aside(checkpoints: list[Path]) -> None:
    for path in checkpoints:
        aside = path.with_name(path.name + _SKIPPED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
