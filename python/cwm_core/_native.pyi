"""The compiled part of `cwm_core`. Use the modules of the package, which document it."""

import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from types import FrameType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .trace.kinds import Event

VERSION: str

# ---- trace

class Trace:
    """A recorded or parsed execution: source context and frames. Immutable."""

    @property
    def frames(self) -> Frames:
        """Frames in order. `Frame` objects are created on access."""
    @property
    def context(self) -> str:
        """Source text shown before the frames, with the `# << START_OF_TRACE` mark."""
    @property
    def result(self) -> str | None:
        """Rendered return value of the recorded call; None if the call raised or the recording was truncated.

        In a complete parsed trace, the value of the last RETURN frame, if that frame ends the only outermost
        activation. The frames of a trace with several outermost activations, such as those of a resumed generator, do
        not determine a result.
        """
    @property
    def exception(self) -> str | None:
        """Rendered exception that the recorded call raised; None if it did not raise."""
    @property
    def truncated(self) -> str | None:
        """Reason why the recording ended early; None for a complete recording.

        Either a value of `cwm_core.trace.Truncation`, or the reason given to `Recorder.snapshot`.
        """
    @property
    def output(self) -> str | None:
        """Text that the program wrote to `sys.stdout`; None if the recorder did not capture it."""
    @property
    def nbytes(self) -> int:
        """Memory taken by the frames, in bytes."""
    def state(self, index: int) -> dict[str, str] | None:
        """Return all variables at a frame, with each `..` replaced by the value it stands for.

        Args:
            index: Frame number; negative numbers count from the end.

        Returns:
            Rendered values by variable name. None for RETURN and EXCEPTION frames, and if a `..` has no earlier value
            to refer to.

        Raises:
            IndexError: There is no such frame.
        """
    def states(self) -> list[dict[str, str] | None]:
        """Return `state` of every frame.

        The result can be much larger than the trace if frames leave out unchanged variables.
        """
    def coarsen(
        self,
        *,
        calls_only: bool = False,
        max_depth: int | None = None,
        loop_budget: tuple[int, int] | None = None,
        changes_only: bool = False,
    ) -> Trace:
        """Return a trace that shows less of the same execution.

        The options combine; the trace format page defines each level of detail. Each CALL and LINE frame of the result
        has the same `state` as in this trace. The context, the outcome, and `truncated` do not change.

        Args:
            calls_only: Keep only CALL and RETURN frames, and EXCEPTION frames that unwind an activation.
            max_depth: Drop activations nested deeper than this, counted from 1.
            loop_budget: Number of first (0 or more) and last (1 or more) iterations to keep of each run of a loop.
            changes_only: Keep only changed variables in LINE frames; the pair `"..": ".."` stands for the others.

        Returns:
            The coarser trace.

        Raises:
            ValueError: `max_depth` or `loop_budget` is below its minimum.
        """
    def with_context(self, context: str) -> Trace:
        """Return the same execution with another source context.

        To mark the entry, include the mark in `context`.
        """
    def to_text(self) -> str:
        """Return the text form of the whole document.

        The text form escapes nothing. Use the stored form or the token form if the round trip must be lossless.
        """
    @staticmethod
    def parse(text: str) -> ParsedTrace:
        """Parse a text form, with or without its context.

        Accepts any text: it returns the longest well-formed prefix and never raises or repairs.
        """
    def to_bytes(self) -> bytes:
        """Return the stored form, which is lossless, compressed, and protected by a checksum."""
    @staticmethod
    def from_bytes(data: bytes) -> Trace:
        """Read a stored form.

        Raises:
            DamagedFileError: The data is damaged or is not a stored trace.
        """
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stored form to a file, either completely or not at all.

        Follows symbolic links and writes through devices and FIFOs.

        Raises:
            OSError: The file cannot be written.
        """
    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trace:
        """Read a file written by `save`.

        Raises:
            OSError: The file cannot be read.
            DamagedFileError: The file is damaged or is not a stored trace.
        """
    def _repr_html_(self) -> str:
        """Return the interactive view of the trace that notebooks display: the page of `cwm_core.view.html`."""
    def __reduce__(self) -> tuple[Any, tuple[bytes]]: ...
    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

class Frames:
    """A sequence of the frames of a trace."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Frame]: ...
    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...

