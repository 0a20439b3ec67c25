"""Token shards on disk, and the loader that packs them into training batches.

with cwm.ShardWriter("shards/traces", tok) as writer:
    writer.add(tok.encode_trace(trace), source="functions")
loader = cwm.PackedLoader({"traces": ("shards/traces", 0.3), "code": ("shards/code", 0.7)}, seq_len=8192)
for batch in loader:
    ...
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native

if TYPE_CHECKING:
    import torch

STATE_VERSION = 1

Path = str | os.PathLike[str]


class HasVocabSize(Protocol):
    """What a shard needs to know of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""


class Document(NamedTuple):
    """One document of a shard.

    ``tokens``: int32 [n]. ``loss_mask``: bool [n], True where the token is to be learned. ``source``: the tag it was
    added with.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    source: str


class ShardWriter:
    """Writes documents into the shard files of a folder: ``00000.cwmtok``, ``00001.cwmtok``, ...

    A token takes 2 bytes if the vocabulary has at most 65,536 ids, else 4. A shard appears under its name when it is
    complete and on disk. Leaving the ``with`` block publishes the last one; leaving it by an exception, or never
    closing the writer, discards the shard under way and keeps those published.
    """

    def __init__(self, folder: Path, vocab_size: int | HasVocabSize, *, shard_tokens: int = 100_000_000) -> None:
        """Open ``folder`` for writing, created if need be.

        ``vocab_size``: the number of ids, or a tokenizer. ``shard_tokens``: a shard is closed before it would grow
        past this; only a single longer document does.

        Raises FileExistsError if the folder already holds shards, OSError if it cannot be written, ValueError for an
        impossible size.
        """
        size = vocab_size if isinstance(vocab_size, int) else operator.index(vocab_size.vocab_size)
        _check_not_negative(vocab_size=size, shard_tokens=shard_tokens)
        self._native = _native.ShardWriter(folder, size, shard_tokens)

    def add(self, ids: ArrayLike, loss_mask: ArrayLike | None = None, source: str = "") -> None:
        """Add one document.

        ``ids``: int32, uint16, uint32 or int64 [n], n at least 1. ``loss_mask``: bool [n], True where the token is to
        be learned, that is, predicted from those before it; without it every token is. ``source``: a tag kept with
        the document.

        Raises ValueError for an id outside the vocabulary, no ids, or a mask of another length, and TypeError for
        another dtype; such a document changes nothing. After an OSError the writer is closed.
        """
        mask = None if loss_mask is None else np.asarray(loss_mask)
        if mask is not None and mask.dtype != np.bool_:
            raise TypeError(f"loss_mask must be bool, not {mask.dtype}")
        if mask is not None and mask.ndim != 1:
            raise ValueError(f"loss_mask must have one dimension, not {mask.ndim}")
        self._native.add(np.asarray(ids), mask, source)

    def close(self) -> None:
        """Publish the shard under way and take no more documents. The second call does nothing."""
        self._native.close()

    def __enter__(self) -> ShardWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the writer, or after an exception discard the shard under way."""
        if kind is None:
            self._native.close()
        else:
            self._native.discard()


class Shards:
    """The documents of a folder of shards, memory-mapped, in the order they were written.

    Opening checks the index of every shard, reading checks the tokens read: a damaged shard is a ValueError that names
    the file, never a wrong token. The files must not change while they are open.
    """

    def __init__(self, folder: Path) -> None:
        """Open the shards of ``folder``.

        Raises OSError if they cannot be read and ValueError if there are none, one is missing, damaged, truncated or
        of another version, or their vocabularies differ.
        """
        self._native = _native.Shards(folder)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._native)

    def __getitem__(self, index: int) -> Document:
        """Read a document; a negative index counts from the end. Raises IndexError, or ValueError if it is damaged."""
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return Document(*self._native.document(at % len(self)))

    def __iter__(self) -> Iterator[Document]:
        """Read the documents in order."""
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self._native.tokens

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary; every id is below it."""
        return self._native.vocab_size

    @property
    def sources(self) -> list[str]:
        """The source tags, each once, in order of first appearance."""
        return self._native.sources

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of every document: uint32 [documents]."""
        return self._native.lengths()[0]

    @property
    def source_ids(self) -> NDArray[np.uint32]:
        """Place in ``sources`` of every document's tag: uint32 [documents]."""
        return self._native.lengths()[1]

    def verify(self) -> None:
        """Check every byte of every shard. Raises ValueError that names the first damaged file."""
        self._native.verify()


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a step, in arrays that own their memory.

    A row holds whole documents one after another, then padding. A segment is what attends to itself alone: a document
    (or a piece of one longer than a row), or the padding at the end of a row.
    """

    tokens: NDArray[np.int32]
    """int32 [rows, seq_len]; 0 in padding."""
    targets: NDArray[np.int32]
    """int32 [rows, seq_len]: the next token of the document, also across a cut; 0 where there is none."""
    loss_mask: NDArray[np.bool_]
    """bool [rows, seq_len]: True where the target exists and its own mask in the document is True."""
    position_ids: NDArray[np.int32]
    """int32 [rows, seq_len]: place within the segment, from 0."""
    cu_seqlens: NDArray[np.int32]
    """int32 [segments + 1]: where the segments begin in the flattened batch, and ``rows * seq_len``."""
    max_seqlen: int
    """Length of the longest segment."""
    source_ids: NDArray[np.int32]
    """int32 [segments]: place of the segment's source in ``PackedLoader.sources``, -1 for padding."""
    padding: int
    """Positions that hold no token."""

    def to_torch(self, device: str | torch.device = "cpu", pin: bool = False) -> Batch:
        """Return the same batch with tensors in place of arrays; ``max_seqlen`` and ``padding`` stay int.

        On the CPU the tensors share the arrays' memory. ``pin`` copies to page-locked memory first, so that the copy to
        a GPU does not block.
        """
        import torch

        def convert(value: NDArray[Any] | int) -> torch.Tensor | int:
            if isinstance(value, int):
                return value
            tensor = torch.from_numpy(value)
            if pin:
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=pin)

        return Batch(**{field.name: convert(getattr(self, field.name)) for field in fields(self)})


