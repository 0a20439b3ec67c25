"""Tokenize with Llama-3's vocabulary, compared with tiktoken, tokenizers, fastokens, and gigatoken on the same input.

`cold` is the first pass of a newly loaded tokenizer, `warm` a later one. `bytes` in the extra info is the size of the
input as UTF-8, for figures in MB/s; with `--benchmark-disable` the inputs are small.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import texts
from cwm_core import Tokenizer
from llama3 import rank_path, tiktoken_encoding

IMPLEMENTATIONS = ["cwm_core", "gigatoken", "fastokens", "tiktoken", "tokenizers"]
# At 5 to 15 MB/s, one pass over the input is long enough to measure, and caches have little effect.
SLOW = {"tiktoken", "tokenizers"}

# Size of the thread pool of fastokens and tokenizers, which they start once.
os.environ["RAYON_NUM_THREADS"] = "2"


class Encoder(NamedTuple):
    """The functions of each library: one text to ids; many texts to ids, with a number of threads; ids to text."""

    encode: Callable[[str], Any]
    encode_batch: Callable[[list[str], int], Any]
    decode: Callable[[Any], str] | None = None


def one_by_one_or(encode: Callable[[str], Any], two_threads: Callable[[list[str]], Any]) -> Callable[..., Any]:
    return lambda texts, threads: [encode(text) for text in texts] if threads == 1 else two_threads(texts)


def make(implementation: str, folder: Path) -> Encoder:
    """Return a tokenizer that has encoded nothing yet."""
    if implementation == "cwm_core":
        ours = Tokenizer.load(rank_path())
        return Encoder(ours.encode, lambda texts, threads: ours.encode_batch(texts, threads=threads), ours.decode)
    if implementation == "tiktoken":
        pytest.importorskip("tiktoken")
        peer = tiktoken_encoding()
        batch = lambda texts, threads: peer.encode_ordinary_batch(texts, num_threads=threads)  # noqa: E731
        return Encoder(peer.encode_ordinary, batch, peer.decode)
    library = pytest.importorskip(implementation)
    path = folder / "tokenizer.json"
    if implementation == "gigatoken":
        giga = library.Tokenizer(path)
        return Encoder(giga.encode, lambda texts, threads: giga.encode_batch(texts, parallel=threads > 1))
    if implementation == "fastokens":
        fast = library.Tokenizer.from_file(str(path))
        return Encoder(fast.encode, one_by_one_or(fast.encode, fast.encode_batch))
    hugging = library.Tokenizer.from_file(str(path))
    hugging.encode_special_tokens = True
    encode = lambda text: hugging.encode(text, add_special_tokens=False).ids  # noqa: E731
    batch_ids = lambda texts: [e.ids for e in hugging.encode_batch_fast(texts, add_special_tokens=False)]  # noqa: E731
    decode = lambda ids: hugging.decode(ids, skip_special_tokens=False)  # noqa: E731
    return Encoder(encode, one_by_one_or(encode, batch_ids), decode)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return the vocabulary as `tokenizer.json`."""
    folder = tmp_path_factory.mktemp("llama")
    Tokenizer.load(rank_path()).save(folder)
    return folder


@pytest.fixture(scope="session")
def load(folder, quick) -> Callable[[str], Encoder]:
    """Return a function that loads a library's tokenizer: a new one, or always the same if nothing is measured."""
    load = functools.partial(make, folder=folder)
    return functools.cache(load) if quick else load


@pytest.fixture(scope="session")
def megabytes(quick):
    return 0.1 if quick else texts.MEGABYTES


@functools.cache
def recorded(megabytes):
    return texts.traces(megabytes)


@functools.cache
def input_of(name: str, megabytes: float) -> list[str]:
    if name == "trace text":
        return [trace.to_text() for trace in recorded(megabytes)]
    return {"Python source": texts.python_source, "natural language": texts.natural_language}[name](megabytes)


def describe(benchmark, group: str, implementation: str, texts: list[str]) -> None:
    benchmark.group = group
    benchmark.extra_info = {"implementation": implementation, "bytes": sum(len(text.encode()) for text in texts)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("passed", ["cold", "warm"])
@pytest.mark.parametrize("name", ["Python source", "natural language", "trace text"])
def test_encode(benchmark, load, megabytes, name, passed, threads, implementation):
    """Encode all texts in one call."""
    texts = input_of(name, megabytes)
    describe(benchmark, f"encode {name}, {passed}, {threads} thread(s)", implementation, texts)
    if passed == "cold":
        rounds = 1 if implementation in SLOW else 3
        setup = lambda: ((load(implementation).encode_batch,), {})  # noqa: E731
        benchmark.pedantic(lambda encode_batch: encode_batch(texts, threads), setup=setup, rounds=rounds)
    elif implementation in SLOW:
        benchmark.pedantic(load(implementation).encode_batch, (texts, threads), rounds=1)
    else:
        benchmark.pedantic(load(implementation).encode_batch, (texts, threads), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_encode_one_at_a_time(benchmark, load, implementation):
    """Encode 1,000 short texts in one call each, on one thread, warm."""
    short = texts.short_texts()
    describe(benchmark, "encode 1,000 short texts one at a time", implementation, short)
    encode = load(implementation).encode
    benchmark.pedantic(lambda: [encode(text) for text in short], rounds=20, warmup_rounds=2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", ["long", "short"])
def test_encode_trace(benchmark, load, megabytes, size, implementation):
    """Encode traces: ours from the recording, the others from its text, in one call each, on one thread, warm.

    The long traces are the workloads, with a thousand frames; most short traces have a dozen.
    """
    chosen = texts.recorded_workloads() if size == "long" else recorded(megabytes)
    written = [trace.to_text() for trace in chosen]
    describe(benchmark, f"encode {size} traces one at a time", implementation, written)
    if implementation == "cwm_core":
        ours = Tokenizer.load(rank_path())
        encode_all = lambda: [ours.encode_trace(trace) for trace in chosen]  # noqa: E731
    else:
        encode = load(implementation).encode
        encode_all = lambda: [encode(text) for text in written]  # noqa: E731
    slow = implementation in SLOW
    benchmark.pedantic(encode_all, rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_encode_one_long_word(benchmark, load, implementation):
    """Encode a piece that no pattern cuts, for which merging must not take quadratic time."""
    word = "abcdefghij" * 10_000
    describe(benchmark, "encode one word of 100 kB", implementation, [word])
    benchmark.pedantic(load(implementation).encode, (word,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("implementation", ["cwm_core", "tiktoken", "tokenizers"])
def test_decode(benchmark, load, megabytes, implementation):
    """Decode the ids that each library's encode returned."""
    texts = input_of("Python source", megabytes / 10)
    describe(benchmark, "decode Python source", implementation, texts)
    encoder = load(implementation)
    batch = [encoder.encode(text) for text in texts]
    benchmark.pedantic(lambda: [encoder.decode(ids) for ids in batch], rounds=3, warmup_rounds=1)
