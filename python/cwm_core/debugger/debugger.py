"""Step through the predicted execution of a program, whose frames a model predicts one at a time."""

from __future__ import annotations

import ast
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from .. import machines
from .._native import CwmError
from ..inference.lines import Places, ProgramLines
from ..inference.prompts import trace_prompt
from ..machines.programs import DEFAULT_LIMITS, check_sandbox, installed_packages, record_program
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import ACTION_SEP
from ..trace import Trace, Truncation, source_context
from ..view import Difference, differences
from .frames import FrameSource, frame_ends

if TYPE_CHECKING:
    from cwm_core._native import Frame


UNCHANGED = ".."
_SHOWN_CHARS = 300


class StopReason(StrEnum):
    """The reason that a command of the debugger stopped."""

    STEP = "step"
    """The command reached its destination."""
    BREAKPOINT = "breakpoint"
    """A breakpoint."""
    END = "end"
    """The model predicted the end of the trace."""
    MALFORMED = "malformed"
    """The model's next output is not a frame."""
    LIMIT = "limit"
    """The limit of predicted frames or tokens."""
    PAUSED = "paused"
    """`Debugger.interrupt`."""


class DebuggerError(CwmError):
    """The debugger cannot do what a command asks at the current frame; the message says why."""


@dataclass(frozen=True, eq=False)
class Scope:
    """An activation of a function, at one of its frames."""

    function: str
    """Qualified name of the function; several, joined by "or", if the program's text is ambiguous."""
    depth: int
    """Depth of the call: 1 for the outermost activation, 0 for a frame outside any activation."""
    state: Mapping[str, str]
    """Variables, with `..` resolved; a `..` that refers to nothing stays `..`."""
    places: Places
    """Possible places of the frame in the program."""
    entry: int
    """Index of the activation's CALL frame."""
    parent: Scope | None = field(repr=False)
    """Activation of the caller; None for the outermost one."""

    @property
    def lines(self) -> tuple[int, ...]:
        """Return the possible line numbers: several if the text is ambiguous, none if no line has it."""
        return tuple(sorted({line for _, line in self.places if line >= 0}))


@dataclass(frozen=True, eq=False)
class Step:
    """A frame of the prompt, a predicted frame, or a frame that `Debugger.set` changed."""

    index: int
    """Index of the frame in the trace."""
    frame: Frame
    """Frame as written."""
    ids: np.ndarray
    """Tokens of the frame, including its `<|frame_sep|>`, int32 [n]."""
    logprobs: np.ndarray
    """Log probability of each token in nats, float32 [n]; NaN if unknown or not predicted."""
    scope: Scope
    """Activation that the frame belongs to."""
    is_edited: bool = False
    """True if `Debugger.set` changed the frame."""

    @property
    def probability(self) -> float | None:
        """Return the model's probability of the whole frame; None if it is unknown for a token."""
        total = float(self.logprobs.sum())
        return None if math.isnan(total) else math.exp(total)


@dataclass(frozen=True)
class Stop:
    """The outcome of a command."""

    reason: StopReason
    """Reason that the command stopped."""
    message: str = ""
    """Explanation for the user; may be empty."""


@dataclass
class Breakpoint:
    """A line at which commands stop."""

    line: int
    """Number of the line."""
    ignore: int = 0
    """Number of arrivals to ignore before the first stop."""
    hits: int = 0
    """Number of arrivals so far, by any command that goes forward."""


@dataclass(frozen=True)
class Verification:
    """The comparison of predicted frames with a real run."""

    real: Trace
    """Recorded trace with as many frames as predicted, and one more if there is one."""
    compared: int
    """Number of compared frames."""
    difference: Difference | None
    """First difference; None if there is none."""

    def __str__(self) -> str:
        """Return the result in one sentence."""
        if self.difference is None:
            return f"{self.compared:,} {'frame equals' if self.compared == 1 else 'frames equal'} the real execution"
        return f"frame {self.difference.index:,} differs from the real execution: {self.difference}"


