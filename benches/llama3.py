"""Llama-3's vocabulary with the special tokens of the Code World Model, for tests and benchmarks."""

import base64
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from cwm_core.tokenizer import CWM_SPECIAL_TOKENS, LLAMA3_PATTERN

SPECIAL = {name: 128_000 + offset for offset, name in enumerate(CWM_SPECIAL_TOKENS)}


def rank_path():
    """Return the rank file in the package llama-models, whose path depends on the release."""
    try:
        shipped = [file for file in files("llama-models") or () if file.match("llama3/tokenizer.model")]
    except PackageNotFoundError:
        shipped = []
    if not shipped:
        pytest.skip("Llama-3's vocabulary is not here: the package llama-models is not installed")
    return Path(shipped[0].locate())


def tiktoken_encoding():
    """Return tiktoken's encoding with the same vocabulary, which tiktoken reads itself."""
    import tiktoken

    lines = (line.split() for line in rank_path().read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=SPECIAL)
