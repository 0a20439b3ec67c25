"""Train a vocabulary, compared with Hugging Face's tokenizers on the same input, with the same merges.

`bytes` in the extra info is the size of the input as UTF-8, for figures in MB/s.
"""

import os
from pathlib import Path

import pytest
from cwm_core import Tokenizer
from cwm_core.tokenizer import LLAMA3_PATTERN

THREADS = 2
LIBRARY = Path(os.__file__).parent


def sources(pattern):
    texts = []
    for path in sorted(LIBRARY.glob(pattern)):
        if "site-packages" not in path.parts:
            try:
                texts.append(path.read_text("utf-8"))
            except UnicodeDecodeError:  # the tests of the standard library contain files in other encodings
                continue
    return texts


@pytest.fixture(scope="module", params=["stdlib", "stdlib with its packages and tests"])
def texts(request, quick):
    found = sources("*.py" if request.param == "stdlib" else "**/*.py")
    return found[::20] if quick else found, request.param


def train_by_library(tokenizers, texts, vocab_size):
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    return library


@pytest.mark.parametrize("implementation", ["cwm_core", "tokenizers"])
@pytest.mark.parametrize("vocab_size", [4096, 32_768])
def test_train(benchmark, texts, vocab_size, implementation):
    """Train on texts in memory with two threads."""
    texts, name = texts
    benchmark.group = f"train {vocab_size} tokens on {name}"
    benchmark.extra_info = {"implementation": implementation, "bytes": sum(len(text.encode()) for text in texts)}
    if implementation == "cwm_core":
        benchmark.pedantic(Tokenizer.train, (texts, vocab_size), {"threads": THREADS}, rounds=3)
    else:
        os.environ["RAYON_NUM_THREADS"] = str(THREADS)
        tokenizers = pytest.importorskip("tokenizers")
        benchmark.pedantic(train_by_library, (tokenizers, texts, vocab_size), rounds=2)
