"""Texts, byte strings and vocabulary files for tests of the tokenizer."""

import base64
import json
import os
from pathlib import Path

import tokenizers
from cwm_core.tokenizer import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    QWEN2_PATTERN,
)
from hypothesis import strategies as st

STDLIB = sorted(Path(os.__file__).parent.glob("*.py"))


# Text that meets every branch of the pattern, next to arbitrary text.
FRAGMENTS = st.one_of(
    st.sampled_from(" \n\r\t\u3000'aLſé\u0301日15Ⅷ.=😀\x00\U0010ffff"),
    st.sampled_from(["  ", "'s", "'LL", "'ſ", "12345", "<|frame_sep|>", "<|begin_of_text|>", 'def f(x): "..", ']),
)


TEXTS = st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=3)), max_size=30).map("".join))


def texts_of_every_code_point():
    """Return every code point alone and between other characters and itself; private planes in part."""
    for start in [*range(0, 0x33800, 256), 0xE0000, 0xE0100, 0xF0000, 0x10FF00]:
        characters = [chr(code) for code in range(start, start + 256) if not 0xD800 <= code < 0xE000]
        yield from characters
        yield "".join(f"{c} a{c}b {c}1{c}.{c}{c}\n{c}'s" for c in characters)


def by_library(tokenizer, folder):
    tokenizer.save(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # the text of a special token is ordinary text
    return library


PATTERNS = [LLAMA3_PATTERN, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN, QWEN2_PATTERN]


def ranks_file(tokens, ranks=None):
    ranks = range(len(tokens)) if ranks is None else ranks
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in zip(tokens, ranks, strict=True))


BYTES = [bytes([byte]) for byte in range(256)]


def json_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
