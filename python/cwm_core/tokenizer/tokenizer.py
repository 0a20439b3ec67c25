"""Byte-level BPE tokenizer: encode text, chats, and traces to token ids, and decode them.

Token ids are one-dimensional `numpy.int32` arrays. The tokenizer reads vocabularies of tiktoken (rank files) and of
Hugging Face (`tokenizer.json`), and returns the same ids as those libraries.
"""

import codecs
import json
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native
from cwm_core._native import DamagedFileError
from cwm_core.support.arguments import reject_single_string, reject_unordered
from cwm_core.support.files import write_file, write_files
from cwm_core.support.text import well_formed
from cwm_core.tokenizer import chat
from cwm_core.tokenizer.special_tokens import (
    BEGIN_OF_TEXT,
    CHAT_TOKENS,
    CWM_SPECIAL_TOKENS,
    END_OF_TEXT,
    PAD,
    STOP_TOKENS,
)

LLAMA3_PATTERN: str = _native.LLAMA3_PATTERN
"""The split pattern of Llama-3 and of the Code World Model."""

GPT2_PATTERN: str = _native.GPT2_PATTERN
"""The split pattern of GPT-2. It keeps a run of digits whole and separates a newline from the line that it ends."""

CL100K_PATTERN: str = _native.CL100K_PATTERN
"""The split pattern of tiktoken's `cl100k_base`."""

O200K_PATTERN: str = _native.O200K_PATTERN
"""The split pattern of tiktoken's `o200k_base`. It cuts words where lowercase meets uppercase."""

QWEN2_PATTERN: str = _native.QWEN2_PATTERN
"""The split pattern of Qwen2. It splits numbers into single digits."""

PATTERNS: dict[str, str] = {
    "llama3": LLAMA3_PATTERN,
    "gpt2": GPT2_PATTERN,
    "cl100k": CL100K_PATTERN,
    "o200k": O200K_PATTERN,
    "qwen2": QWEN2_PATTERN,
}
"""The named split patterns, by name."""

# The roles under which `transformers` knows special tokens.
_TOKEN_ROLES = {"bos_token": BEGIN_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}

# Training reads a file in chunks of this size.
_FILE_BYTES = 1 << 20

SpecialTokens = Sequence[str] | Mapping[str, int]
"""Special tokens: names in order, or ids by name."""

TrainingProgress = Callable[[Literal["count", "merge"], int, int | None], object]
"""A progress callback of `Tokenizer.train`, which documents its arguments."""


class ChatTokens(NamedTuple):
    """The tokens of a chat, from `Tokenizer.encode_chat`."""

    ids: NDArray[np.int32]
    """Token ids, int32 of shape [n]."""
    loss_mask: NDArray[np.bool_]
    """True where the model is trained to generate the token, bool of shape [n]."""


class TraceTokens(NamedTuple):
    """The tokens of a trace and the positions of its parts, from `Tokenizer.trace_tokens`."""

    ids: NDArray[np.int32]
    """Token ids, int32 of shape [n]."""
    spans: NDArray[np.int32]
    """Start and end (exclusive) of the state, the action, and the value of each frame, int32 of shape [frames, 3, 2].
    Both are -1 for a part that the frame does not have."""
    context_length: int
    """Number of tokens before the first frame."""