class Frame:
    """One frame of a trace, with its variables as a difference from the previous frame."""

    @property
    def event(self) -> Event:
        """Event that the frame records: `"call"`, `"line"`, `"return"`, or `"exception"`."""
    @property
    def locals(self) -> dict[str, str] | None:
        """Rendered values by variable name, `".."` if unchanged; None for RETURN and EXCEPTION frames.

        A LINE frame that leaves out unchanged variables starts with the pair `"..": ".."`.
        """
    @property
    def line(self) -> str:
        """Source line with its newline; empty if the source is unknown."""
    @property
    def lineno(self) -> int | None:
        """Line number in the source file; None if unknown, as in parsed traces."""
    @property
    def arg(self) -> str | None:
        """Rendered value of a RETURN or EXCEPTION frame; None for other events."""
    def __eq__(self, other: object) -> bool: ...

class ParseErrorKind(StrEnum):
    """Kind of a parse error."""

    UNCLOSED_CONTEXT = "unclosed_context"
    """The input ends inside the context."""
    UNCLOSED_FRAME = "unclosed_frame"
    """The input ends inside a frame, as generated text does at a token limit."""
    INVALID_STRUCTURE = "invalid_structure"
    """A part of the document is missing, unexpected, or out of order."""
    INVALID_LOCALS = "invalid_locals"
    """The locals are not a JSON object of strings with distinct names."""
    INVALID_VALUE = "invalid_value"
    """The value is not a JSON string."""
    INVALID_ENCODING = "invalid_encoding"
    """Bytes are not UTF-8, or the text contains a lone surrogate."""
    TRAILING_INPUT = "trailing_input"
    """The end token is not the last one."""
    TOO_MANY_FRAMES = "too_many_frames"
    """The input has more frames than a trace can hold."""

class ParsedTrace:
    """The longest well-formed prefix of a text or of token IDs, and the error that ends it, if any."""

    @property
    def trace(self) -> Trace:
        """Trace of the well-formed frames."""
    @property
    def frames(self) -> Frames:
        """Well-formed frames."""
    @property
    def complete(self) -> bool:
        """Whether the input ends with the end token, right after the last frame."""
    @property
    def error(self) -> str | None:
        """Message that explains why parsing stopped; None if the whole input is well formed.

        Input that stops between two frames is well formed but not `complete`.
        """
    @property
    def error_kind(self) -> ParseErrorKind | None:
        """Kind of the error; None if there is no error."""
    @property
    def error_offset(self) -> int | None:
        """Start of the first malformed frame: a character of the text or an index into the token IDs."""

# ---- store

class TraceWriter:
    """Implementation of `cwm_core.TraceWriter`; metadata is JSON text."""

    def __new__(cls, path: str | os.PathLike[str], append: bool) -> TraceWriter: ...
    @property
    def cut_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def add(self, trace: Trace, key: str | None, metadata: str) -> int: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...

class TraceReader:
    """Implementation of `cwm_core.TraceReader`."""

    def __new__(cls, path: str | os.PathLike[str]) -> TraceReader: ...
    def __len__(self) -> int: ...
    @property
    def torn_bytes(self) -> int: ...
    def trace(self, index: int) -> Trace: ...
    def find(self, key: str) -> int | None: ...
    def block(self, index: int) -> TraceBlock: ...
    def verify(self) -> None: ...

class TraceBlock:
    """Consecutive traces of a store that are compressed together.

    Keys and metadata are read together; the traces are read on first access.
    """

    @property
    def first(self) -> int:
        """Index of the first trace in the store."""
    def __len__(self) -> int: ...
    def key(self, place: int) -> str | None: ...
    def metadata(self, place: int) -> str: ...
    def trace(self, place: int) -> Trace: ...