class Debugger:
    """Step through the predicted execution of an expression in a module.

    The debugger predicts frames on demand and keeps them, so going back and forward again predicts nothing. Only
    `verify` runs the program. Line numbers are those of `code`; the lines of the entry, `main()`, follow its last line.

    A command stops at its destination, a breakpoint, the end, a malformed frame, or a limit of predicted frames or
    tokens. An exception such as KeyboardInterrupt or `SourceError` may interrupt it; complete frames are kept.
    """

    def __init__(
        self,
        source: FrameSource,
        tokenizer: Tokenizer,
        code: str,
        call: str,
        *,
        seed: int = 0,
        temperature: float = 0.0,
        max_frames: int = 1000,
        max_tokens: int = 1 << 16,
    ) -> None:
        """Start at the first frame, the call of `main()`.

        Args:
            source: Source of predicted frames.
            tokenizer: The vocabulary of the model.
            code: The source of the module.
            call: The expression.
            seed: Number of the sample, which matters at temperatures above 0.
            temperature: Sampling temperature; 0 takes the most likely token.
            max_frames: Maximum number of frames that a command predicts.
            max_tokens: Maximum number of tokens that a command predicts.

        Raises:
            ValueError: The vocabulary lacks a special token of the trace format.
        """
        self.source, self.tokenizer, self.code, self.call = source, tokenizer, code, call
        self.seed, self.temperature = seed, temperature
        self.max_frames, self.max_tokens = max_frames, max_tokens
        self.program = ProgramLines(source_context(code, call))
        self.breakpoints: dict[int, Breakpoint] = {}
        self.position = 0
        """Index of the current frame."""
        self._ends = frame_ends(tokenizer)
        self.interrupt = threading.Event()
        """Set this from a signal handler or another thread to stop the running command after its current frame."""
        self._ending: Stop | None = None
        prompt = trace_prompt(tokenizer, code, call)
        first = int(np.argmax(prompt == self._ends[0])) + 1
        self._context, ids = prompt[:first], prompt[first:]
        frame = tokenizer.parse_trace(ids).frames[0]
        self._steps = [self._step(frame, ids, np.full(len(ids), np.nan, np.float32), None)]

    # ---- state

    @property
    def current(self) -> Step:
        """Return the current frame."""
        return self._steps[self.position]

    @property
    def steps(self) -> Sequence[Step]:
        """Return all frames so far, including those after the current one."""
        return tuple(self._steps)

    @property
    def ids(self) -> np.ndarray:
        """Return the tokens of the context and of all frames so far, int32 [n]."""
        return np.concatenate([self._context, *(step.ids for step in self._steps)])

    @property
    def finished(self) -> bool:
        """Return whether the model predicted the end of the trace after the frames so far."""
        return self._ending is not None and self._ending.reason is StopReason.END

    def where(self) -> list[Scope]:
        """Return the activations that are open at the current frame, innermost first."""
        scopes: list[Scope] = []
        scope: Scope | None = self.current.scope
        while scope is not None:
            scopes.append(scope)
            scope = scope.parent
        return scopes

    def locals(self, frame: int | None = None, level: int = 0) -> dict[str, str]:
        """Return the variables of an activation, with `..` resolved.

        A RETURN or EXCEPTION frame shows no variables, so it has those of the previous frame of its activation.

        Args:
            frame: Index of a frame. Defaults to the current one.
            level: Activation at that frame: 0 is the innermost, 1 its caller.

        Raises:
            DebuggerError: There is no such frame or level.
        """
        scope: Scope | None = self._at(frame).scope
        for _ in range(level):
            scope = scope and scope.parent
        if scope is None or level < 0:
            raise DebuggerError(f"there is no level {level} of the stack")
        return dict(scope.state)

    def print(self, expression: str, level: int = 0) -> str:
        """Return the text of a variable or of one of its elements, such as `a`, `a[0]` or `a['k'][-1]`.

        No code is evaluated. Only values that are Python literals have elements.

        Raises:
            DebuggerError: The expression is of another form, or there is no such variable or element.
        """
        name, keys = _path(expression)
        state = self.locals(level=level)
        if name not in state:
            raise DebuggerError(f"no variable {name!r} here; variables: {', '.join(state) or 'none'}")
        return _element(state[name], keys) if keys else state[name]

    # ---- going forward

    def step(self) -> Stop:
        """Go to the next frame."""
        return self._run(lambda step: True)

    def next(self) -> Stop:
        """Go to the next frame that is not inside a deeper call, or to a breakpoint before it."""
        depth = self.current.scope.depth
        return self._run(lambda step: step.scope.depth <= depth)

    def out(self) -> Stop:
        """Go to the RETURN frame of the current activation, or to a breakpoint before it; from there, one frame on.

        The next frame of the caller would not show the return value.
        """
        depth = self.current.scope.depth
        if self.current.frame.event == "return":
            return self.step()
        return self._run(lambda step: step.scope.depth <= depth and step.frame.event == "return")

    def continue_to(self, line: int | None = None) -> Stop:
        """Go to the next breakpoint or to `line`; raise `DebuggerError` if no frame can be on that line."""
        if line is not None:
            self._check_line(line)
        return self._run(lambda step: line is not None and _arrives(step, line))

    # ---- going back, and changing the prediction

    def back(self, n: int = 1) -> Stop:
        """Go back `n` frames, at most to the first; going forward again replays the frames."""
        self.position = max(self.position - max(n, 0), 0)
        return Stop(StopReason.STEP)

    def back_to_breakpoint(self) -> Stop:
        """Go back to the previous frame at a breakpoint, or to the first frame; do not count hits."""
        while self.position > 0:
            self.position -= 1
            if any(_arrives(self.current, line) for line in self.breakpoints):
                return Stop(StopReason.BREAKPOINT)
        return Stop(StopReason.STEP, "the first frame")

    def restart(self, seed: int | None = None, temperature: float | None = None, *, frame: int | None = None) -> Stop:
        """Go to a frame, discard the frames after it, and predict another sample from there.

        Args:
            seed: Number of the sample. Defaults to the next one.
            temperature: Sampling temperature; None keeps it, but changes 0, at which all samples are equal, to 1.
            frame: Index of the frame. Defaults to the current one.

        Raises:
            DebuggerError: There is no such frame.
        """
        self.position = self._at(frame).index
        self._forget_ahead()
        self.seed = self.seed + 1 if seed is None else seed
        self.temperature = (self.temperature or 1.0) if temperature is None else temperature
        return Stop(StopReason.STEP, f"sample {self.seed} at temperature {self.temperature:g}")

    def set(self, name: str, value: str) -> None:
        """Set the text of a variable in the current frame, discard the frames after it, and predict from there.

        Only the LOCALS of this frame are encoded again.

        Raises:
            DebuggerError: The frame shows no variables or has none of this name, or the value is empty or `..`, which
                means "unchanged".
        """
        step = self.current
        if step.frame.locals is None:
            raise DebuggerError(f"a {step.frame.event} frame has no variables to set; go to a call or line frame")
        if name not in step.scope.state:
            raise DebuggerError(f"no variable {name!r} here; variables: {', '.join(step.scope.state) or 'none'}")
        if value in ("", UNCHANGED):
            raise DebuggerError(f"a value cannot be {value!r}")
        written = step.frame.locals | {name: value}
        if step.frame.event == "line" and self._before(step).get(name) == value:
            written[name] = UNCHANGED
        action = int(np.argmax(step.ids == self.tokenizer.special_tokens[ACTION_SEP]))
        ids = np.concatenate([step.ids[:1], self.tokenizer.encode(json.dumps(written)), step.ids[action:]])
        frame = self.tokenizer.parse_trace(ids).frames[0]
        previous = self._steps[self.position - 1] if self.position else None
        edited = self._step(frame, ids, np.full(len(ids), np.nan, np.float32), previous)
        self._forget_ahead()
        self._steps[self.position] = replace(edited, is_edited=True)

    # ---- breakpoints

    def break_at(self, line: int, ignore: int = 0) -> Breakpoint:
        """Set a breakpoint that stops at each arrival at a line after the first `ignore` arrivals.

        A frame whose text may be on several lines counts as an arrival at each of them.

        Raises:
            DebuggerError: No frame can be on that line.
        """
        self._check_line(line)
        self.breakpoints[line] = Breakpoint(line, ignore)
        return self.breakpoints[line]

    # ---- verification

    def verify(
        self, *, sandbox: machines.Sandbox = "bubblewrap", limits: machines.Limits = DEFAULT_LIMITS
    ) -> Verification:
        """Run and record the program in a sandbox, and find the first predicted frame that differs.

        The program sees the Python packages of this process, but no files beside it. It runs without the changes of
        `set`.

        Raises:
            SandboxError: The sandbox does not work on this machine, or failed.
            DebuggerError: The program left no trace: its module body failed, it ended its process, or it hit a limit.
        """
        predicted = [step.frame for step in self._steps]
        check_sandbox(sandbox)
        outcome = record_program(
            self.code,
            self.call,
            max_frames=len(predicted) + 1,
            limits=limits,
            sandbox=sandbox,
            paths=installed_packages(),
        )
        if outcome.value is None:
            raise DebuggerError(f"the program left no trace: {outcome.reason}")
        real = outcome.value
        count = len(predicted)
        frames = list(real.frames)
        if not self.finished:
            frames = frames[:count]
        if real.truncated not in (None, Truncation.MAX_FRAMES):  # the real run hit a limit; it did not end earlier
            predicted = predicted[: len(frames)]
        found = differences(frames, predicted)
        return Verification(real, max(len(frames), len(predicted)), found[0] if found else None)

    # ---- predicting frames

    def _run(self, is_there: Callable[[Step], bool]) -> Stop:
        try:
            return self._forward(is_there)
        finally:
            self.interrupt.clear()

    def _forward(self, is_there: Callable[[Step], bool]) -> Stop:
        known, tokens = len(self._steps), 0
        while True:
            if self.position + 1 == len(self._steps):
                if len(self._steps) - known >= self.max_frames:
                    return Stop(
                        StopReason.LIMIT, f"{self.max_frames:,} frames predicted; repeat the command to continue"
                    )
                if tokens >= self.max_tokens:
                    return Stop(StopReason.LIMIT, f"{tokens:,} tokens predicted; repeat the command to continue")
                if self._ending is None:
                    self._ending = self._predict()
                if self._ending is not None:
                    return self._ending
                tokens += len(self._steps[-1].ids)
            self.position += 1
            if self._count_hits():
                return Stop(StopReason.BREAKPOINT)
            if is_there(self.current):
                return Stop(StopReason.STEP)
            if self.interrupt.is_set():
                return Stop(StopReason.PAUSED, "interrupted; repeat the command to continue")

    def _count_hits(self) -> bool:
        """Count the arrival at the current frame, and return whether a breakpoint stops here."""
        stops = False
        for one in list(self.breakpoints.values()):  # an editor may change them in another thread
            if _arrives(self.current, one.line):
                one.hits += 1
                stops |= one.hits > one.ignore
        return stops

    def _predict(self) -> Stop | None:
        """Predict one more frame and append it, or return why there is none."""
        index = len(self._steps)
        # With one seed for all frames, each would draw the same random numbers.
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        ids, logprobs = self.source.next_frame(self.ids, seed, self.temperature)
        parsed = self.tokenizer.parse_trace(ids)
        if parsed.complete and not parsed.frames:
            return Stop(StopReason.END, "the predicted program has ended")
        if parsed.error is None and len(parsed.frames) == 1 and not parsed.complete:
            ids, logprobs = np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)
            self._steps.append(self._step(parsed.frames[0], ids, logprobs, self._steps[-1]))
            return None
        reason = parsed.error or f"expected one frame, got {len(parsed.frames)}"
        if len(ids) == 0 or ids[-1] not in self._ends:
            reason += f", cut after {len(ids):,} tokens"
        text = self.tokenizer.decode([token for token in ids if 0 <= token < self.tokenizer.vocab_size])
        shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
        return Stop(StopReason.MALFORMED, f"the prediction for frame {index:,} is not a frame: {reason}: {shown!r}")

    def _step(self, frame: Frame, ids: np.ndarray, logprobs: np.ndarray, previous: Step | None) -> Step:
        index = 0 if previous is None else previous.index + 1
        return Step(index, frame, ids, logprobs, self._scope(frame, index, previous))

    def _scope(self, frame: Frame, index: int, previous: Step | None) -> Scope:
        """Return the activation of a frame: CALL opens one; the other events belong to the innermost open one."""
        outer = _open_scope(previous)
        line = frame.line
        if frame.event == "call":
            places = self.program.call(line)
            depth = 1 if outer is None else outer.depth + 1
            return Scope(self.program.name(places), depth, _resolve(frame, {}), places, index, outer)
        if outer is None:  # no program does this, only a model: the frame belongs to no activation
            return Scope("?", 0, _resolve(frame, {}), self.program.call(line), index, None)
        if frame.event != "line":
            places = self.program.stay(outer.places, line)
        elif previous is not None and previous.frame.event == "exception":  # a handler may be on any line
            places = self.program.within(outer.places, line)
        else:
            places = self.program.follow(outer.places, line)
        state = _resolve(frame, outer.state)
        return replace(outer, function=self.program.name(places), state=state, places=places)

    def _at(self, frame: int | None) -> Step:
        if frame is None:
            return self.current
        if not 0 <= frame < len(self._steps):
            raise DebuggerError(f"there is no frame {frame}; expected 0 to {len(self._steps) - 1:,}")
        return self._steps[frame]

    def _before(self, step: Step) -> Mapping[str, str]:
        """Return the variables to which `..` refers in this frame."""
        outer = _open_scope(self._steps[step.index - 1]) if step.index else None
        return {} if outer is None else outer.state

    def _forget_ahead(self) -> None:
        del self._steps[self.position + 1 :]
        self._ending = None

    def _check_line(self, line: int) -> None:
        if not self.program.can_stop(line):
            raise DebuggerError(f"no frame can be on line {line}: it has no code inside a function")


