"""The compiled half of cwm_core. The documented faces are the modules of the package."""

from collections.abc import Callable
from typing import Any

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
        """The rendered result of the recorded call; None when it raised, was cut, or the trace was parsed."""
    @property
    def exception(self) -> str | None:
        """The rendered exception that the recorded call raised, if it did."""
    @property
    def truncated(self) -> str | None:
        """The limit that ended the recording: "max_frames", "max_bytes", "max_seconds"; "settrace" when the program
        put another trace function in the recorder's place and left it there; None for a whole recording."""
    @property
    def nbytes(self) -> int:
        """Bytes of memory that the frames take."""
    def state(self, index: int) -> dict[str, str] | None:
        """The full variables at frame ``index``, ``..`` resolved; None for a RETURN or EXCEPTION frame, or where a
        ``..`` has nothing to refer to.

        Raises IndexError when there is no such frame."""
    def states(self) -> list[dict[str, str] | None]:
        """``state`` of every frame."""
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
        """Variables to rendered values, ``".."`` for unchanged; None for RETURN and EXCEPTION frames."""
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
        split: bool = False,
    ) -> Recording: ...
    def start(self) -> None:
        """Installs the hook on this thread; RuntimeError when a recording already runs on it."""
    def stop(self) -> None:
        """Removes the hook and sets the trace function that was set before."""
    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Records a call."""
    def finish(
        self, lines: Callable[[str], list[str]], context: Callable[[str, str, int, int], str]
    ) -> list[Trace]:
        """The traces recorded."""