class Tokenizer:
    """A vocabulary with its split pattern and special tokens.

    Create one with `Tokenizer.load` or `Tokenizer.train`. A tokenizer is immutable and can be pickled.

    All methods are thread-safe. They release the GIL for texts of more than a few kilobytes. The tokenizer caches the
    pieces that it encodes, in up to about 30 MB for each concurrent call. After a fork, the child can use the inherited
    tokenizer.

    A split pattern has the meaning that the vocabulary's own library gives it: tiktoken for a rank file, Hugging Face's
    `tokenizers` for `tokenizer.json` and for a trained vocabulary. The five `PATTERNS` mean the same in both libraries
    and have fast implementations. Any other pattern runs on the library's regex engine, about ten times slower.
    """

    def __init__(self, native: _native.Tokenizer) -> None:
        """Wrap a native tokenizer. Use `Tokenizer.load` or `Tokenizer.train` instead."""
        self._native = native
        self._fingerprint: str | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: SpecialTokens | None = None,
    ) -> "Tokenizer":
        """Load a tiktoken rank file, a Hugging Face `tokenizer.json`, or a folder that contains a `tokenizer.json`.

        `tokenizer.json` must describe byte-level BPE: the pre-tokenizer `ByteLevel`, alone or after a `Split` by a
        regular expression, and added tokens that are all special. `post_processor`, `truncation`, and `padding` are
        ignored because `encode` adds no tokens.

        Args:
            path: The file or folder.
            pattern: Split pattern of a rank file: a regular expression as tiktoken understands it, or a name that
                `resolve_pattern` accepts. Defaults to `LLAMA3_PATTERN`.
            special_tokens: Special tokens of a rank file: names in order, whose ids follow the ranks, or ids by name.
                Defaults to `CWM_SPECIAL_TOKENS`.

        Raises:
            DamagedFileError: The file is not a valid vocabulary. The message says what is wrong and where.
            ValueError: The file uses a feature that is not supported, or an argument is invalid.
            OSError: The file cannot be read.

        Warns:
            UserWarning: An added token has a different id than the file states, because `tokenizers` assigns the ids
                of added tokens itself.
        """
        path = Path(path)
        try:
            return cls._parse(
                (path / "tokenizer.json" if path.is_dir() else path).read_bytes(), path, pattern, special_tokens
            )
        except DamagedFileError as error:
            raise DamagedFileError(f"{path}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _parse(cls, data: bytes, path: Path, pattern: str | None, special_tokens: SpecialTokens | None) -> "Tokenizer":
        if not data.lstrip().startswith(b"{"):
            special = CWM_SPECIAL_TOKENS if special_tokens is None else special_tokens
            ranked = _native.Tokenizer.from_ranks(
                data, LLAMA3_PATTERN if pattern is None else resolve_pattern(pattern), _listed(special)
            )
            return cls(ranked)
        if pattern is not None or special_tokens is not None:
            raise ValueError("pattern and special_tokens apply to rank files only; tokenizer.json contains both")
        native, renumbered = _native.Tokenizer.from_json(data)
        if renumbered:
            more = f"; {len(renumbered) - 1} more added tokens differ too" if len(renumbered) > 1 else ""
            warnings.warn(f"{path}: {renumbered[0]}{more}", stacklevel=3)
        return cls(native)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = LLAMA3_PATTERN,
        special_tokens: SpecialTokens = CWM_SPECIAL_TOKENS,
        threads: int | None = None,
        progress: TrainingProgress | None = None,
    ) -> "Tokenizer":
        """Train a vocabulary on texts.

        Training merges the most frequent pair first, and the pair of lower ids among equally frequent ones. The merges
        equal those of Hugging Face's `BpeTrainer` with the byte-level alphabet. The result depends on the pieces that
        the texts are split into, not on the order of the texts. Ctrl-C interrupts training.

        Args:
            texts: Strings, each split separately. An open text file yields its lines. Training does not recognize
                special tokens, so leave them out.
            vocab_size: Number of ordinary tokens: the 256 bytes and the merges. The vocabulary is smaller if no pairs
                are left to merge.
            pattern: Split pattern: a regular expression as `tokenizers` understands it, or a name that
                `resolve_pattern` accepts.
            special_tokens: Names in order, whose ids follow the ordinary tokens, or ids by name.
            threads: Number of threads that count pieces. Defaults to the number of processors.
            progress: Called repeatedly, first with `("count", bytes, None)`, the UTF-8 bytes counted so far, then with
                `("merge", merges, total)`. An exception from it stops training.

        Raises:
            ValueError: The size, the pattern, or a special token is invalid.
            TypeError: `texts` or `special_tokens` is a single string, an item is not a string, or `special_tokens` is a
                set, whose order differs from run to run.
        """
        texts, special = iter(reject_single_string(texts, "texts")), _listed(special_tokens)
        pattern = resolve_pattern(pattern)
        vocab_size = operator.index(vocab_size)
        if not 0 <= vocab_size < 2**32:  # PyO3 raises OverflowError; the native module checks the rest
            raise ValueError(f"vocab_size: expected 256 or more tokens, at most 4194303, got {vocab_size}")
        return cls(_native.Tokenizer.train(texts, vocab_size, pattern, special, _count(threads), progress))

    @classmethod
    def train_files(
        cls,
        paths: Iterable[str | os.PathLike[str]],
        vocab_size: int,
        *,
        pattern: str = LLAMA3_PATTERN,
        special_tokens: SpecialTokens = CWM_SPECIAL_TOKENS,
        threads: int | None = None,
        progress: TrainingProgress | None = None,
    ) -> "Tokenizer":
        """Train a vocabulary on UTF-8 files of any size, as `train` does on texts.

        Each file is one text, with its line ends unchanged. Training reads a few megabytes at a time: it cuts files of
        a megabyte or more at the start of a line that is neither blank nor indented, which does not change the result
        for `LLAMA3_PATTERN`. A chunk without such a line is cut anywhere.

        Args:
            paths: The files.
            vocab_size: As in `train`.
            pattern: As in `train`.
            special_tokens: As in `train`.
            threads: As in `train`.
            progress: As in `train`.

        Raises:
            ValueError: A file is not UTF-8, with its name and the offset of the first invalid byte; or an argument is
                invalid, as in `train`.
            TypeError: `paths` or `special_tokens` is a single string, or `special_tokens` is a set.
            OSError: A file cannot be read.
        """
        texts = (text for path in reject_single_string(paths, "paths") for text in _texts_of_file(path))
        return cls.train(
            texts, vocab_size, pattern=pattern, special_tokens=special_tokens, threads=threads, progress=progress
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `load`, `tokenizers`, and `transformers` read with equal ids.

        The folder holds `tokenizer.json` (the vocabulary), `tokenizer_config.json` (names of the begin, end, and
        padding tokens), and, if the vocabulary has the tokens of a chat, `chat_template.jinja` (the chat format).
        `docs/guides/tokenize.md` shows how to call the other libraries to get equal ids.

        All files are complete on disk before any of them replaces an existing one, so a failed write changes nothing.
        If the vocabulary cannot express chats, `save` deletes an existing `chat_template.jinja`. The split pattern of a
        rank file is translated to a pattern that means the same in `tokenizers`.

        A rank file assigns one rank to all pairs that form the same token, but `tokenizer.json` must order them. The
        order matters only for ranks that no BPE training produces.

        Args:
            folder: The folder to write. Created if it does not exist.

        Raises:
            ValueError: A special token has the name of an ordinary token, ordinary text would produce a special token,
                or the format cannot express a part of the pattern.
            OSError: A file cannot be written.
        """
        folder = Path(folder)
        special = self.special_tokens
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{role: name for role, name in _TOKEN_ROLES.items() if name in special},
        }
        files: dict[str | os.PathLike[str], bytes | str] = {
            folder / "tokenizer.json": self._native.to_json(),
            folder / "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        }
        template = folder / "chat_template.jinja"
        has_chats = special.keys() >= set(CHAT_TOKENS)
        if has_chats:
            files[template] = chat.CHAT_TEMPLATE
        folder.mkdir(parents=True, exist_ok=True)
        write_files(files)
        if not has_chats:
            template.unlink(missing_ok=True)

    def save_ranks(self, path: str | os.PathLike[str]) -> None:
        """Write the ordinary tokens as a tiktoken rank file, which has no pattern and no special tokens.

        Args:
            path: The file to write or replace.

        Raises:
            ValueError: A rank file cannot express this vocabulary: its merges are not in the order of the ids, no merge
                leads to some token, or a token is longer than 1,024 bytes.
            OSError: The file cannot be written. An existing file is unchanged.
        """
        write_file(path, self._native.to_ranks())

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, special tokens included."""
        return self._native.vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer, 16 hexadecimal digits. Shards, checkpoints, and models store it.

        The hash covers tokens, merges, split pattern, and special tokens, not the format of the vocabulary file.
        """
        if self._fingerprint is None:
            self._fingerprint = f"{self._native.fingerprint():016x}"
        return self._fingerprint

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name, in the order of the ids. Each access returns a new dict."""
        return self._native.special_tokens

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids of the special tokens in the vocabulary that end a document or a message, where generation stops."""
        special = self.special_tokens
        return tuple(special[name] for name in STOP_TOKENS if name in special)

    @property
    def bos_token(self) -> int | None:
        """Id of the special token that begins a document. None if the vocabulary has no such token."""
        return self.special_tokens.get(BEGIN_OF_TEXT)

    @property
    def pattern(self) -> str:
        """Regular expression whose matches are encoded separately."""
        return self._native.pattern

    def encode(
        self, text: str, *, allowed_special: AbstractSet[str] | Literal["all"] = frozenset()
    ) -> NDArray[np.int32]:
        """Return the token ids of a text, int32 of shape [n].

        Args:
            text: Any string. Surrogate pairs are encoded as one character, lone surrogates as U+FFFD, as in tiktoken.
            allowed_special: Names that become special tokens where they occur in `text`, or `"all"`. By default, the
                name of a special token in `text` is ordinary text, so data cannot forge special tokens.

        Raises:
            ValueError: A name is not a special token, or the pattern needs too many steps on the text.
            TypeError: `allowed_special` is a string other than `"all"`.
        """
        if not allowed_special:
            return self._native.encode(text)
        if isinstance(allowed_special, str) and allowed_special == "all":
            return self._native.encode_with_special(text, None)
        return self._native.encode_with_special(
            text, [well_formed(name) for name in reject_single_string(allowed_special, "allowed_special")]
        )

    def encode_bytes(self, data: bytes) -> NDArray[np.int32]:
        """Return the token ids of bytes that may not be UTF-8, int32 of shape [n], as tiktoken's `_encode_bytes`.

        Valid UTF-8 is encoded as text. Otherwise, the text before the first invalid byte is split into pieces, and the
        last piece and all bytes after it are encoded as one piece.
        """
        return self._native.encode_bytes(data)

    def encode_batch(self, texts: Iterable[str], *, threads: int | None = None) -> list[NDArray[np.int32]]:
        """Return the token ids of each text, as `encode` does, using `threads` threads (default: one per processor).

        Raises:
            TypeError: `texts` is a single string or a set, or an item is not a string.
            ValueError: The pattern needs too many steps on a text.
        """
        return self._native.encode_batch(list(reject_unordered(texts, "texts")), _count(threads))

    def encode_files(
        self, paths: Iterable[str | os.PathLike[str]], *, threads: int | None = None
    ) -> list[NDArray[np.int32]]:
        """Return the token ids of each UTF-8 file, as `encode` does for its text with line ends unchanged.

        Only a few files are in memory at a time. Ctrl-C interrupts the call.

        Args:
            paths: The files.
            threads: Number of threads. Defaults to the number of processors.

        Raises:
            ValueError: A file is not UTF-8, with its name and the offset of the first invalid byte; or a file is longer
                than 4 GiB.
            TypeError: `paths` is a single string or a set.
            OSError: A file cannot be read.
        """
        return self._native.encode_files(list(reject_unordered(paths, "paths")), _count(threads))

    def count(self, text: str) -> int:
        """Return the number of tokens of a text: `len(encode(text))` without creating the array."""
        return self._native.count(text)

    def decode(self, ids: ArrayLike, errors: str = "replace") -> str:
        """Return the text of token ids. Special tokens appear as their names.

        Args:
            ids: Integers of shape [n].
            errors: How to handle bytes that are not UTF-8, as in `bytes.decode`.

        Raises:
            ValueError: An id is not in the vocabulary.
            UnicodeDecodeError: With `errors="strict"`, the bytes are not UTF-8.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Return the bytes of token ids (integers of shape [n]). Inverse of `encode_bytes`.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self._native.decode_bytes(self._checked(ids))

    def token_to_bytes(self, id: int) -> bytes:
        """Return the bytes of a token; for a special token, its name.

        Raises:
            ValueError: The id is not in the vocabulary.
        """
        return self._native.token_to_bytes(id)

    def stream_decoder(self) -> "StreamDecoder":
        """Return a decoder for ids that arrive one at a time, such as those that a model generates."""
        return StreamDecoder(self)

    def encode_trace(self, trace: _native.Trace) -> NDArray[np.int32]:
        """Return the token ids of a complete trace, int32 of shape [n], in the token form of the trace format.

        `docs/concepts/trace-format.md` describes the format. Each part (context, state, source line, value) is encoded
        separately, and special tokens between the parts are inserted by id. The name of a special token that occurs in
        the program stays ordinary text.

        Raises:
            ValueError: The vocabulary lacks a special token of the trace format.
        """
        return self._native.encode_trace(trace)

    def trace_tokens(self, trace: _native.Trace) -> TraceTokens:
        """Return the token ids of a trace and the positions of the parts of each frame.

        Raises:
            ValueError: The vocabulary lacks a special token of the trace format.
        """
        return TraceTokens(*self._native.trace_tokens(trace))

    def parse_trace(self, ids: ArrayLike) -> _native.ParsedTrace:
        """Parse token ids (integers of shape [n]) as a trace, or as frames without a context.

        The parser is strict and never raises for the content: it returns the longest well-formed prefix of frames and,
        if ids are left over, the position of the first malformed frame and the reason. Ids outside the vocabulary are
        malformed too.
        """
        return self._native.parse_trace(self._checked(ids, unknown_as=-1))

    def encode_chat(
        self,
        messages: Iterable[Mapping[str, str]],
        *,
        reasoning: bool = False,
        add_generation_prompt: bool = False,
    ) -> ChatTokens:
        r"""Return the token ids and the loss mask of a chat in the format of the Code World Model.

        A chat begins with `<|begin_of_text|>`. Each message is
        `<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>`. Role and content are encoded separately, and
        content is stripped unless it is the result of a tool. In the content of an assistant's message,
        `<|reasoning_thinking_start|>` and `<|reasoning_thinking_end|>` become special tokens. All other text is
        ordinary.

        Args:
            messages: Mappings with the keys `role` (`system`, `user`, `assistant`, or `tool: NAME`) and `content`, both
                strings. A message with the role `tool` and the key `name` has the role `tool: NAME`. If an assistant's
                message has `reasoning_content`, as servers return it, the stripped reasoning precedes the content,
                between the lines `<think>` and `</think>`.
            reasoning: Whether to begin the generation prompt with `<think>\n` and to insert
                `cwm_core.tokenizer.chat.REASONING_SYSTEM_PROMPT` before a chat that does not begin with a system
                message. A system message of your own should ask for reasoning itself.
            add_generation_prompt: Whether to end with a prompt for the model: the header of an assistant's message. If
                the last message is an assistant's, the chat ends with that message instead, not stripped and without
                `<|eot_id|>`, so that the model continues it.

        Returns:
            The ids and the mask. The mask is true for the tokens that the model generates: the contents of the
            assistant's messages and the `<|eot_id|>` of each. It is false for a message that the model is to continue.

        Raises:
            ValueError: A role is unknown, a message lacks a key or has an unknown one, a value is not a string, or the
                vocabulary lacks a special token of the chat format.
            TypeError: A message is not a mapping.
        """
        ids, loss_mask = chat.encode_chat(
            self, messages, reasoning=reasoning, add_generation_prompt=add_generation_prompt
        )
        return ChatTokens(ids, loss_mask)

    def __reduce__(self) -> tuple[Callable[..., "Tokenizer"], tuple[Any, ...]]:
        """Pickle the vocabulary as a rank file if that expresses all of it, else as the larger `tokenizer.json`."""
        if self._native.is_ranked:
            return _from_ranks, (self._native.to_ranks(), self.pattern, self.special_tokens)
        return _from_json, (self._native.to_json(),)

    def __repr__(self) -> str:
        """Return the number of tokens and of special tokens."""
        return f"<Tokenizer of {self.vocab_size} tokens, {len(self.special_tokens)} of them special>"

    def _checked(self, ids: ArrayLike, unknown_as: int | None = None) -> NDArray[np.int32]:
        """Return the ids as a contiguous int32 array.

        An id of another integer type that is not in the vocabulary raises ValueError, or becomes `unknown_as`.
        """
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ValueError(f"token ids: expected one dimension, got the shape {array.shape}")
        if array.dtype != np.int32:
            if array.size and array.dtype.kind not in "iu":
                raise TypeError(f"token ids: expected integers, got {array.dtype}")
            outside = (array < 0) | (array >= self.vocab_size)
            if unknown_as is not None:
                array = np.where(outside, unknown_as, array)
            elif outside.any():
                unknown = array[outside][0]
                raise ValueError(f"token id {unknown} is not in the vocabulary (ids are below {self.vocab_size})")
            array = array.astype(np.int32)
        return np.ascontiguousarray(array)


class StreamDecoder:
    """Decodes ids that arrive one at a time into text that never ends within a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start with an empty text. `tokenizer.stream_decoder()` does the same."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | ArrayLike) -> str:
        """Append one or more ids and return the characters that they complete. Invalid bytes become U+FFFD.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self._utf8.decode(self._tokenizer.decode_bytes(np.atleast_1d(ids)))

    def finish(self) -> str:
        """End the text: return U+FFFD if it ends within a character, else nothing. The next id begins a new text."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _texts_of_file(path: str | os.PathLike[str]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, offset, is_whole = "", 0, False
    with open(path, "rb") as file:
        while not is_whole:
            data = file.read(_FILE_BYTES)
            offset += len(data)
            is_whole = len(data) < _FILE_BYTES
            try:
                text += decoder.decode(data, final=is_whole)
            except UnicodeDecodeError as error:
                # `object` starts with the unfinished character of the previous chunk.
                place = offset - len(error.object) + error.start
                raise ValueError(f"{os.fspath(path)}: not UTF-8 at byte {place}: {error.reason}") from None
            cut = len(text) if is_whole else _end_of_lines(text)
            yield text[:cut]
            text = text[cut:]


def _end_of_lines(text: str) -> int:
    """Return the start of the last line that does not begin with white space; the length of `text` if there is none."""
    end = text.rfind("\n", 0, -1) + 1
    while end and text[end].isspace():
        end = text.rfind("\n", 0, end - 1) + 1
    return end or len(text)


def resolve_pattern(pattern: str) -> str:
    """Return the split pattern with a name, or the regular expression itself.

    Args:
        pattern: A regular expression, or a key of `PATTERNS`. A name may be in any case, contain hyphens, and end with
            `_base`, as in tiktoken.

    Raises:
        TypeError: The pattern is not a string.
        ValueError: The pattern is empty, or looks like a name (only letters and digits) but is unknown.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"split pattern: expected a string, got {pattern!r}")
    _check_unicode(pattern, "split pattern")
    if not pattern:
        raise ValueError(f"split pattern: expected a regular expression or one of {', '.join(PATTERNS)}, got ''")
    name = re.sub("[-_ ]", "", pattern).lower().removesuffix("base")
    if name in PATTERNS:
        return PATTERNS[name]
    if re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]+([-_. ][A-Za-z0-9]+)*", pattern):
        raise ValueError(
            f"split pattern {pattern!r}: expected a regular expression or one of {', '.join(PATTERNS)}. To match "
            f"this text literally, write (?:{pattern})"
        )
    return pattern


