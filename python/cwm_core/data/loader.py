"""Pack token shards into training batches.

loader = cwm.PackedLoader({"traces": ("shards/traces", 0.3), "code": ("shards/code", 0.7)}, seq_len=8192)
for batch in loader:
    ...
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from cwm_core import _native

from ..support.files import StrPath
from .identity import NO_MAX_LENGTH, check_same, describe_sources
from .shards import HasVocabSize, check_not_negative, fingerprint_of, fingerprint_text, vocabulary_of

if TYPE_CHECKING:
    import torch

    from .torch import PackedDataset

STATE_VERSION = 2

_MAX_PREFETCH = 2**16  # the native channel allocates a slot for each batch at once

SourceSpec = StrPath | tuple[StrPath, float] | tuple[StrPath, float, int | None]
"""A folder, its share, and its epochs (None: the loader's)."""


class Packing(StrEnum):
    """How documents are placed in rows."""

    BEST_FIT = "best_fit"
    """Whole documents, each in the row where it leaves the least free space."""
    STREAM = "stream"
    """Documents end to end, cut at the ends of rows."""


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length, packed into batches of their own."""

    max_length: int | None
    """Tokens of the longest document in the bucket; None for no limit. The shortest is one token longer than the
    previous bucket's longest."""
    batch_size: int
    """Rows in a step, over all ranks."""
    seq_len: int | None = None
    """Tokens in a row; None for the loader's `seq_len`."""
    global_window: int | None = None
    """Maximum attention window of global layers, passed on as `Batch.global_window`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a step, as NumPy arrays.

    A row holds documents one after another, then padding. A segment is a stretch of a row that attends only to itself:
    a document, a piece of a document that was cut, or the padding at the end of the row. The arrays share memory that
    the loader reuses once the last of them is garbage collected.
    """

    tokens: NDArray[np.int32]
    """int32 [rows, seq_len]. Token ids; 0 in padding."""
    targets: NDArray[np.int32]
    """int32 [rows, seq_len]. The next token of the document, also across a cut; 0 if there is none."""
    loss_mask: NDArray[np.bool_]
    """bool [rows, seq_len]. True where the target is in the loss: it exists, the document's loss mask includes it, and
    the loader's `mask` does not exclude it."""
    position_ids: NDArray[np.int32]
    """int32 [rows, seq_len]. Position in the segment, from 0."""
    cu_seqlens: NDArray[np.int32]
    """int32 [segments + 1]. Start of every segment in the flattened batch, then `rows * seq_len`."""
    max_seqlen: int
    """Length of the longest segment."""
    source_ids: NDArray[np.int32]
    """int32 [segments]. Index of the segment's source in `PackedLoader.sources`; -1 for padding."""
    document_ids: NDArray[np.int64]
    """int64 [segments]. Index of the segment's document in the `Shards` of its source; -1 for padding."""
    padding: int
    """Number of positions without a token."""
    global_window: int | None = None
    """`global_window` of the batch's bucket."""

    def to_torch(self, device: str | torch.device = "cpu") -> TensorBatch:
        """Return the batch as tensors.

        On the CPU, the tensors share the arrays' memory. For a GPU, the arrays are copied through page-locked memory,
        so that the copy does not block.
        """
        import torch

        is_gpu = torch.device(device).type == "cuda"

        def convert(array: NDArray[Any]) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return (tensor.pin_memory() if is_gpu else tensor).to(device, non_blocking=is_gpu)

        return TensorBatch(
            tokens=convert(self.tokens),
            targets=convert(self.targets),
            loss_mask=convert(self.loss_mask),
            position_ids=convert(self.position_ids),
            cu_seqlens=convert(self.cu_seqlens),
            max_seqlen=self.max_seqlen,
            source_ids=convert(self.source_ids),
            document_ids=convert(self.document_ids),
            padding=self.padding,
            global_window=self.global_window,
        )


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """A `Batch` as PyTorch tensors, with the same fields, shapes, and types."""

    tokens: torch.Tensor
    """int32 [rows, seq_len]. Token ids."""
    targets: torch.Tensor
    """int32 [rows, seq_len]. The next token of the document."""
    loss_mask: torch.Tensor
    """bool [rows, seq_len]. True where the target is in the loss."""
    position_ids: torch.Tensor
    """int32 [rows, seq_len]. Position in the segment."""
    cu_seqlens: torch.Tensor
    """int32 [segments + 1]. Start of every segment in the flattened batch, then `rows * seq_len`."""
    max_seqlen: int
    """Length of the longest segment."""
    source_ids: torch.Tensor
    """int32 [segments]. Index of the segment's source; -1 for padding."""
    document_ids: torch.Tensor
    """int64 [segments]. Index of the segment's document; -1 for padding."""
    padding: int
    """Number of positions without a token."""
    global_window: int | None = None
    """`global_window` of the batch's bucket."""

    def pin_memory(self) -> TensorBatch:
        """Return the batch in page-locked memory, for `torch.utils.data.DataLoader(..., pin_memory=True)`."""
        return TensorBatch(
            tokens=self.tokens.pin_memory(),
            targets=self.targets.pin_memory(),
            loss_mask=self.loss_mask.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            cu_seqlens=self.cu_seqlens.pin_memory(),
            max_seqlen=self.max_seqlen,
            source_ids=self.source_ids.pin_memory(),
            document_ids=self.document_ids.pin_memory(),
            padding=self.padding,
            global_window=self.global_window,
        )


@dataclass(frozen=True)
class LoaderStats:
    """Totals over all ranks since step 0."""

    steps: int
    """Number of steps."""
    tokens: int
    """Number of tokens."""
    documents: int
    """Number of documents loaded to their ends, counted once in every epoch."""
    efficiency: float
    """Fraction of all positions that hold a token."""
    source_tokens: dict[str, int]
    """Tokens by source name."""


class PackedLoader:
    """Packs documents into batches: the same batches on any number of ranks, resumable at any step.

    All ranks share one order of rows. A step takes the next `batch_size` rows, and rank r gets slice r of `world_size`
    slices, so the batches of all ranks stacked in order equal the batch of a single rank. If `world_size` does not
    divide `batch_size`, the shorter slices end with a row of padding. The order depends only on the data, `seq_len`,
    `batch_size`, `seed`, `packing`, `lookahead`, and `buckets`, so a run can resume on a different number of ranks.

    Documents are shuffled in every epoch. The loader draws from the sources in turn so that their tokens keep to their
    shares. A source that has finished its epochs drops out, and the others continue. Every token appears once in an
    epoch. The last step may end with rows of padding.

    `Packing.BEST_FIT` packs the next `lookahead` documents of all sources into rows, the longest first, each into the
    row where it leaves the least free space. Only a document longer than a row is cut. The rows come in shuffled order.
    `Packing.STREAM` lays documents end to end and cuts them at the ends of rows.

    With `buckets`, documents are packed by length, each bucket separately. The next step comes from the bucket that is
    furthest behind in the common order of documents.

    A thread prepares `prefetch` batches ahead without holding the GIL. Several threads can share a loader. In a forked
    process, the loader continues from the parent's position. A loader can be pickled; the other process opens the
    shards again.
    """

    def __init__(
        self,
        sources: StrPath | Mapping[str, SourceSpec],
        seq_len: int,
        *,
        vocab_size: int | HasVocabSize | None = None,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        packing: Packing | str = Packing.BEST_FIT,
        lookahead: int = 65_536,
        buckets: Sequence[Bucket] | None = None,
        mask: Mapping[str, float] | None = None,
        prefetch: int = 2,
    ) -> None:
        """Open the shards, positioned before the first batch.

        To repeat some sources forever and others a few times, leave `epochs` out and give the latter their own numbers
        of epochs.

        Args:
            sources: A folder of shards, or any other path that `Shards` opens. Or, by name: a path, or a tuple of a
                path, its share of the tokens (any positive weight), and its number of epochs (None: `epochs`).
            seq_len: Tokens in a row.
            vocab_size: Number of ids, or a tokenizer. Shards of another vocabulary are refused. Megatron datasets name
                no vocabulary; their ids are checked against this one, or against that of the other sources.
            batch_size: Rows in a step, over all ranks.
            rank: Rank of this process, from 0.
            world_size: Number of ranks.
            seed: Seed of the order of documents and of `mask`.
            epochs: Passes over each source that has no number of its own. None repeats forever.
            packing: How documents are placed in rows.
            lookahead: Documents packed together, 1 to 1,048,576. More documents fill rows better and take longer to
                resume.
            buckets: Buckets by ascending `max_length`, the last one's None. They replace `batch_size`.
            mask: Fraction of the spans with a label to exclude from the loss, by label:
                `{"context": 1, "observation": 0.5}`. Spans are chosen at random, the same ones in every epoch.
            prefetch: Batches to prepare ahead, at most 65,536. 0 prepares each batch on request.

        Raises:
            ValueError: A share is not positive, there are no sources, their vocabularies differ, no shard has a label
                of `mask`, a number is out of range, or a shard is damaged.
            TypeError: An argument has the wrong type.
            OSError: A file cannot be read.
        """
        options = {name: value for name, value in locals().items() if name != "self"}
        # NumPy integers would end up in the state, which must be fit for JSON.
        seq_len, batch_size, seed, lookahead = map(operator.index, (seq_len, batch_size, seed, lookahead))
        check_not_negative(seq_len=seq_len, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed)
        check_not_negative(lookahead=lookahead, prefetch=prefetch)
        if prefetch > _MAX_PREFETCH:
            raise ValueError(f"prefetch must be at most {_MAX_PREFETCH}, not {prefetch}")
        if packing not in list(Packing):
            raise ValueError(f'packing must be "best_fit" or "stream", not {packing!r}')
        packing = Packing(packing)
        self._buckets = list(buckets or [Bucket(None, batch_size)])
        if not all(isinstance(bucket, Bucket) for bucket in self._buckets):
            raise TypeError(f"buckets: expected a list of cwm_core.data.Bucket, got {buckets!r}")
        if not isinstance(mask, Mapping | None):
            raise TypeError(f"mask: expected fractions by label, such as {{'context': 1}}, got {mask!r}")
        entries = [_source(name, spec, epochs) for name, spec in _named(sources).items()]
        # Another process may open the folders from another working directory.
        self._options = options | {"sources": {name: (folder, *rest) for name, folder, *rest in entries}}
        shapes = [_shape(bucket, seq_len) for bucket in self._buckets]
        masks = [(label, float(part)) for label, part in (mask or {}).items()]
        best_fit = lookahead if packing is Packing.BEST_FIT else None
        size = None if vocab_size is None else vocabulary_of(vocab_size)
        self._fingerprint = fingerprint_of(vocab_size)
        self._arguments = (entries, size, self._fingerprint, shapes, best_fit, masks, rank, world_size, seed)
        self._prefetch = prefetch
        self._sources = [name for name, *_ in entries]
        self._native = self._open(0, 1)
        # Set by `dataset`.
        self._workers_began: torch.Tensor | None = None
        # Everything that the order of the rows and the masks depend on.
        self._identity = {
            "version": STATE_VERSION,
            "data": f"{self._native.fingerprint():016x}",
            "seed": seed,
            "packing": packing.value,
            "lookahead": best_fit,
            "buckets": [list(shape) for shape in shapes],
            "mask": dict(masks),
        }

    def _open(self, worker: int, workers: int) -> _native.PackedLoader:
        return _native.PackedLoader(*self._arguments, (worker, workers), self._prefetch)

    def _worker(self, turn: int, workers: int) -> PackedLoader:
        """Return a loader over the steps whose number modulo `workers` equals `turn`."""
        worker = object.__new__(PackedLoader)
        vars(worker).update(vars(self), _native=self._open(turn, workers), _workers_began=None)
        return worker

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to continue from here."""
        return {"options": self._options, "state": self._state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Open the shards and continue where the pickled loader was."""
        self.__init__(**saved["options"])  # type: ignore[misc]  # the class has no subclasses
        self.load_state_dict(saved["state"])

    @property
    def sources(self) -> list[str]:
        """Names of the sources. `Batch.source_ids` are indices into this list."""
        return list(self._sources)

    @property
    def vocab_size(self) -> int | None:
        """Number of ids in the vocabulary, or None if no source names it. Every token is below it."""
        return self._native.vocab_size

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """`Tokenizer.fingerprint` of the documents' tokenizer, or None if it is not known."""
        known = self._native.vocabulary_fingerprint
        return fingerprint_text(self._fingerprint if known is None else known)

    def __iter__(self) -> PackedLoader:
        """Return the loader itself: iterating again resumes at the next batch."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, prepared without holding the GIL.

        Raises:
            ValueError: A shard is damaged. The loader stays before the batch.
        """
        parts = self._native.next_batch()
        if parts is None:
            raise StopIteration
        tokens, targets, loss_mask, position_ids, cu_seqlens, max_seqlen, source_ids, document_ids, padding, bucket = (
            parts
        )
        return Batch(
            tokens=tokens,
            targets=targets,
            loss_mask=loss_mask,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            source_ids=source_ids,
            document_ids=document_ids,
            padding=padding,
            global_window=self._buckets[bucket].global_window,
        )

    def skip(self, steps: int) -> int:
        """Skip steps without reading their tokens.

        If the call fails or is interrupted, the loader does not move.

        Returns:
            Number of steps skipped: `steps`, or fewer if the data end before.
        """
        check_not_negative(steps=steps)
        return self._native.skip(steps)

    def dataset(self) -> PackedDataset:
        """Return this loader as a dataset for `torch.utils.data.DataLoader(..., batch_size=None)`.

        The dataset starts at the loader's position. With several workers, each prepares every n-th batch, and the
        batches arrive in the loader's order. `StatefulDataLoader` of `torchdata` saves and loads its state.
        """
        from .torch import PackedDataset, shared_counter

        if self._workers_began is None:
            self._workers_began = shared_counter()
        return PackedDataset(self, self._workers_began)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position after the last batch returned: a few KB at most, fit for JSON.

        The state is the same on every rank, so one rank's state is enough.

        Raises:
            RuntimeError: A `DataLoader` with workers has taken batches. They are prepared in other processes, so this
                process does not know how many were used.
        """
        if self._workers_began is not None and self._workers_began.item() == self._native.state()[0][0]:
            raise RuntimeError(
                "a DataLoader with worker processes took batches from this loader, so the loader does not know the "
                "position of the run. Use the state_dict() of torchdata's StatefulDataLoader, or iterate over the "
                "loader itself"
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
        (steps, documents, positions), tokens, places = self._native.state()
        keys = ("cursors", "taken", "rest")
        return {
            **self._identity,
            "vocabulary": self.vocabulary_fingerprint,
            "sources": describe_sources(self._native.description()),
            "steps": steps,
            "documents": documents,
            "positions": positions,
            "tokens": tokens,
            "places": [dict(zip(keys, place, strict=True)) for place in places],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move to the position in a state, in milliseconds, on any rank of any number of ranks.

        Raises:
            ValueError: The state is from other data or another configuration, or malformed. The loader does not move.
            TypeError: The state is not a mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"loader state: expected the mapping from state_dict(), got {type(state).__name__}")
        mine = {**self._identity, "vocabulary": self.vocabulary_fingerprint}
        check_same(mine, self._native.description(), state)
        try:
            counts = (state["steps"], state["documents"], state["positions"])
            places = [(place["cursors"], place["taken"], place["rest"]) for place in state["places"]]
            self._native.restore((counts, state["tokens"], places))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"loader state is malformed: {error!r}") from error
        if self._workers_began is not None:
            self._workers_began.fill_(-1)

    def stats(self) -> LoaderStats:
        """Return totals over all ranks since step 0."""
        (steps, documents, positions), tokens, _ = self._native.state()
        return LoaderStats(
            steps=steps,
            tokens=sum(tokens),
            documents=documents,
            efficiency=sum(tokens) / positions if positions else 0.0,
            source_tokens=dict(zip(self._sources, tokens, strict=True)),
        )


def _named(sources: StrPath | Mapping[str, SourceSpec]) -> Mapping[str, SourceSpec]:
    return sources if isinstance(sources, Mapping) else {"data": sources}


def _source(name: str, spec: SourceSpec, epochs: int | None) -> tuple[str, StrPath, float, int | None]:
    parts: tuple[Any, ...] = tuple(spec) if isinstance(spec, tuple | list) else (spec,)
    defaults: tuple[Any, ...] = (None, 1.0, None)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], str | os.PathLike):
        raise ValueError(f"source {name!r} must be a folder, its share and its epochs, not {spec!r}")
    folder, share, own = (*parts, *defaults[len(parts) :])
    own = epochs if own is None else own
    if not isinstance(share, Real) or not isinstance(own, SupportsIndex | None):
        raise TypeError(f"source {name!r}: expected a number as the share and whole numbers of epochs, got {spec!r}")
    if own is not None:
        own = operator.index(own)
        check_not_negative(epochs=own)
    return name, os.path.abspath(folder), float(share), own


def _shape(bucket: Bucket, seq_len: int) -> tuple[int, int, int]:
    longest = NO_MAX_LENGTH if bucket.max_length is None else operator.index(bucket.max_length)
    row = seq_len if bucket.seq_len is None else operator.index(bucket.seq_len)
    batch_size = operator.index(bucket.batch_size)
    check_not_negative(max_length=longest, seq_len=row, batch_size=batch_size)
    return longest, row, batch_size
