"""The compiled half of cwm_core. The documented faces are the modules of the package."""

import os
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

VERSION: str

# ---- trace

class Trace:
    """A recorded or parsed execution: a context and frames, kept natively; immutable."""

    @property
    def frames(self) -> Frames:
        """The frames in order; objects are made when looked at."""
    @property
    def context(self) -> str:
        """The source text shown, with its ``# << START_OF_TRACE`` mark."""
    @property
    def result(self) -> str | None:
        """The rendered result of the recorded call; None when it raised or was cut.

        A complete parsed trace has the value of its last RETURN frame, which is the result where that ends the one
        outermost activation. A trace with several, such as that of a resumed generator, does not say its result.
        """
    @property
    def exception(self) -> str | None:
        """The rendered exception that the recorded call raised, if it did."""
    @property
    def truncated(self) -> str | None:
        """The limit that ended the recording: "max_frames", "max_bytes", "max_seconds"; "settrace" when the program
        put another trace function in the recorder's place and left it there; None for a whole recording."""
    @property
    def output(self) -> str | None:
        """What the program printed, where the recorder was asked to keep it."""
    @property
    def nbytes(self) -> int:
        """Bytes of memory that the frames take."""
    def _repr_html_(self) -> str:
        """What a notebook shows: the page of `cwm_core.view.html`, in a frame of its own."""
    def state(self, index: int) -> dict[str, str] | None:
        """The full variables at frame ``index``, ``..`` resolved; None for a RETURN or EXCEPTION frame, or where a
        ``..`` has nothing to refer to.

        Raises IndexError when there is no such frame."""
    def states(self) -> list[dict[str, str] | None]:
        """``state`` of every frame. Where frames leave variables out, far larger than the trace."""
    def coarsen(
        self,
        *,
        calls_only: bool = False,
        max_depth: int | None = None,
        loop_budget: tuple[int, int] | None = None,
        changes_only: bool = False,
    ) -> Trace:
        """Return a trace that shows less of the same execution; the options combine (`docs/concepts/trace-format.md`).

        Args:
            calls_only: show only CALL and RETURN frames, and the EXCEPTION frames that unwind an activation.
            max_depth: leave out activations that are nested deeper than this, from 1.
            loop_budget: of each execution of a loop, show only this many first (from 0) and last (from 1) iterations.
            changes_only: show only the variables that changed in LINE frames; ``"..": ".."`` stands for the others.

        Every CALL and LINE frame shown has the ``state`` that it has here. Context, outcome and ``truncated`` stay.

        Raises ValueError for a depth or budget below the least."""
    def with_context(self, context: str) -> Trace:
        """The same execution, shown with another source text. Where that is to have the entry's mark, it brings it."""
    def to_text(self) -> str:
        """The text form of the whole document. It escapes nothing: only the stored and token forms are lossless."""
    @staticmethod
    def parse(text: str) -> ParsedTrace:
        """Parses a text form, whole or without its context. Strict and total: never raises, never repairs."""
    def to_bytes(self) -> bytes:
        """The stored form: lossless, compressed, with a checksum."""
    @staticmethod
    def from_bytes(data: bytes) -> Trace:
        """Reads the stored form; ValueError says what is wrong with damaged data."""
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stored form to a file, whole or not at all.

        A link is followed, and a device or FIFO is written through, as `cwm_core.support.files.replacing` does.

        Raises:
            OSError: The file cannot be written.
        """
    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trace:
        """Reads a file that ``save`` wrote; ValueError says what is wrong with a damaged one."""
    def __reduce__(self) -> tuple[Any, tuple[bytes]]: ...
    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

class Frames:
    """The frames of a trace: a sequence."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...

class Frame:
    """One frame, as written."""

    @property
    def event(self) -> str:
        """``"call"``, ``"line"``, ``"return"`` or ``"exception"``."""
    @property
    def locals(self) -> dict[str, str] | None:
        """Variables to rendered values, ``".."`` for unchanged; None for RETURN and EXCEPTION frames. A LINE frame that
        leaves out variables begins with ``"..": ".."``."""
    @property
    def line(self) -> str:
        """The source line with its newline; empty when no source is known."""
    @property
    def lineno(self) -> int | None:
        """The line's number in its file; None where it is not known, as in parsed traces."""
    @property
    def arg(self) -> str | None:
        """The rendered value of a RETURN or EXCEPTION frame."""
    def __eq__(self, other: object) -> bool: ...

class ParsedTrace:
    """The longest well-formed prefix of a text or of token ids."""

    @property
    def trace(self) -> Trace:
        """The well-formed frames as a trace."""
    @property
    def frames(self) -> Frames:
        """The well-formed frames."""
    @property
    def complete(self) -> bool:
        """Whether the end token followed the last frame, and nothing followed it."""
    @property
    def error(self) -> str | None:
        """Why the rest is not well formed; None where everything is, also when it stops between two frames."""
    @property
    def error_offset(self) -> int | None:
        """Where the frame that is not well formed begins: a character of the text or an index of the ids."""

