"""The loader that packs token shards into training batches.

loader = cwm.PackedLoader({"traces": ("shards/traces", 0.3), "code": ("shards/code", 0.7)}, seq_len=8192)
for batch in loader:
    ...
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cwm_core import _native

from .identity import check_same, describe_sources
from .shards import HasVocabSize, Path, check_not_negative, fingerprint_of, fingerprint_text, vocabulary_of

if TYPE_CHECKING:
    import torch

    from .torch import PackedDataset

STATE_VERSION = 2
_LONGEST = 2**32 - 1

SourceSpec = Path | tuple[Path, float] | tuple[Path, float, int | None]
"""A folder, its share, and its epochs: None stands for the loader's."""


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length, which go into batches of their own.

    A bucket takes the documents longer than those of the bucket before, up to ``max_length`` tokens (None: all).
    ``batch_size``: rows a step, of all ranks together. ``seq_len``: tokens a row (None: the loader's).
    ``global_window``: handed on in ``Batch.global_window``, to cap the attention of global layers.
    """

    max_length: int | None
    batch_size: int
    seq_len: int | None = None
    global_window: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a step.

    A row holds documents one after another, then padding. A segment is what attends to itself alone: a document (or a
    piece of one that was cut), or the padding at the end of a row. The arrays are the memory that the loader filled; it
    takes that back when the last of them is gone.
    """

    tokens: NDArray[np.int32]
    """int32 [rows, seq_len]; 0 in padding."""
    targets: NDArray[np.int32]
    """int32 [rows, seq_len]: the next token of the document, also across a cut; 0 where there is none."""
    loss_mask: NDArray[np.bool_]
    """bool [rows, seq_len]: True where the target exists, its own mask in the document is True, and no policy of the
    loader leaves it out."""
    position_ids: NDArray[np.int32]
    """int32 [rows, seq_len]: place within the segment, from 0."""
    cu_seqlens: NDArray[np.int32]
    """int32 [segments + 1]: where the segments begin in the flattened batch, and ``rows * seq_len``."""
    max_seqlen: int
    """Length of the longest segment."""
    source_ids: NDArray[np.int32]
    """int32 [segments]: place of the segment's source in ``PackedLoader.sources``, -1 for padding."""
    document_ids: NDArray[np.int64]
    """int64 [segments]: number of the segment's document in the ``Shards`` of its source, -1 for padding."""
    padding: int
    """Positions that hold no token."""
    global_window: int | None = None
    """Of the batch's bucket."""

    def to_torch(self, device: str | torch.device = "cpu") -> Batch:
        """Return the same batch with tensors in place of arrays.

        On the CPU the tensors share the arrays' memory. To a GPU they are copied through page-locked memory, so that
        the copy does not block.
        """
        import torch

        pin = torch.device(device).type == "cuda"

        def convert(value: NDArray[Any]) -> torch.Tensor:
            tensor = torch.from_numpy(value)
            if pin:
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=pin)

        return self._map(np.ndarray, convert)

    def pin_memory(self) -> Batch:
        """Return a batch of tensors in page-locked memory, as ``torch.utils.data.DataLoader`` asks for it."""
        import torch

        return self._map(torch.Tensor, lambda tensor: tensor.pin_memory())

    def _map(self, kind: type, function: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if isinstance(value, kind)})


