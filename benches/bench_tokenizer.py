"""Tokenizing beside tiktoken and Hugging Face's tokenizers, with Llama-3's vocabulary, on the same input in one run.

`bytes` in the extra info is the size of the input as UTF-8, for figures in MB/s.
"""

import importlib.util
import os
from pathlib import Path

import pytest
from cwm_core import Tokenizer
from llama3 import rank_path, tiktoken_encoding

IMPLEMENTATIONS = ["cwm_core", "tiktoken", "tokenizers"]
STDLIB = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))]


def trace_like(steps):
    """The text parts of a trace of nested loops: JSON states and source lines."""
    lines = ["    for j in range(i):\n", "        total += grid[i][j] * weights[j]\n", "        seen.append((i, j))\n"]
    parts = []
    for step in range(steps):
        i, j = divmod(step, 17)
        seen = f"[({i}, {j}), ({j}, {i})]"
        parts.append(f'{{"grid": "..", "i": "{i}", "j": "{j}", "total": "{step * 37 % 1009}", "seen": "{seen}"}}')
        parts.append(lines[step % 3])
    return parts


INPUTS = {"stdlib": STDLIB, "trace": trace_like(50_000)}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """For each implementation: one text to ids, many texts to lists of ids with two threads, ids to text."""
    ours = Tokenizer.load(rank_path())
    made = {"cwm_core": (ours.encode, lambda texts: ours.encode_batch(texts, threads=2), ours.decode)}
    if importlib.util.find_spec("tiktoken"):
        peer = tiktoken_encoding()
        batch = lambda texts: peer.encode_ordinary_batch(texts, num_threads=2)  # noqa: E731
        made["tiktoken"] = (peer.encode_ordinary, batch, peer.decode)
    if importlib.util.find_spec("tokenizers"):
        import tokenizers

        os.environ["RAYON_NUM_THREADS"] = "2"
        folder = tmp_path_factory.mktemp("llama")
        ours.save(folder)
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.encode_special_tokens = True
        made["tokenizers"] = (
            lambda text: library.encode(text, add_special_tokens=False).ids,
            lambda texts: [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)],
            lambda ids: library.decode(ids, skip_special_tokens=False),
        )
    return made


def prepare(benchmark, encoders, implementation, group, texts):
    if implementation not in encoders:
        pytest.skip(f"{implementation} is not installed")
    benchmark.group = group
    benchmark.extra_info = {"implementation": implementation, "bytes": sum(len(text.encode()) for text in texts)}
    return encoders[implementation]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", INPUTS)
def test_encode(benchmark, encoders, name, implementation):
    """One call a text, one thread: files, or the short parts that a trace consists of."""
    texts = INPUTS[name][:20_000]
    encode, _, _ = prepare(benchmark, encoders, implementation, f"encode {name}", texts)
    benchmark.pedantic(lambda: [encode(text) for text in texts], rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", INPUTS)
def test_encode_batch(benchmark, encoders, name, implementation):
    """One call for all texts, two threads."""
    texts = INPUTS[name]
    _, encode_batch, _ = prepare(benchmark, encoders, implementation, f"encode_batch {name}", texts)
    benchmark.pedantic(encode_batch, (texts,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_encode_one_long_word(benchmark, encoders, implementation):
    """A piece that no pattern cuts, where merging must not be quadratic."""
    texts = ["abcdefghij" * 10_000]
    encode, _, _ = prepare(benchmark, encoders, implementation, "encode one word of 100 kB", texts)
    benchmark.pedantic(encode, texts, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decode(benchmark, encoders, implementation):
    """Ids as each library's encode gives them, back to text."""
    texts = STDLIB
    encode, _, decode = prepare(benchmark, encoders, implementation, "decode stdlib", texts)
    batch = [encode(text) for text in texts]
    benchmark.pedantic(lambda: [decode(ids) for ids in batch], rounds=3, warmup_rounds=1)
