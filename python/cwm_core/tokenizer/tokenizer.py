"""Byte-level BPE tokenizer: text, chats and traces to token ids and back.

Token ids are one-dimensional `numpy.int32` arrays. Vocabularies are those of tiktoken (rank files) and of Hugging Face
(`tokenizer.json`), with the ids that these libraries give.
"""

import codecs
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native
from cwm_core.support.arguments import several
from cwm_core.support.files import write_file, write_files
from cwm_core.support.text import well_formed
from cwm_core.tokenizer import chat

LLAMA3_PATTERN: str = _native.LLAMA3_PATTERN
"""The split pattern of Llama-3 and of the Code World Model."""

GPT2_PATTERN: str = _native.GPT2_PATTERN
"""The split pattern of GPT-2, which keeps a run of digits whole and a newline apart from what it ends."""

CL100K_PATTERN: str = _native.CL100K_PATTERN
"""The split pattern of tiktoken's `cl100k_base`."""

O200K_PATTERN: str = _native.O200K_PATTERN
"""The split pattern of tiktoken's `o200k_base`, which cuts words where lower case meets upper case."""

QWEN2_PATTERN: str = _native.QWEN2_PATTERN
"""The split pattern of Qwen2, which takes digits one by one."""

PATTERNS: dict[str, str] = {
    "llama3": LLAMA3_PATTERN,
    "gpt2": GPT2_PATTERN,
    "cl100k": CL100K_PATTERN,
    "o200k": O200K_PATTERN,
    "qwen2": QWEN2_PATTERN,
}
"""The split patterns that have a name, by that name."""

CWM_SPECIAL_TOKENS: tuple[str, ...] = _native.CWM_SPECIAL_TOKENS
"""The 256 special tokens of the Code World Model in the order of their ids, which follow those of ordinary tokens."""

# The special tokens that `transformers` knows by their role.
_TOKEN_ROLES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"}

# The special tokens that end a generation: of a document, and of a message.
_STOP_TOKENS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")

# Of a file that a vocabulary is trained from, this much is read at a time.
_FILE_BYTES = 1 << 20

SpecialTokens = Sequence[str] | Mapping[str, int]
TrainingProgress = Callable[[Literal["count", "merge"], int, int | None], object]