class PackedLoader:
    """Endless or epoch-wise packed batches, the same for any number of ranks, resumable at any step.

    There is one global order of rows. A step takes ``batch_size`` of them, and of these rank r takes the r-th of
    ``world_size`` slices: the ranks' batches, one below the other, are the batch of a single rank. Where ``world_size``
    does not divide ``batch_size``, the shorter slices end in a row of padding. The order depends on the data and on
    ``seq_len``, ``batch_size``, ``seed``, ``packing``, ``lookahead`` and ``buckets`` alone, so a run may resume on
    another number of ranks.

    Documents come in an order shuffled anew each epoch. Sources are drawn from in turn so that their parts of the
    tokens keep to their shares; one that has made its epochs drops out and the others go on. Every token appears once
    an epoch; the last step may end in rows that are all padding.

    Packing ``"best_fit"`` puts the next ``lookahead`` documents (of all sources, at most as many as there are) into
    rows of ``seq_len``, each where it leaves least room, the longest first; no document is cut unless it is longer
    than a row. These rows come in a shuffled order. ``"stream"`` lays documents end to end and cuts them where a row
    is full.

    With ``buckets``, documents are packed by length, each bucket for itself; the next step is that of the bucket that
    is furthest behind in the common order of documents.

    A thread without the GIL makes ``prefetch`` batches ahead. The loader may be used from several threads, goes on in a
    forked process where the parent stood, and can be pickled (the other process opens the shards itself).
    """

    def __init__(
        self,
        sources: Path | Mapping[str, SourceSpec],
        seq_len: int,
        *,
        vocab_size: int | HasVocabSize | None = None,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        packing: str = "best_fit",
        lookahead: int = 65_536,
        buckets: Sequence[Bucket] | None = None,
        mask: Mapping[str, float] | None = None,
        prefetch: int = 2,
    ) -> None:
        """Open the shards and stand before the first batch.

        ``sources``: a folder of shards or anything else that ``Shards`` opens, or by name such a path, its share of the
        tokens (any positive weight) and its passes (None: ``epochs``). ``vocab_size``: the number of ids, or a
        tokenizer. Shards of another size, or made with another tokenizer as far as they name it, are refused;
        Megatron's files name none and are held to it or, without it, to what the others name.
        ``batch_size``: rows a step, of all ranks together. ``epochs``: passes over every source that has no
        number of its own; None never ends. To pass over some sources forever and others a few times, leave ``epochs``
        out and give these their own number. ``lookahead``: documents packed together, 1 to 1,048,576; more pack
        better and take longer to resume. ``buckets``: by ascending ``max_length``, the last one's None; they take the
        place of ``batch_size``. ``mask``: by label of spans the part of them, 0 to 1, to leave out of the loss, span by
        span at random, the same for a document in every epoch: ``{"context": 1, "observation": 0.5}``. ``prefetch``:
        batches made ahead; 0 makes each when it is asked for.

        Raises OSError and ValueError as ``Shards`` does, and ValueError for a share that is not positive, no sources,
        sources of different vocabularies, a label that no shard has, or impossible numbers.
        """
        options = {name: value for name, value in locals().items() if name != "self"}
        # Of NumPy's integers the state would hold some, which JSON does not have.
        seq_len, batch_size, seed, lookahead = map(operator.index, (seq_len, batch_size, seed, lookahead))
        check_not_negative(seq_len=seq_len, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed)
        check_not_negative(lookahead=lookahead, prefetch=prefetch)
        if packing not in ("best_fit", "stream"):
            raise ValueError(f'packing must be "best_fit" or "stream", not {packing!r}')
        self._buckets = list(buckets or [Bucket(None, batch_size)])
        entries = [_source(name, spec, epochs) for name, spec in _named(sources).items()]
        # Another process may open the folders after a change of the working directory.
        self._options = options | {"sources": {name: (folder, *rest) for name, folder, *rest in entries}}
        shapes = [_shape(bucket, seq_len) for bucket in self._buckets]
        masks = [(label, float(part)) for label, part in (mask or {}).items()]
        best_fit = lookahead if packing == "best_fit" else None
        size = None if vocab_size is None else vocabulary_of(vocab_size)
        self._fingerprint = fingerprint_of(vocab_size)
        self._arguments = (entries, size, self._fingerprint, shapes, best_fit, masks, rank, world_size, seed)
        self._prefetch = prefetch
        self._sources = [name for name, *_ in entries]
        self._native = self._open(0, 1)
        # Set by `dataset`.
        self._workers_began: torch.Tensor | None = None
        # All that the order of the rows and the masks depend on.
        self._identity = {
            "version": STATE_VERSION,
            "data": f"{self._native.fingerprint():016x}",
            "seed": seed,
            "packing": packing,
            "lookahead": best_fit,
            "buckets": [list(shape) for shape in shapes],
            "mask": dict(masks),
        }

    def _open(self, worker: int, workers: int) -> _native.PackedLoader:
        return _native.PackedLoader(*self._arguments, (worker, workers), self._prefetch)

    def _worker(self, turn: int, workers: int) -> PackedLoader:
        """Return a loader of the same data for every step whose number leaves ``turn`` when divided by ``workers``."""
        worker = object.__new__(PackedLoader)
        vars(worker).update(vars(self), _native=self._open(turn, workers), _workers_began=None)
        return worker

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to go on from here."""
        return {"options": self._options, "state": self._state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Open the shards and go to where the pickled loader stood."""
        self.__init__(**saved["options"])
        self.load_state_dict(saved["state"])

    @property
    def sources(self) -> list[str]:
        """Names of the sources; ``Batch.source_ids`` counts into them."""
        return list(self._sources)

    @property
    def vocab_size(self) -> int | None:
        """Number of ids in the vocabulary; every token is below it. None if no source names it."""
        return self._native.vocab_size

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """`Tokenizer.fingerprint` of the documents' tokenizer, as sources or ``vocab_size`` name it, or None."""
        known = self._native.vocabulary_fingerprint
        return fingerprint_text(self._fingerprint if known is None else known)

    def __iter__(self) -> PackedLoader:
        """Return the loader itself: iterating again goes on where it stands."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, made without the GIL. Raises ValueError if a shard is damaged; the loader stays."""
        parts = self._native.next_batch()
        if parts is None:
            raise StopIteration
        *values, bucket = parts
        return Batch(*values, self._buckets[bucket].global_window)

    def skip(self, steps: int) -> int:
        """Go over the next steps without reading their tokens; returns how many there were, at most ``steps``.

        If it is interrupted or fails, the loader stays where it stood.
        """
        check_not_negative(steps=steps)
        return self._native.skip(steps)

    def dataset(self) -> PackedDataset:
        """Return this loader as a dataset for ``torch.utils.data.DataLoader(..., batch_size=None)``.

        It begins where the loader stands. With several workers each makes every n-th batch, and they arrive in the
        loader's order. ``torchdata``'s ``StatefulDataLoader`` saves and loads its state.
        """
        from .torch import PackedDataset, shared_counter

        if self._workers_began is None:
            self._workers_began = shared_counter()
        return PackedDataset(self, self._workers_began)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, after the last batch returned: a few KB at most, fit for JSON.

        It is the same on every rank, so saving that of one is enough.

        Raises RuntimeError after a ``DataLoader`` with workers has taken batches: they are made in other processes, and
        how many of them were used is not known here.
        """
        if self._workers_began is not None and self._workers_began.item() == self._native.state()[0][0]:
            raise RuntimeError(
                "worker processes of a DataLoader took batches from here on, so this loader does not know where the "
                "run stands. Use torchdata's StatefulDataLoader and its state_dict(), or iterate over the loader itself"
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
        """Go to where ``state`` was taken, at once, on any rank of any world size.

        Raises ValueError, changing nothing, if the state is of other data or another configuration, or impossible.
        """
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

    def stats(self) -> dict[str, Any]:
        """Return totals over all ranks since step 0.

        ``steps``; ``tokens``; ``documents`` given out to their ends, once an epoch; ``efficiency``, the part of all
        positions that hold a token; ``source_tokens``, tokens by source name.
        """
        (steps, documents, positions), tokens, _ = self._native.state()
        return {
            "steps": steps,
            "tokens": sum(tokens),
            "documents": documents,
            "efficiency": sum(tokens) / positions if positions else 0.0,
            "source_tokens": dict(zip(self._sources, tokens, strict=True)),
        }


def _named(sources: Path | Mapping[str, SourceSpec]) -> Mapping[str, SourceSpec]:
    return sources if isinstance(sources, Mapping) else {"data": sources}


def _source(name: str, spec: SourceSpec, epochs: int | None) -> tuple[str, str, float, int | None]:
    given = tuple(spec) if isinstance(spec, tuple | list) else (spec,)
    if not 1 <= len(given) <= 3:
        raise ValueError(f"source {name!r} must be a folder, its share and its epochs, not {spec!r}")
    folder, share, own = given + (1.0, None)[len(given) - 1 :]
    own = epochs if own is None else own
    if own is not None:
        check_not_negative(epochs=own)
    return name, os.path.abspath(folder), float(share), own


def _shape(bucket: Bucket, seq_len: int) -> tuple[int, int, int]:
    longest = _LONGEST if bucket.max_length is None else operator.index(bucket.max_length)
    row = seq_len if bucket.seq_len is None else operator.index(bucket.seq_len)
    batch_size = operator.index(bucket.batch_size)
    check_not_negative(max_length=longest, seq_len=row, batch_size=batch_size)
    return longest, row, batch_size
