"""Summarize what a path holds: traces, a vocabulary, a corpus, a training run, a checkpoint, or a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cwm_core._native import DamagedFileError

from ..formats.traces import STORE, TRACE, read_traces
from ..support.files import files_in
from ..support.jsonl import loads, read_lines, read_object
from ..tokenizer import Tokenizer

_VOCABULARY = "tokenizer.json"
_WEIGHTS = (".safetensors", ".pth")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TraceContents:
    """Contents of single traces and trace stores."""

    files: int
    """Number of files."""
    traces: int
    """Number of traces."""
    frames: int
    """Number of frames."""
    bytes: int
    """Size of the files."""
    outcomes: dict[str, int]
    """Number of traces by outcome, the most frequent first."""
    sources: dict[str, int]
    """Number of traces by source, the most frequent first."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"traces      {self.traces:,} in {_count(self.files, 'file')}, {_size(self.bytes)}"
        yield f"frames      {self.frames:,}"
        yield from _table("outcome", self.outcomes)
        yield from _table("source", self.sources)


@dataclass(frozen=True)
class CorpusContents:
    """Contents of a corpus."""

    parts: int
    """Number of finished parts."""
    items: int
    """Number of items of the source that are done."""
    traces: int
    """Number of traces kept."""
    tokens: int
    """Number of tokens."""
    drops: dict[str, int]
    """Number of samples dropped by reason, the most frequent first."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"corpus      {_count(self.parts, 'part')}, {_count(self.items, 'item')} of the source"
        yield f"traces      {self.traces:,}"
        yield f"tokens      {self.tokens:,}"
        yield from _table("dropped because of", self.drops)


@dataclass(frozen=True)
class CheckpointContents:
    """Contents of a checkpoint."""

    step: int
    """Training step after which it was saved."""
    bytes: int
    """Size of the files."""
    files: dict[str, int]
    """Size of every file by name."""
    model: dict[str, Any] | None
    """Model configuration, or None if it was saved without one."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"checkpoint  step {self.step:,}, {_size(self.bytes)}"
        if self.model is not None:
            yield f"model       {_architecture(self.model)}"
        yield from _file_lines(self.files)


@dataclass(frozen=True)
class RunContents:
    """Contents of a folder of checkpoints."""

    checkpoints: dict[str, int]
    """Size of every checkpoint by name, the earliest first."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"run         {_count(len(self.checkpoints), 'checkpoint')}"
        yield from _file_lines(self.checkpoints)


@dataclass(frozen=True)
class ModelContents:
    """Contents of a model folder."""

    config: dict[str, Any] | None
    """Model configuration, or None if the folder has none."""
    tensors: int | None
    """Number of tensors, or None if the weights are not safetensors files."""
    parameters: int | None
    """Number of parameters, or None if the weights are not safetensors files."""
    dtypes: dict[str, int]
    """Number of parameters by data type."""
    files: dict[str, int]
    """Size of every file by name."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"model       {'no configuration' if self.config is None else _architecture(self.config)}"
        if self.parameters is not None:
            types = ", ".join(sorted(self.dtypes))
            yield f"parameters  {self.parameters:,} in {_count(self.tensors or 0, 'tensor')} ({types})"
        yield from _file_lines(self.files)