def _count(threads: int | None) -> int | None:
    """Return a number of threads after checking it."""
    if threads is not None and operator.index(threads) < 1:
        raise ValueError(f"threads: expected 1 or more, got {threads}")
    return threads


def _listed(special_tokens: SpecialTokens) -> list[str] | list[tuple[str, int]]:
    names = list(reject_unordered(special_tokens, "special_tokens"))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"special_tokens: expected strings, got {name!r}")
        _check_unicode(name, "special token")
    if not isinstance(special_tokens, Mapping):
        return names
    return [(name, _id(name, special_tokens[name])) for name in names]


def _id(name: str, id: SupportsIndex) -> int:
    if not isinstance(id, SupportsIndex):
        raise TypeError(f"special token {name!r}: expected a whole number as its id, got {id!r}")
    number = operator.index(id)
    if not 0 <= number < 2**32:
        raise ValueError(f"special token {name!r}: expected an id from 0 to 4294967295, got {number}")
    return number


def _check_unicode(text: str, what: str) -> None:
    """Raise ValueError if the text contains a lone surrogate, which UTF-8 cannot express."""
    if well_formed(text) != text:
        raise ValueError(f"{what} {text!r} contains a lone surrogate, which is not a character")


def _from_ranks(data: bytes, pattern: str, special_tokens: dict[str, int]) -> Tokenizer:
    return Tokenizer(_native.Tokenizer.from_ranks(data, pattern, _listed(special_tokens)))


def _from_json(data: bytes) -> Tokenizer:
    native, _ = _native.Tokenizer.from_json(data)
    return Tokenizer(native)