class Tokenizer:
    """A vocabulary with its split pattern and special tokens. Made by `load` or `train`; immutable; can be pickled.

    Methods may be called from several threads, and release the GIL while they encode more than a few kilobytes. Pieces
    of text met before are remembered, in at most about 30 MB for each call that runs at the same time; a forked process
    may go on with what it inherits.

    A split pattern means what the library that the vocabulary is for makes of it: for a rank file tiktoken, for
    `tokenizer.json` and a trained vocabulary Hugging Face's `tokenizers`. The five of `PATTERNS` mean the same to both
    and are split by code of their own, any other by the library's regex engine, about ten times more slowly.
    """

    def __init__(self, native: _native.Tokenizer) -> None:
        """Wrap the compiled tokenizer; use `Tokenizer.load` or `Tokenizer.train`."""
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
        """Load a rank file of tiktoken, a `tokenizer.json` of Hugging Face, or a folder that holds the latter.

        Of `tokenizer.json`, byte-level BPE is supported: `ByteLevel`, alone or after a `Split` by a regular expression,
        and added tokens that are special. What only frames the ids (`post_processor`, `truncation`, `padding`) is
        ignored, since `encode` adds no tokens.

        Args:
            path: The file or folder.
            pattern: For a rank file only. Split pattern, as tiktoken understands it, or the name of one, as
                `split_pattern` takes it. Default: `LLAMA3_PATTERN`.
            special_tokens: For a rank file only. Names in order, with the ids that follow the ranks; or ids by name.
                Default: `CWM_SPECIAL_TOKENS`.

        Raises:
            ValueError: The file is no valid vocabulary or uses what is not supported; the message says what and where.

        Warns:
            UserWarning: An added token has another id than the file says: `tokenizers` numbers added tokens by itself.
        """
        path = Path(path)
        data = (path / "tokenizer.json" if path.is_dir() else path).read_bytes()
        if not data.lstrip().startswith(b"{"):
            special = CWM_SPECIAL_TOKENS if special_tokens is None else special_tokens
            ranked = _native.Tokenizer.from_ranks(
                data, LLAMA3_PATTERN if pattern is None else split_pattern(pattern), _listed(special)
            )
            return cls(ranked)
        if pattern is not None or special_tokens is not None:
            raise ValueError(f"{path}: tokenizer.json states its own pattern and special tokens")
        native, renumbered = _native.Tokenizer.from_json(data)
        if renumbered:
            more = f"; so do {len(renumbered) - 1} more" if len(renumbered) > 1 else ""
            warnings.warn(f"{path}: {renumbered[0]}{more}", stacklevel=2)
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
        """Learn a vocabulary: byte-pair merges, the most frequent first, pairs of lower ids first among equals.

        The merges are those of Hugging Face's `BpeTrainer` with the byte-level alphabet. The result depends on the
        pieces that the texts are split into, not on their order. Ctrl-C stops it.

        Args:
            texts: Any iterable of strings; an open text file is one of its lines. Each is split by itself. Special
                tokens are never looked for, so leave them out.
            vocab_size: Number of ordinary tokens: the 256 bytes and the merges. Fewer result if no pair is left.
            pattern: Split pattern, as `tokenizers` understands it, or the name of one, as `split_pattern` takes it.
            special_tokens: Names in order, with the ids that follow the ordinary tokens; or ids by name.
            threads: How many count the pieces of texts, several texts at a time. Default: one a processor.
            progress: Called now and then with `("count", bytes, None)`, the UTF-8 of the texts so far, then with
                `("merge", merges, wanted)`; what it raises ends the training.

        Raises:
            ValueError: The size, the pattern or a special token is invalid.
            TypeError: `texts` or `special_tokens` is a single string.
        """
        texts, special = iter(several(texts, "texts")), _listed(special_tokens)
        pattern = split_pattern(pattern)
        return cls(_native.Tokenizer.train(texts, vocab_size, pattern, special, threads, progress))

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
        """Learn a vocabulary as `train` does, from files in UTF-8 of any size: a few megabytes are read at a time.

        A file is one text, line ends as they are. One of a megabyte or more is cut where a line begins that is neither
        blank nor indented, which makes no difference to `LLAMA3_PATTERN`; or anywhere if there is no such line.

        Raises:
            ValueError: As `train`; or a file is not UTF-8, with its name and the offset of the first such byte.
            OSError: A file cannot be read.
        """
        texts = (text for path in several(paths, "paths") for text in _texts_of_file(path))
        return cls.train(
            texts, vocab_size, pattern=pattern, special_tokens=special_tokens, threads=threads, progress=progress
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `load`, `tokenizers`, `transformers` and what builds on it read, with equal ids.

        `tokenizer.json` is the vocabulary, `tokenizer_config.json` names the special tokens of general use, and
        `chat_template.jinja` is the chat format, if the vocabulary has its tokens.
        `docs/guides/tokenize.md` says how the libraries are to be called for equal ids and what they cannot express.

        The files are complete on disk before the first of them takes its name; a failure to write changes nothing. The
        chat format of an earlier vocabulary is deleted if this one has no tokens for it. The pattern of a rank file is
        written as one that means the same to `tokenizers`.

        (In a rank file, pairs that become the same token have one rank; `tokenizer.json` has to order them. That makes
        a difference only for ranks that no BPE training produces.)

        Raises:
            ValueError: A special token has the name of an ordinary one, or ordinary text would give it; or the pattern
                has a part that the format cannot express.
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
        has_chats = special.keys() >= set(chat.CHAT_TOKENS)
        if has_chats:
            files[template] = chat.CHAT_TEMPLATE
        folder.mkdir(parents=True, exist_ok=True)
        write_files(files)
        if not has_chats:
            template.unlink(missing_ok=True)

    def save_ranks(self, path: str | os.PathLike[str]) -> None:
        """Replace `path` by the ordinary tokens as a rank file of tiktoken, which has no pattern and special tokens.

        Raises:
            ValueError: A rank file cannot express this vocabulary: its merges are not in the order of the ids, it has
                tokens that no merge leads to, or a token is longer than 1,024 bytes.
            OSError: The file cannot be written; it is then as it was.
        """
        write_file(path, self._native.to_ranks())

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, special tokens included."""
        return self._native.vocab_size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this tokenizer from others: shards, checkpoints, and models carry them.

        They depend on tokens, merges, split pattern, and special tokens, not on the file that these come from.
        """
        if self._fingerprint is None:
            self._fingerprint = f"{self._native.fingerprint():016x}"
        return self._fingerprint

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name, in the order of the ids; a new dict each time."""
        return self._native.special_tokens

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids of the special tokens that end a document or a message, which a model stops at; those that there are."""
        special = self.special_tokens
        return tuple(special[name] for name in _STOP_TOKENS if name in special)

    @property
    def bos_token(self) -> int | None:
        """Id of the special token that begins a document, None where there is none."""
        return self.special_tokens.get("<|begin_of_text|>")

    @property
    def pattern(self) -> str:
        """The regular expression whose matches are encoded one by one."""
        return self._native.pattern

    def encode(
        self, text: str, *, allowed_special: AbstractSet[str] | Literal["all"] = frozenset()
    ) -> NDArray[np.int32]:
        """Token ids of `text`, int32 of shape [n].

        Args:
            text: Any string. Surrogates that form a pair are one character, others U+FFFD, as in tiktoken.
            allowed_special: Names that become special tokens where they occur in `text`, or `"all"`. By default none:
                the text of a special token is ordinary text, so that data cannot forge one.

        Raises:
            ValueError: A name is not a special token; or the pattern gave up on the text.
            TypeError: `allowed_special` is a string other than `"all"`.
        """
        if not allowed_special:
            return self._native.encode(text)
        if isinstance(allowed_special, str) and allowed_special == "all":
            return self._native.encode_with_special(text, None)
        return self._native.encode_with_special(
            text, [well_formed(name) for name in several(allowed_special, "allowed_special")]
        )

    def encode_bytes(self, data: bytes) -> NDArray[np.int32]:
        """Token ids of bytes that need not be UTF-8, int32 of shape [n]; as tiktoken's `_encode_bytes` gives them.

        Valid UTF-8 is encoded as text. Otherwise the text up to the first invalid byte is split, and its last piece is
        merged with everything after it as one piece.
        """
        return self._native.encode_bytes(data)

    def encode_batch(self, texts: Iterable[str], *, threads: int | None = None) -> list[NDArray[np.int32]]:
        """Token ids of each text, as by `encode`, computed by `threads` threads (default: one a processor)."""
        return self._native.encode_batch(list(several(texts, "texts")), threads)

    def encode_files(
        self, paths: Iterable[str | os.PathLike[str]], *, threads: int | None = None
    ) -> list[NDArray[np.int32]]:
        """Token ids of each file in UTF-8, as by `encode` of its text with line ends as they are.

        Files are read a few at a time, so that the ids are most of what is in memory. Ctrl-C stops it.

        Raises:
            ValueError: A file is not UTF-8, with its name and the offset of the first such byte; or too long (4 GiB).
            OSError: A file cannot be read.
        """
        return self._native.encode_files(list(several(paths, "paths")), threads)

    def count(self, text: str) -> int:
        """Number of tokens of `text`, `len(encode(text))` without the array."""
        return self._native.count(text)

    def decode(self, ids: ArrayLike, errors: str = "replace") -> str:
        """Text of token ids; special tokens are written by name.

        Args:
            ids: Integers, of shape [n].
            errors: What to do with bytes that are not UTF-8, as in `bytes.decode`.

        Raises:
            ValueError: No token has one of the ids.
            UnicodeDecodeError: With `errors="strict"`, the bytes are not UTF-8.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Bytes of token ids (integers of shape [n]), the inverse of `encode_bytes`.

        Raises:
            ValueError: No token has one of the ids.
        """
        return self._native.decode_bytes(self._checked(ids))

    def token_to_bytes(self, id: int) -> bytes:
        """Bytes of one token; of a special token, its name. Raises ValueError if no token has the id."""
        return self._native.token_to_bytes(id)

    def decoder(self) -> "Decoder":
        """A decoder for ids that arrive bit by bit."""
        return Decoder(self)

    def encode_trace(self, trace: _native.Trace) -> NDArray[np.int32]:
        """Token ids of a whole trace, int32 of shape [n], in the form that `docs/concepts/trace-format.md` describes.

        Each part (context, state, source line, value) is encoded by itself and special tokens stand between them by id,
        so a special token's text in the program stays ordinary text.

        Raises:
            ValueError: The vocabulary lacks a special token of the format.
        """
        return self._native.encode_trace(trace)

    def trace_tokens(self, trace: _native.Trace) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
        """`encode_trace(trace)`, and where the parts of each frame are in it.

        Returns:
            `(ids, spans, context)`. `ids` is int32 of shape [n]. `spans` is int32 of shape [frames, 3, 2]: for the
            state, the action and the value of each frame, the position of its first token and the one after its last,
            or -1 for a part that the frame does not have. `context` is the number of tokens before the first frame.

        Raises:
            ValueError: As `encode_trace`.
        """
        return self._native.trace_tokens(trace)

    def trace_spans(self, trace: _native.Trace) -> tuple[NDArray[np.int32], int]:
        """`(spans, context)` of `trace_tokens`."""
        return self.trace_tokens(trace)[1:]

    def parse_trace(self, ids: ArrayLike) -> _native.ParsedTrace:
        """Read a trace, or the frames of one, from token ids (integers of shape [n]).

        Strict and total: gives the longest well-formed prefix of frames, with the position and the reason where the
        rest stopped being well formed. No id is an error, not even one outside the vocabulary.
        """
        return self._native.parse_trace(self._checked(ids, unknown_as=-1))

    def encode_chat(
        self,
        messages: Iterable[Mapping[str, str]],
        *,
        reasoning: bool = False,
        add_generation_prompt: bool = False,
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        r"""Token ids and loss mask of a chat, both of shape [n], in the format of the Code World Model.

        The chat begins with `<|begin_of_text|>`. A message is
        `<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>`, its texts encoded separately and CONTENT
        stripped unless it is a tool's result. In an assistant's content, `<|reasoning_thinking_start|>` and
        `<|reasoning_thinking_end|>` are special tokens; all other text is ordinary.

        Args:
            messages: Mappings with the keys `role` (`system`, `user`, `assistant` or `tool: NAME`) and `content`, both
                strings. The role `tool` with the key `name` is `tool: NAME`. An assistant's `reasoning_content`, as
                servers return it, is put before the content, stripped, in the lines `<think>` and `</think>`.
            reasoning: Begin with `cwm_core.tokenizer.chat.REASONING_SYSTEM_PROMPT` unless the first message is a
                system message, which is then expected to ask for reasoning in its own words; and let the generation
                prompt begin with `<think>\n`.
            add_generation_prompt: End with what the model is to continue: the header of an assistant's message, or, if
                the last message is an assistant's, that message as it is, unstripped and without `<|eot_id|>`.

        Returns:
            `(ids, loss_mask)`: int32 and bool. The mask is true for what the model is to generate: the contents of the
            assistant's messages and their `<|eot_id|>`, but not a message that it is to continue.

        Raises:
            ValueError: A role is unknown, a message lacks a key or has others, a value is not a string, or the
                vocabulary lacks a special token.
        """
        return chat.encode_chat(self, messages, reasoning=reasoning, add_generation_prompt=add_generation_prompt)

    def __reduce__(self) -> tuple[Callable[..., "Tokenizer"], tuple[Any, ...]]:
        """Pickle the vocabulary file that says all, the smaller of the two kinds."""
        if self._native.is_ranked:
            return _from_ranks, (self._native.to_ranks(), self.pattern, self.special_tokens)
        return _from_json, (self._native.to_json(),)

    def __repr__(self) -> str:
        """Sizes, for people."""
        return f"<Tokenizer of {self.vocab_size} tokens, {len(self.special_tokens)} of them special>"

    def _checked(self, ids: ArrayLike, unknown_as: int | None = None) -> NDArray[np.int32]:
        """The ids as a contiguous int32 array. What int32 may not hold is an error, or becomes `unknown_as`."""
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ValueError(f"token ids have one dimension, not the shape {array.shape}")
        if array.dtype != np.int32:
            if array.size and array.dtype.kind not in "iu":
                raise TypeError(f"token ids are integers, not {array.dtype}")
            outside = (array < 0) | (array >= self.vocab_size)
            if unknown_as is not None:
                array = np.where(outside, unknown_as, array)
            elif outside.any():
                unknown = array[outside][0]
                raise ValueError(f"token id {unknown} is not in the vocabulary (ids are below {self.vocab_size})")
            array = array.astype(np.int32)
        return np.ascontiguousarray(array)


class Decoder:
    """Decodes ids that arrive bit by bit, such as a model generates, into text that never ends within a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Begin an empty text; same as `tokenizer.decoder()`."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | ArrayLike) -> str:
        """Text that one more id, or several, completes; invalid bytes are U+FFFD. Raises ValueError for unknown ids."""
        return self._utf8.decode(self._tokenizer.decode_bytes(np.atleast_1d(ids)))

    def finish(self) -> str:
        """U+FFFD if the text ends within a character, else nothing; the next id begins a new text."""
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
                # `object` is what was read last, after the bytes of an unfinished character before it.
                place = offset - len(error.object) + error.start
                raise ValueError(f"{os.fspath(path)}: not UTF-8 at byte {place}: {error.reason}") from None
            cut = len(text) if is_whole else _end_of_lines(text)
            yield text[:cut]
            text = text[cut:]


def _end_of_lines(text: str) -> int:
    """Where the last line of `text` begins that does not begin with white space; its length if there is none."""
    end = text.rfind("\n", 0, -1) + 1
    while end and text[end].isspace():
        end = text.rfind("\n", 0, end - 1) + 1
    return end or len(text)


def split_pattern(pattern: str) -> str:
    """Return the split pattern that is named, or the regular expression itself.

    Args:
        pattern: A key of `PATTERNS`, also in another case, with hyphens, or with `_base` at its end as tiktoken writes
            it; or a regular expression.

    Raises:
        ValueError: It looks like a name, letters and digits alone, and is none that is known.
    """
    _check_unicode(pattern, "split pattern")
    name = re.sub("[-_ ]", "", pattern).lower().removesuffix("base")
    if name in PATTERNS:
        return PATTERNS[name]
    if re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]+([-_. ][A-Za-z0-9]+)*", pattern):
        raise ValueError(
            f"split pattern {pattern!r}: expected a regular expression or one of {', '.join(PATTERNS)}. For an "
            f"expression that matches this very text, write (?:{pattern})"
        )
    return pattern


def _listed(special_tokens: SpecialTokens) -> list[str] | list[tuple[str, int]]:
    names = list(several(special_tokens, "special_tokens"))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"special_tokens: expected strings, got {name!r}")
        _check_unicode(name, "special token")
    return [(name, special_tokens[name]) for name in names] if isinstance(special_tokens, Mapping) else names


def _check_unicode(text: str, what: str) -> None:
    """Raise ValueError if a text holds a lone surrogate, which neither a file nor a text that is encoded can."""
    if well_formed(text) != text:
        raise ValueError(f"{what} {text!r} holds a lone surrogate, which is no character")


def _from_ranks(data: bytes, pattern: str, special_tokens: dict[str, int]) -> Tokenizer:
    return Tokenizer(_native.Tokenizer.from_ranks(data, pattern, _listed(special_tokens)))


def _from_json(data: bytes) -> Tokenizer:
    native, _ = _native.Tokenizer.from_json(data)
    return Tokenizer(native)