def _open_scope(step: Step | None) -> Scope | None:
    """Return the innermost activation that is open after a frame."""
    if step is None or step.scope.depth == 0:
        return None
    return step.scope.parent if step.frame.event == "return" else step.scope


def _resolve(frame: Frame, before: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables at a frame whose activation had the variables `before`."""
    written = frame.locals
    if written is None:
        return before
    # A coarser trace omits variables and marks this with `..` as its first pair.
    leaves_out = frame.event == "line" and next(iter(written.items()), None) == ("..", UNCHANGED) and ".." not in before
    if leaves_out:
        del written[".."]
    shown = {name: before.get(name, UNCHANGED) if value == UNCHANGED else value for name, value in written.items()}
    return {**before, **shown} if leaves_out else shown


def _arrives(step: Step, line: int) -> bool:
    """Return whether a frame may arrive at a line; RETURN and EXCEPTION frames are there already."""
    return step.frame.event in ("call", "line") and line in step.scope.lines


def _path(expression: str) -> tuple[str, list[object]]:
    """Return `a[0]['k']` as ("a", [0, "k"])."""
    refusal = DebuggerError(f"{expression[:80]!r}: expected a variable or an element of one; expressions do not work")
    try:
        node = ast.parse(expression.strip(), mode="eval").body
        keys: list[object] = []
        while isinstance(node, ast.Subscript):
            keys.append(ast.literal_eval(node.slice))
            node = node.value
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise refusal from None
    if not isinstance(node, ast.Name):
        raise refusal
    return node.id, keys[::-1]


def _element(text: str, keys: list[object]) -> str:
    try:
        value = machines.evaluate_literal(text)
        for key in keys:
            value = value[key]  # type: ignore[index]
    except (ValueError, TypeError, LookupError) as error:
        raise DebuggerError(f"no such element: {error}") from None
    return repr(value)