@dataclass(frozen=True)
class VocabularyContents:
    """Contents of a vocabulary."""

    vocab_size: int
    """Number of tokens, the special ones included."""
    special_tokens: int
    """Number of special tokens."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        yield f"vocabulary  {self.vocab_size:,} tokens, {self.special_tokens:,} of them special"


Contents = VocabularyContents | TraceContents | CorpusContents | CheckpointContents | RunContents | ModelContents


def contents(path: Path) -> Contents | None:
    """Return what a path holds, or None if it may hold shards.

    Raises:
        DamagedFileError: A file is damaged.
        OSError: A file cannot be read.
        ValueError: The path holds nothing that `cwm inspect` knows.
    """
    if path.suffix.lower() in (TRACE, STORE):
        return _traces([path])
    if (path / "corpus.json").is_file():
        return _corpus(path)
    if (path / "state.json").is_file() and (path / "manifest.json").is_file():
        return _checkpoint(path)
    if checkpoints := sorted(path.glob("step-*/manifest.json")):
        return RunContents({file.parent.name: sum(_sizes(file.parent).values()) for file in checkpoints})
    return _folder(path) if path.is_dir() else _file(path)


def _folder(folder: Path) -> Contents | None:
    if any(file.suffix in _WEIGHTS for file in folder.iterdir()):
        return _model(folder)
    if any(folder.glob("*.cwmtok")):
        return None
    if files := files_in(folder, (TRACE, STORE)):
        return _traces(files)
    if (folder / _VOCABULARY).is_file():
        return _vocabulary(folder)
    raise _unknown(folder)


def _file(path: Path) -> Contents | None:
    if path.name == _VOCABULARY:
        return _vocabulary(path)
    if path.is_file() and path.suffix.lower() not in (".idx", ".bin"):
        raise _unknown(path)
    return None  # a Megatron dataset is named without its extension


def _unknown(path: Path) -> ValueError:
    return ValueError(
        f"{path}: expected a trace (*{TRACE}), a trace store (*{STORE}), a vocabulary, or a folder of traces, "
        "token shards (*.cwmtok), a corpus, a checkpoint, or a model"
    )


def _vocabulary(path: Path) -> VocabularyContents:
    tokenizer = Tokenizer.load(path)
    return VocabularyContents(tokenizer.vocab_size, len(tokenizer.special_tokens))


def _traces(files: list[Path]) -> TraceContents:
    outcomes, sources = Counter[str](), Counter[str]()
    frames = 0
    for file in files:
        for entry in read_traces(file):
            frames += len(entry.trace)
            outcomes[str(entry.metadata.get("outcome", "unknown"))] += 1
            sources[str(entry.metadata.get("source", "unknown"))] += 1
    return TraceContents(
        files=len(files),
        traces=outcomes.total(),
        frames=frames,
        bytes=sum(file.stat().st_size for file in files),
        outcomes=dict(outcomes.most_common()),
        sources=dict(sources.most_common()),
    )


def _corpus(folder: Path) -> CorpusContents:
    from ..corpus.filters.drops import DropCounts
    from ..corpus.output import CorpusPart

    progress = folder / "progress.jsonl"
    parts, drops = [], DropCounts()
    for number, line in read_lines(progress) if progress.exists() else ():
        if not line.endswith(b"\n"):
            break  # a writer was killed, or is at work
        try:
            parts.append(CorpusPart(**loads(line)))
            drops.merge(DropCounts.from_json(parts[-1].drops))
        except (ValueError, TypeError) as error:
            raise DamagedFileError(f"{progress}, line {number}: {error}") from None
    return CorpusContents(
        parts=len(parts),
        items=parts[-1].items if parts else 0,
        traces=drops.kept,
        tokens=sum(part.tokens for part in parts),
        drops=dict(drops.reasons.most_common()),
    )


def _checkpoint(folder: Path) -> CheckpointContents:
    files = _sizes(folder)
    step = read_object(folder / "state.json").get("step")
    if not isinstance(step, int):
        raise DamagedFileError(f"{folder / 'state.json'}: expected the number of a step, got {step!r}")
    return CheckpointContents(step=step, bytes=sum(files.values()), files=files, model=_config(folder))


def _model(folder: Path) -> ModelContents:
    files = _sizes(folder)
    weights = [folder / name for name in files if name.endswith(".safetensors")]
    dtypes = Counter[str]()
    tensors = 0
    for file in weights:
        for dtype, size in _safetensors(file):
            dtypes[dtype] += size
            tensors += 1
    return ModelContents(
        config=_config(folder),
        tensors=tensors if weights else None,
        parameters=dtypes.total() if weights else None,
        dtypes=dict(dtypes),
        files=files,
    )


def _safetensors(path: Path) -> Iterator[tuple[str, int]]:
    """Yield data type and number of elements of every tensor, from the header alone."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise DamagedFileError(f"{path}: not a safetensors file")
        try:
            header = json.loads(file.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    yield str(tensor["dtype"]), prod(tensor["shape"])
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(f"{path}: damaged header: {error}") from None


def _config(folder: Path) -> dict[str, Any] | None:
    for name in ("config.json", "params.json"):
        if (folder / name).is_file():
            return read_object(folder / name)
    return None


def _architecture(config: dict[str, Any]) -> str:
    """Describe a configuration of Hugging Face's format or Meta's."""
    names = {
        "layers": ("num_hidden_layers", "n_layers"),
        "hidden size": ("hidden_size", "dim"),
        "heads": ("num_attention_heads", "n_heads"),
        "vocabulary": ("vocab_size",),
    }
    parts = [str(config.get("model_type", "unknown type"))]
    for label, keys in names.items():
        value = next((config[key] for key in keys if isinstance(config.get(key), int)), None)
        if value is not None:
            parts.append(f"{label} {value:,}")
    return ", ".join(parts)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}


def _file_lines(files: dict[str, int]) -> Iterator[str]:
    yield f"\n{'file':<44} {'size':>10}"
    for name, size in files.items():
        yield f"{name:<44} {_size(size):>10}"


def _table(label: str, counts: dict[str, int]) -> Iterator[str]:
    if counts:
        yield f"\n{label:<44} {'traces':>10}"
        for name, count in counts.items():
            yield f"{name:<44} {count:>10,}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