# ---- store

class TraceWriter:
    """Behind ``cwm_core.TraceWriter``, which documents it; metadata is JSON."""

    def __new__(cls, path: str | os.PathLike[str], append: bool) -> TraceWriter: ...
    @property
    def cut_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def add(self, trace: Trace, key: str | None, metadata: str) -> int: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...

class TraceReader:
    """Behind ``cwm_core.TraceReader``, which documents it."""

    def __new__(cls, path: str | os.PathLike[str]) -> TraceReader: ...
    def __len__(self) -> int: ...
    @property
    def torn_bytes(self) -> int: ...
    def trace(self, index: int) -> Trace: ...
    def find(self, key: str) -> int | None: ...
    def block(self, index: int) -> TraceBlock: ...
    def verify(self) -> None: ...

class TraceBlock:
    """Consecutive traces of a store, read together: keys and metadata at once, traces when asked for."""

    @property
    def first(self) -> int:
        """The index of the first trace."""
    def __len__(self) -> int: ...
    def key(self, place: int) -> str | None: ...
    def metadata(self, place: int) -> str: ...
    def trace(self, place: int) -> Trace: ...

# ---- errors

class CwmError(Exception):
    """Base of the exceptions that cwm_core defines."""

class DamagedFileError(CwmError, ValueError):
    """The content of a file is damaged, cut, or of another kind or version than its reader expects."""

# ---- recorder

class RecordingLimit(BaseException):
    """Stops a program whose recording reached a limit."""