class PackedLoader:
    """Endless or epoch-wise packed batches, the same for any number of ranks, resumable at any step.

    There is one global order of rows. A step takes ``batch_size`` of them, and of these rank r takes the r-th of
    ``world_size`` equal slices: the ranks' batches, one below the other, are the batch of a single rank. It depends on
    the data, ``seq_len``, ``batch_size``, ``seed``, ``epochs`` and ``lookahead`` alone, so a run may resume on another
    number of ranks.

    Documents come in an order shuffled anew each epoch and are packed into rows of ``seq_len``: the oldest of
    ``lookahead`` waiting documents opens a row, then the longest that fits is added until none does. A document is cut
    only if it is longer than ``seq_len``, into pieces of ``seq_len`` and a rest. Every token appears exactly once an
    epoch. Sources are drawn from in turn so that their parts of the tokens keep to their shares; one that has made its
    ``epochs`` drops out and the others go on. The last batch may end in rows that are all padding.
    """

    def __init__(
        self,
        sources: Path | Mapping[str, tuple[Path, float]],
        seq_len: int,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        lookahead: int = 128,
    ) -> None:
        """Open the shards and stand before the first batch.

        ``sources``: a folder of shards, or by name a folder and its share of the tokens (any positive weight).
        ``batch_size``: rows a step, of all ranks together. ``epochs``: passes over every source; None goes on forever.
        ``lookahead``: waiting documents, 1 to 256; more pack better.

        Raises OSError and ValueError as ``Shards`` does, and ValueError for a share that is not positive, no sources,
        sources of different vocabularies, or a ``world_size`` that does not divide ``batch_size``.
        """
        _check_not_negative(
            seq_len=seq_len, batch_size=batch_size, rank=rank, world_size=world_size, seed=seed, lookahead=lookahead
        )
        if epochs is not None:
            _check_not_negative(epochs=epochs)
        if not isinstance(sources, Mapping):
            sources = {"data": (sources, 1.0)}
        entries = [(name, folder, float(share)) for name, (folder, share) in sources.items()]
        self._native = _native.PackedLoader(entries, seq_len, batch_size, rank, world_size, seed, epochs, lookahead)
        self._sources = list(sources)
        # All that the order of the rows depends on.
        self._identity = {
            "version": STATE_VERSION,
            "data": f"{self._native.fingerprint():016x}",
            "seq_len": seq_len,
            "batch_size": batch_size,
            "seed": seed,
            "epochs": epochs,
            "lookahead": lookahead,
        }

    @property
    def sources(self) -> list[str]:
        """Names of the sources; ``Batch.source_ids`` counts into them."""
        return list(self._sources)

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary; every token is below it."""
        return self._native.vocab_size

    def __iter__(self) -> PackedLoader:
        """Return the loader itself: iterating again goes on where it stands."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, made without the GIL. Raises ValueError if a shard is damaged; the loader stays."""
        parts = self._native.next_batch()
        if parts is None:
            raise StopIteration
        return Batch(*parts)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, after the last batch returned: a few KB of numbers, fit for JSON.

        It is the same on every rank, so saving that of one is enough.
        """
        step, cursors, waiting = self._native.state()
        return {**self._identity, "step": step, "cursors": cursors, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where ``state`` was taken, at once, on any rank of any world size.

        Raises ValueError, changing nothing, if the state is of other data or another configuration, or impossible.
        """
        for key, mine in self._identity.items():
            if key not in state or state[key] != mine:
                raise ValueError(f"loader state has {key} = {state.get(key)!r}, this loader {mine!r}")
        try:
            step, cursors, waiting = state["step"], state["cursors"], state["waiting"]
            self._native.restore(step, cursors, waiting)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"loader state is malformed: {error!r}") from error

    def stats(self) -> dict[str, Any]:
        """Return totals over all ranks since step 0.

        ``steps``; ``tokens``; ``documents`` given out whole, once an epoch; ``efficiency``, the part of all positions
        that hold a token; ``source_tokens``, tokens by source name.
        """
        steps, tokens, documents, efficiency, source_tokens = self._native.stats()
        return {
            "steps": steps,
            "tokens": tokens,
            "documents": documents,
            "efficiency": efficiency,
            "source_tokens": dict(zip(self._sources, source_tokens, strict=True)),
        }


def describe(folder: Path) -> dict[str, Any]:
    """Return what a folder of shards holds; raises as ``Shards`` does.

    ``tokens``, ``documents``, ``vocab_size``; ``mean_length``, ``median_length``, ``max_length`` in tokens a document;
    ``sources``: by tag its ``tokens``, ``documents`` and ``share`` of all tokens.
    """
    shards = Shards(folder)
    lengths, source_ids = shards._native.lengths()
    tokens = np.bincount(source_ids, weights=lengths, minlength=len(shards.sources))
    documents = np.bincount(source_ids, minlength=len(shards.sources))
    return {
        "tokens": shards.tokens,
        "documents": len(shards),
        "vocab_size": shards.vocab_size,
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "max_length": int(lengths.max()),
        "sources": {
            name: {"tokens": int(count), "documents": int(number), "share": float(count / shards.tokens)}
            for name, count, number in zip(shards.sources, tokens, documents, strict=True)
        },
    }


def _check_not_negative(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative: {value}")
