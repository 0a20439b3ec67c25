"""Checkpoints: everything a run needs to go on as if it had never stopped, whatever the number of its processes.

A checkpoint is a folder such as `step-000000500`:

    .metadata, __0_0.distcp, …    tensors, as torch.distributed.checkpoint writes them: the model's as `model.NAME`,
                                  the optimizers' as `optimizer.NAME.KEY` by the name of the parameter they are of
    state.json                    the step, the settings, where the loader stands, …
    config.json                   the model's, with which `cwm_core.model.load` reads its weights
    rng-00000.pt, …               the states of each rank's random number generators
    manifest.json                 the version of this format, and size and CRC-32 of every other file

It is written as `step-000000500.partial` and renamed when all of it is on disk. All ranks must see the same folder.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from ..support.files import locked, sync
from . import manifest, reader, rng
from .tensors import check_same, make_states, tensors_by_name

T = TypeVar("T")

FORMAT = 2

_PARTIAL = ".partial"  # being written, or deleted
_SKIPPED = ".skipped"  # found unusable
_STATE = "state.json"


def latest(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step, its files not checked, or None."""
    return next(iter(_all(Path(folder))), None)


class Checkpoints:
    """Saves the state of a run while it goes on, and restores it, in one process or in all of a process group.

    With several ranks every method is called on all of them, and all of them return or raise. Weights and optimizer
    states may be DTensors of any layout, which the run that resumes need not share.
    """

    def __init__(self, folder: str | Path, keep: int = 2, asynchronous: bool = True) -> None:
        """Of `folder`, which is made when needed; all but the newest `keep` checkpoints are deleted.

        `asynchronous`: `save` returns as soon as it has a copy of the state in host memory, which it holds on to for
        the next save; otherwise when all is on disk.
        """
        self.folder = Path(folder).absolute()  # a change of the working directory does not move it
        self.keep = keep
        self.asynchronous = asynchronous
        self._ranks: _Ranks | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._stager: DefaultStager | None = None

    def save(self, step: int, model: nn.Module, optimizers: Iterable[Optimizer], state: dict[str, Any]) -> None:
        """Save everything as it is now, after waiting for a save that is still under way.

        If that one failed, this save is written first, before the call returns, and then its failure is raised.

        `state` is what `resume` will return, stored as JSON: rank 0's, for all ranks. Of an optimizer its state is
        saved, not the settings of its parameter groups. Raises what `wait` raises, and TypeError for a `state` that
        JSON cannot give back, or a value in the model's or an optimizer's state that is not a tensor.
        """
        files = {_STATE: _to_json(state | {"step": step})}
        if hasattr(model, "config"):
            files["config.json"] = json.dumps(model.config.to_hf(), indent=2).encode()
        failure = self._settle()
        self._ranks = self._ranks or _Ranks()
        tensors, device = tensors_by_name(model, optimizers), _device(model)
        random = rng.state(device)
        if self.asynchronous:
            self._stager = self._stager or _stager(device)
            self._pending = self._thread.submit(self._write, step, self._stager.stage(tensors), files, random)
        else:
            self._write(step, tensors, files, random)
        if failure is not None:
            if also := self._settle():
                failure.add_note(str(also))
            raise failure

    def wait(self) -> None:
        """Return when the last save is on disk; raises OSError, naming the folder, if it failed."""
        if failure := self._settle():
            raise failure

    def _settle(self) -> BaseException | None:
        """Wait for the save that is under way, and return why it failed, if it did."""
        if self._pending is None:
            return None
        wait_for([self._pending])
        done, self._pending = self._pending, None
        return done.exception()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no other run writes into it; raises BlockingIOError on all ranks if one does."""
        self._ranks = ranks = self._ranks or _Ranks()
        with ExitStack() as stack:
            ranks.lead(lambda: stack.enter_context(locked(self.folder, "training run")))
            yield

    def resume(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer],
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint: weights and optimizer states in place, and random number generators.

        Returns the state it was saved with, "step" among it, or None when there is no checkpoint. `check` may raise
        for a state that the run cannot go on from, before anything is changed.

        Checkpoints that are damaged or of another format are passed over with a warning and set aside under another
        name; raises ValueError if there are only such, and, changing nothing, for a checkpoint of another model. A rank
        that the checkpoint has no generators for gets ones seeded with the checksum of rank 0's and its own number.
        """
        self.wait()
        self._ranks = ranks = self._ranks or _Ranks()
        skipped: list[Path] = []
        for path in ranks.lead(self._begin):
            found, reason = self._inspect(path)
            if found:
                break
            skipped.append(path)
            if ranks.rank == 0:
                warnings.warn(f"checkpoint {path} is passed over: {reason}", stacklevel=2)
        else:
            if skipped:
                raise ValueError(
                    f"{self.folder} has no checkpoint that can be used, the last of {len(skipped)}: {reason}"
                )
            return None
        if check:
            ranks.gather(lambda: check(found.state))
        self._restore(found, model, list(optimizers))
        ranks.lead(lambda: _set_aside(skipped))
        return found.state

    def _begin(self) -> list[Path]:
        """Clean up after a kill; returns the checkpoints, the newest first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(f"step-*{_PARTIAL}"):
            shutil.rmtree(partial)
        return _all(self.folder)

    def _inspect(self, path: Path) -> tuple[_Found | None, str]:
        """What a checkpoint consists of, or why it cannot be used; each rank reads its share of the files."""
        found, reason = None, ""
        try:
            files = manifest.read(path, FORMAT)
            for file in (".metadata", _STATE, _rng_file(0)):
                if file not in files:
                    raise ValueError(f"{path / manifest.FILE} does not name {file}")
            manifest.check(path, dict(sorted(files.items())[self._ranks.rank :: self._ranks.size]))
            found = _Found(path, files, reader.read_metadata(path, files), json.loads((path / _STATE).read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error)
        reason = next(filter(None, self._ranks.gather(lambda: reason)), "")
        return (None if reason else found), reason

    def _restore(self, found: _Found, model: nn.Module, optimizers: list[Optimizer]) -> None:
        stored = found.metadata.state_dict_metadata
        self._ranks.gather(lambda: check_same(found.path, stored, model, optimizers))
        make_states(stored, model, optimizers)
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there is one process, as meant
                dcp.load(
                    tensors_by_name(model, optimizers),
                    storage_reader=reader.Reader(found.path, found.metadata),
                    planner=dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
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
        except Exception as error:  # bytes that nobody here wrote raise nearly anything
            raise ValueError(f"{found.path / file} has no states of generators: {error}") from None

    def _write(self, step: int, tensors: dict[str, Tensor], files: dict[str, bytes], random: bytes) -> None:
        """Write a whole checkpoint, on all ranks at once; if that fails there is none, and those before it stay."""
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
        """Make a checkpoint of what all ranks have written, and delete the oldest ones."""
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
    """A whole checkpoint."""

    path: Path
    files: manifest.Entries
    metadata: Metadata
    state: dict[str, Any]


class _Ranks:
    """The processes that save and resume together: those of the default process group, or this one alone.

    They talk over a gloo group of their own, which a thread may use while training uses the others.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if together else None
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank, by rank; raises on all what it raises on one."""
        try:
            result: T | Exception = work()
        except Exception as error:
            result = error
        results = [result]
        if self.group is not None:
            # Exceptions of libraries need not survive being sent.
            known = not isinstance(result, Exception) or type(result).__module__ == "builtins"
            results = [None] * self.size
            dist.all_gather_object(results, result if known else RuntimeError(repr(result)), self.group)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone does it; raises on all what it raises."""
        return self.gather(lambda: work() if self.rank == 0 else None)[0]