# ---- errors

class CwmError(Exception):
    """Base class of the exceptions that cwm_core defines."""

class DamagedFileError(CwmError, ValueError):
    """The content of a file is damaged, truncated, or of another format or version than expected."""

# ---- recorder

class RecordingLimit(BaseException):
    """Stops a program whose recording reached a limit. Not an `Exception`, so that programs rarely catch it."""

class Recording:
    """One recording: the implementation of `cwm_core.Recorder`.

    Run it once, or start and stop it once, then finish it.
    """

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
        """Prepare a recording of code in these files and folders.

        Args:
            files: Files whose code is in scope.
            folders: Folders whose files are in scope, at any depth.
            max_frames: See `Recorder`, as for the options up to `max_depth`.
            max_bytes: See `Recorder`.
            max_seconds: See `Recorder`.
            max_value_chars: See `Recorder`.
            object_state: See `Recorder`.
            calls_only: See `Recorder`.
            max_depth: See `Recorder`.
            split: Record one trace for each outermost activation.
            choose: Callback that receives the first frame of each outermost activation in scope and returns whether to
                record it as a trace of its own. Consecutive steps of a generator or coroutine belong to one trace. A
                limit then ends a trace, not the program.

        Raises:
            ValueError: `choose` is combined with `split` or `max_seconds`.
        """
    def start(self) -> None:
        """Install the trace function on this thread.

        Raises:
            RuntimeError: Another recording runs on this thread.
        """
    def stop(self) -> None:
        """Remove the trace function and restore the previous one."""
    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Record a call."""
    def sources(self) -> dict[str, bytes]:
        """Return the contents of files in scope as of the time the recording first entered them.

        Files that could not be read are missing. Call this, `scope`, and `outside` before `finish`.
        """
    def scope(self) -> list[str]:
        """Return the files and folders in scope."""
    def outside(self) -> list[str]:
        """Return the first few files outside the scope whose code ran."""
    def finish(
        self,
        lines: Callable[[str], list[str]],
        context: Callable[[str, str, int, int], str],
        output: str | None = None,
    ) -> list[Trace]:
        """Return the recorded traces in order.

        Args:
            lines: Returns the source lines of a file.
            context: Returns the context of a trace from the file, name, first line, and current line of its entry.
            output: Captured output, stored in the last trace.
        """
    def snapshot(
        self,
        lines: Callable[[str], list[str]],
        context: Callable[[str, str, int, int], str],
        reason: str,
        output: str | None = None,
    ) -> Trace:
        """Return the trace so far without ending the recording. Safe to call from any thread.

        Args:
            lines: As for `finish`.
            context: As for `finish`.
            reason: Value of `Trace.truncated`.
            output: Output captured so far.

        Raises:
            RuntimeError: The recording is processing an event, or is finished.
        """

def before_exit(callback: Callable[[str], object] | None) -> None:
    """Call `callback(name)` before `os._exit`, `os.abort`, `os.execv`, or `os.execve` ends the process.

    `name` is the name of the function. None removes the callback. The functions remain the same objects, so programs
    see no difference.
    """

def is_recorder_at_work() -> bool:
    """Return whether the recorder is processing an event on this thread.

    Python code that runs then, such as a `__repr__`, was not called by the recorded program.
    """

def real_path(name: str) -> str:
    """Return the absolute path of a file with links, `.`, and `..` resolved. Runs no Python code."""

def call_with_empty_hook(function: Callable[[], Any]) -> Any:
    """Call `function()` under a trace function that does nothing: the baseline for the cost of recording."""

# ---- packing
class ShardWriter:
    """Native part of `cwm_core.ShardWriter`, which documents it."""

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
    """Native part of `cwm_core.Shards`, which documents it."""

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
    """Memory of a batch's arrays."""

class PackedLoader:
    """Native part of `cwm_core.PackedLoader`, which documents it."""

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