class Recording:
    """One recording, behind ``cwm_core.Recorder``: made, run or started and stopped once, then finished."""

    def __new__(
        cls,
        files: list[str],
        folders: list[str],
        *,
        max_frames: int | None = None,
        max_bytes: int | None = None,
        max_seconds: float | None = None,
        max_value_chars: int = 1000,
        object_state: bool = False,
        calls_only: bool = False,
        max_depth: int | None = None,
        split: bool = False,
        choose: Callable[[FrameType], bool] | None = None,
    ) -> Recording:
        """With `choose`, which is called with the first frame of each outermost activation in scope, those that it
        chooses are recorded, one trace each; steps of a generator or coroutine that follow each other belong together.
        A limit then ends a trace, not the program. ValueError with `split` or `max_seconds`."""
    def start(self) -> None:
        """Installs the hook on this thread; RuntimeError when a recording already runs on it."""
    def stop(self) -> None:
        """Removes the hook and sets the trace function that was set before."""
    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Records a call."""
    def sources(self) -> dict[str, bytes]:
        """What was in the files in scope when their code was first met; only those that could be read. As `scope` and
        `outside`, before `finish`."""
    def scope(self) -> list[str]:
        """The files and folders in scope."""
    def outside(self) -> list[str]:
        """The first files outside the scope that were met."""
    def finish(
        self,
        lines: Callable[[str], list[str]],
        context: Callable[[str, str, int, int], str],
        output: str | None = None,
    ) -> list[Trace]:
        """The traces recorded; where calls are chosen, one for each, in their order. The last one keeps what was
        printed."""

    def snapshot(
        self,
        lines: Callable[[str], list[str]],
        context: Callable[[str, str, int, int], str],
        reason: str,
        output: str | None = None,
    ) -> Trace:
        """Return the trace so far, `truncated` for this reason, of a recording that goes on; from any thread.

        Raises:
            RuntimeError: The recording is recording an event, or is finished.
        """

def before_exit(callback: Callable[[str], object] | None) -> None:
    """Call `callback(name)` before `os.NAME` ends the process: `_exit`, `abort`, `execv`, `execve`. None ends that.

    Programs see no difference: the functions stay the same objects.
    """

def is_recorder_at_work() -> bool:
    """Whether the recorder works on this thread: what runs then, a ``__repr__`` say, the program has not called."""

def real_path(name: str) -> str:
    """The absolute path of a file without links, ``.`` and ``..``. Runs no Python code."""

def call_with_empty_hook(function: Callable[[], Any]) -> Any:
    """Calls ``function()`` under a trace function that does nothing: the floor that recordings are measured against."""

# ---- packing
class ShardWriter:
    def __new__(
        cls,
        folder: str | os.PathLike[str],
        vocab_size: int,
        fingerprint: int | None,
        shard_tokens: int,
        append: bool,
    ) -> ShardWriter: ...
    @property
    def documents(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    def add(
        self,
        ids: NDArray[np.integer],
        loss_mask: NDArray[np.bool_] | None,
        source: str,
        spans: list[tuple[str, NDArray[np.int64]]],
    ) -> None: ...
    def add_many(
        self,
        ids: NDArray[np.integer],
        offsets: NDArray[np.int64],
        loss_mask: NDArray[np.bool_] | None,
        sources: list[str],
        source_ids: NDArray[np.int64] | None,
    ) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...

class Shards:
    def __new__(cls, path: str | os.PathLike[str], vocab_size: int | None, fingerprint: int | None) -> Shards: ...
    @property
    def vocabulary_fingerprint(self) -> int | None: ...
    def __len__(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def vocab_size(self) -> int | None: ...
    @property
    def sources(self) -> list[str]: ...
    @property
    def labels(self) -> list[str]: ...
    def document(self, at: int) -> tuple[NDArray[np.int32], NDArray[np.bool_], str, list[tuple[str, int, int]]]: ...
    def lengths(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
    def verify(self) -> None: ...

class BatchMemory:
    """What the arrays of a batch lie in."""

class PackedLoader:
    def __new__(
        cls,
        sources: list[tuple[str, str | os.PathLike[str], float, int | None]],
        vocab_size: int | None,
        fingerprint: int | None,
        buckets: list[tuple[int, int, int]],
        lookahead: int | None,
        masks: list[tuple[str, float]],
        rank: int,
        world_size: int,
        seed: int,
        worker: tuple[int, int],
        prefetch: int,
    ) -> PackedLoader: ...
    def next_batch(
        self,
    ) -> (
        tuple[
            NDArray[np.int32],
            NDArray[np.int32],
            NDArray[np.bool_],
            NDArray[np.int32],
            NDArray[np.int32],
            int,
            NDArray[np.int32],
            NDArray[np.int64],
            int,
            int,
        ]
        | None
    ): ...
    def skip(self, steps: int) -> int: ...
    @property
    def vocab_size(self) -> int | None: ...
    def fingerprint(self) -> int: ...
    @property
    def vocabulary_fingerprint(self) -> int | None: ...
    def description(self) -> list[tuple[str, float, int | None, list[tuple[int, int]]]]: ...
    def state(
        self,
    ) -> tuple[tuple[int, int, int], list[int], list[tuple[list[list[int]], int, list[int] | None]]]: ...
    def restore(
        self,
        state: tuple[tuple[int, int, int], list[int], list[tuple[list[list[int]], int, list[int] | None]]],
    ) -> None: ...

# ---- end of packing
# ---- tokenizer

LLAMA3_PATTERN: str
GPT2_PATTERN: str
CL100K_PATTERN: str
O200K_PATTERN: str
QWEN2_PATTERN: str
CWM_SPECIAL_TOKENS: tuple[str, ...]

class Tokenizer:
    """Native part of `cwm_core.Tokenizer`, which documents it."""

    @staticmethod
    def from_ranks(file: bytes, pattern: str, special_tokens: list[str] | list[tuple[str, int]]) -> Tokenizer: ...
    @staticmethod
    def from_json(file: bytes) -> tuple[Tokenizer, list[str]]: ...
    @staticmethod
    def train(
        texts: Iterator[str],
        vocab_size: int,
        pattern: str,
        special_tokens: list[str] | list[tuple[str, int]],
        threads: int | None,
        progress: Callable[[Literal["count", "merge"], int, int | None], object] | None,
    ) -> Tokenizer: ...
    def to_json(self) -> bytes: ...
    def to_ranks(self) -> bytes: ...
    @property
    def is_ranked(self) -> bool: ...
    @property
    def pattern(self) -> str: ...
    def fingerprint(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    def encode(self, text: str) -> NDArray[np.int32]: ...
    def encode_with_special(self, text: str, allowed: list[str] | None) -> NDArray[np.int32]: ...
    def encode_bytes(self, data: bytes) -> NDArray[np.int32]: ...
    def encode_batch(self, texts: list[str], threads: int | None) -> list[NDArray[np.int32]]: ...
    def encode_files(self, paths: list[str | os.PathLike[str]], threads: int | None) -> list[NDArray[np.int32]]: ...
    def count(self, text: str) -> int: ...
    def decode_bytes(self, ids: NDArray[np.int32]) -> bytes: ...
    def token_to_bytes(self, id: int) -> bytes: ...
    def encode_trace(self, trace: Trace) -> NDArray[np.int32]: ...
    def trace_tokens(self, trace: Trace) -> tuple[NDArray[np.int32], NDArray[np.int32], int]: ...
    def parse_trace(self, ids: NDArray[np.int32]) -> ParsedTrace: ...

# ---- grammar

class TraceGrammar:
    """Native part of `cwm_core.inference.TraceGrammar`, which documents it."""

    def __new__(cls, tokenizer: Tokenizer) -> TraceGrammar: ...
    def with_lines(self, lines: list[str]) -> TraceGrammar: ...
    def constraint(self) -> TraceConstraint: ...

class TraceConstraint:
    """Native part of `cwm_core.inference.TraceConstraint`, which documents it."""

    def allowed(self, mask: NDArray[np.bool_]) -> None: ...
    def allows(self, token: int) -> bool: ...
    def advance(self, token: int) -> None: ...
    def feed(self, ids: NDArray[np.int32]) -> None: ...