def _write_tensors(folder: Path, tensors: dict[str, Tensor], ranks: _Ranks) -> None:
    # That there is one process is as meant. A filter for a while would be one for the other threads too.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    dcp.save(
        tensors,
        storage_writer=dcp.FileSystemWriter(folder),
        planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=ranks.group,
        no_dist=ranks.group is None,
    )


def _write_own(folder: Path, rank: int, files: dict[str, bytes]) -> manifest.Entries:
    """Write `files`; returns what they are, and what this rank has written of the tensors."""
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
    """Raises TypeError for what would come back as something else, but that tuples become lists."""
    try:
        text = json.dumps(state, indent=1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the state of a run, its loader's included, must be fit for JSON: {error}") from None
    if not _has_text_keys(state):
        raise TypeError("the state of a run, its loader's included, must be fit for JSON: a key is not text")
    return text.encode()


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def _cause(error: BaseException) -> BaseException:
    """What went wrong on the first of the ranks that failed."""
    if isinstance(error, CheckpointException):
        return next(failure for failure, _ in error.failures.values())
    return error


def _all(folder: Path) -> list[Path]:
    """The checkpoints, the newest first."""
    steps = {int(match[1]): path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return [steps[step] for step in sorted(steps, reverse=True) if steps[step].is_dir()]


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _delete(checkpoint: Path) -> None:
    """Delete so that what a kill leaves is no checkpoint."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.old{_PARTIAL}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _set_aside(checkpoints: list[Path]) -> None:
    for path in checkpoints:
        aside = path.with_name(path.name + _SKIPPED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
