"""A debugger of predicted execution: a program is stepped through by asking a model for one frame after the other."""

from __future__ import annotations

import ast
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .. import machines
from ..inference.lines import Places, ProgramLines
from ..inference.prediction import trace_prompt
from ..machines.programs import DEFAULT_LIMITS, check_sandbox, installed_packages, record_program
from ..tokenizer import Tokenizer
from ..trace import Trace, Truncation, source_context
from ..view import Difference, differences
from .frames import FrameSource, frame_ends

if TYPE_CHECKING:
    from cwm_core._native import Frame

Reason = Literal["step", "breakpoint", "end", "malformed", "limit", "paused"]

UNCHANGED = ".."
_SHOWN_CHARS = 300


# Run in the sandbox: records the program that standard input names into a file of the working folder.
class DebuggerError(Exception):
    """What was asked cannot be done where the debugger stands; says why."""


@dataclass(frozen=True, eq=False)
class Scope:
    """An activation as of one frame of it."""

    function: str
    """Qualified name of the function, as far as the program's text tells."""
    depth: int
    """1 for the outermost activation; 0 for what a model wrote outside any."""
    state: Mapping[str, str]
    """Its variables, `..` resolved; one that refers to nothing is kept as `..`."""
    places: Places
    entry: int
    """The index of its CALL frame."""
    parent: Scope | None = field(repr=False)

    @property
    def lines(self) -> tuple[int, ...]:
        """The line that it is on: several where the text is ambiguous, none where no line has that text."""
        return tuple(sorted({line for _, line in self.places if line >= 0}))


@dataclass(frozen=True, eq=False)
class Step:
    """A frame of the prompt, a predicted one, or one that `Debugger.set` changed."""

    index: int
    frame: Frame
    ids: np.ndarray
    """int32 [n], with the `<|frame_sep|>` that ends the frame."""
    logprobs: np.ndarray
    """float32 [n], in nats; NaN where unknown or not predicted."""
    scope: Scope
    is_edited: bool = False

    @property
    def probability(self) -> float | None:
        """What the model gave to this frame, all its tokens together; None where a token's is not known."""
        total = float(self.logprobs.sum())
        return None if math.isnan(total) else math.exp(total)


@dataclass(frozen=True)
class Stop:
    """Why a command ended where it did."""

    reason: Reason
    """`end`: the trace has no further frame. `malformed`: what the model wrote after it is no frame."""
    message: str = ""


@dataclass
class Breakpoint:
    """A line to stop at."""

    line: int
    ignore: int = 0
    """So many arrivals are passed by first."""
    hits: int = 0
    """Arrivals so far, by any command that goes forward."""


@dataclass(frozen=True)
class Verification:
    """Predicted frames beside those of a real run."""

    real: Trace
    """As many frames as were predicted, and one more if there is one."""
    compared: int
    """Frames that were compared."""
    difference: Difference | None
    """The first, if any."""

    def __str__(self) -> str:
        """One sentence."""
        if self.difference is None:
            return f"{self.compared:,} frames are as in reality"
        return f"frame {self.difference.index:,} departs from reality: {self.difference}"


class Debugger:
    """Steps through the predicted execution of the expression `call` in the module `code`.

    Frames are predicted as they are needed and kept: going back and forward again predicts nothing. Nothing of the
    program is run, but by `verify`. Lines have the numbers that they have in `code`; `main()`, the entry, has those
    after its last.

    Each command goes on until what it waits for, the end, a frame that is not well formed, or a limit: `max_frames`
    predicted frames or `max_tokens` predicted tokens. It can be interrupted (KeyboardInterrupt, or an error of the
    source) and loses no whole frame.
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
        """Stand at the first frame, the call of `main()`. Raises ValueError as `trace_prompt`."""
        self.source, self.tokenizer, self.code, self.call = source, tokenizer, code, call
        self.seed, self.temperature = seed, temperature
        self.max_frames, self.max_tokens = max_frames, max_tokens
        self.program = ProgramLines(source_context(code, call))
        self.breakpoints: dict[int, Breakpoint] = {}
        self.position = 0
        """The index of the frame that the debugger stands at."""
        self._ends = frame_ends(tokenizer)
        self.interrupt = threading.Event()
        """Set, from a handler of signals or another thread, it stops the running command after the current frame."""
        self._ending: Stop | None = None
        prompt = trace_prompt(tokenizer, code, call)
        first = int(np.argmax(prompt == self._ends[0])) + 1
        self._context, ids = prompt[:first], prompt[first:]
        frame = tokenizer.parse_trace(ids).frames[0]
        self._steps = [self._step(frame, ids, np.full(len(ids), np.nan, np.float32), None)]

    # ---- where it stands

    @property
    def current(self) -> Step:
        """The frame that the debugger stands at."""
        return self._steps[self.position]

    @property
    def steps(self) -> Sequence[Step]:
        """The frames so far, those ahead of the current one after `back` included."""
        return tuple(self._steps)

    @property
    def ids(self) -> np.ndarray:
        """int32 [n]: the tokens of the context and of all frames so far."""
        return np.concatenate([self._context, *(step.ids for step in self._steps)])

    @property
    def finished(self) -> bool:
        """Whether the end of the trace was predicted after the frames so far."""
        return self._ending is not None and self._ending.reason == "end"

    def where(self) -> list[Scope]:
        """The activations open at the current frame, innermost first."""
        scopes, scope = [], self.current.scope
        while scope is not None:
            scopes.append(scope)
            scope = scope.parent
        return scopes

    def locals(self, frame: int | None = None, level: int = 0) -> dict[str, str]:
        """The variables of an activation, `..` resolved: `level` 0 is the innermost one open at `frame`, 1 its caller.

        `frame` is an index; None is the current one. At a RETURN or EXCEPTION frame they are those of the frame before
        it in the same activation, which is all that a trace tells. Raises `DebuggerError` for a frame or level that
        does not exist.
        """
        scope: Scope | None = self._at(frame).scope
        for _ in range(level):
            scope = scope and scope.parent
        if scope is None or level < 0:
            raise DebuggerError(f"there is no level {level} of the stack")
        return dict(scope.state)

    def print(self, expression: str, level: int = 0) -> str:
        """The text of a variable, or of an element of one: `a`, `a[0]`, `a['k'][-1]`. Nothing is evaluated.

        Elements are those of values that are Python literals. Raises `DebuggerError` for anything else.
        """
        name, keys = _path(expression)
        state = self.locals(level=level)
        if name not in state:
            raise DebuggerError(f"no variable {name!r} here; there are: {', '.join(state) or 'none'}")
        return _element(state[name], keys) if keys else state[name]

    # ---- going forward

    def step(self) -> Stop:
        """To the next frame."""
        return self._run(lambda step: True)

    def next(self) -> Stop:
        """To the next frame that is no deeper in calls than the current one, or a breakpoint before it."""
        depth = self.current.scope.depth
        return self._run(lambda step: step.scope.depth <= depth)

    def out(self) -> Stop:
        """To the RETURN frame of the current activation, or a breakpoint before it; from there, to the next frame.

        A trace shows the caller again only at its next line, which would leave out what was returned.
        """
        depth = self.current.scope.depth
        if self.current.frame.event == "return":
            return self.step()
        return self._run(lambda step: step.scope.depth <= depth and step.frame.event == "return")

    def continue_to(self, line: int | None = None) -> Stop:
        """To a breakpoint, or to this line. Raises `DebuggerError` for a line where no frame can be."""
        if line is not None:
            self._check_line(line)
        return self._run(lambda step: line is not None and _arrives(step, line))

    # ---- going back, and on in another way

    def back(self, n: int = 1) -> Stop:
        """`n` frames back, or to the first. They are kept: going forward again replays them."""
        self.position = max(self.position - max(n, 0), 0)
        return Stop("step")

    def back_to_breakpoint(self) -> Stop:
        """Back to the last frame before this one that is at a breakpoint, or to the first. Counts no hits."""
        while self.position > 0:
            self.position -= 1
            if any(_arrives(self.current, line) for line in self.breakpoints):
                return Stop("breakpoint")
        return Stop("step", "the first frame")

    def restart(self, seed: int | None = None, temperature: float | None = None, *, frame: int | None = None) -> Stop:
        """Forget what comes after a frame (None: the current one), stand there, and predict it anew.

        `seed` None is the next one; `temperature` None stays, but becomes 1 if it was 0, where all samples are equal.
        Raises `DebuggerError` for a frame that does not exist.
        """
        self.position = self._at(frame).index
        self._forget_ahead()
        self.seed = self.seed + 1 if seed is None else seed
        self.temperature = (self.temperature or 1.0) if temperature is None else temperature
        return Stop("step", f"sample {self.seed} at temperature {self.temperature:g}")

    def set(self, name: str, value: str) -> None:
        """Make a variable of the current frame have this text as its value, and forget what comes after.

        What is predicted from here on follows from it. Only the LOCALS of this frame are encoded anew.

        Raises:
            DebuggerError: the frame shows no variables, or none of this name; or the text is `..`, which would mean
                that it did not change.
        """
        step = self.current
        if step.frame.locals is None:
            raise DebuggerError(f"a {step.frame.event} frame has no variables to set; go to one of a call or a line")
        if name not in step.scope.state:
            raise DebuggerError(f"no variable {name!r} here; there are: {', '.join(step.scope.state) or 'none'}")
        if value in ("", UNCHANGED):
            raise DebuggerError(f"a value cannot be {value!r}")
        written = step.frame.locals | {name: value}
        if step.frame.event == "line" and self._before(step).get(name) == value:
            written[name] = UNCHANGED
        action = int(np.argmax(step.ids == self.tokenizer.special_tokens["<|action_sep|>"]))
        ids = np.concatenate([step.ids[:1], self.tokenizer.encode(json.dumps(written)), step.ids[action:]])
        frame = self.tokenizer.parse_trace(ids).frames[0]
        previous = self._steps[self.position - 1] if self.position else None
        edited = self._step(frame, ids, np.full(len(ids), np.nan, np.float32), previous)
        self._forget_ahead()
        self._steps[self.position] = replace(edited, is_edited=True)

    # ---- breakpoints

    def break_at(self, line: int, ignore: int = 0) -> Breakpoint:
        """Stop at each arrival at a line, or where an ambiguous text may be it, after `ignore` arrivals.

        Raises `DebuggerError` for a line where no frame can be.
        """
        self._check_line(line)
        self.breakpoints[line] = Breakpoint(line, ignore)
        return self.breakpoints[line]

    # ---- reality

    def verify(
        self, *, backend: machines.Sandbox = "bubblewrap", limits: machines.Limits = DEFAULT_LIMITS
    ) -> Verification:
        """Run the program in a sandbox, record it, and say where the frames so far first differ from it.

        The program sees the Python packages that this process has, and none of the files beside it. With frames that
        `set` changed, the real run is that of the program without the change.

        Raises:
            SandboxError: the sandbox is not possible here, or broke down.
            DebuggerError: the program gave no trace: its module body failed, or it ended itself or hit a limit.
        """
        predicted = [step.frame for step in self._steps]
        check_sandbox(backend)
        outcome = record_program(
            self.code,
            self.call,
            max_frames=len(predicted) + 1,
            limits=limits,
            backend=backend,
            paths=installed_packages(),
        )
        if outcome.value is None:
            raise DebuggerError(f"the program gave no trace: {outcome.reason}")
        real = outcome.value
        count = len(predicted)
        frames = list(real.frames)
        if not self.finished:
            frames = frames[:count]
        if real.truncated not in (None, Truncation.MAX_FRAMES):  # reality was too slow, not shorter
            predicted = predicted[: len(frames)]
        found = differences(frames, predicted)
        return Verification(real, max(len(frames), len(predicted)), found[0] if found else None)

    # ---- how frames come about

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
                    return Stop("limit", f"{self.max_frames:,} frames predicted; the same command goes on")
                if tokens >= self.max_tokens:
                    return Stop("limit", f"{tokens:,} tokens predicted; the same command goes on")
                if self._ending is None:
                    self._ending = self._predict()
                if self._ending is not None:
                    return self._ending
                tokens += len(self._steps[-1].ids)
            self.position += 1
            if self._count_hits():
                return Stop("breakpoint")
            if is_there(self.current):
                return Stop("step")
            if self.interrupt.is_set():
                return Stop("paused", "interrupted; the same command goes on")

    def _count_hits(self) -> bool:
        """Count the arrival at the current frame; whether a breakpoint stops here."""
        stops = False
        for one in list(self.breakpoints.values()):  # an editor may change them meanwhile
            if _arrives(self.current, one.line):
                one.hits += 1
                stops |= one.hits > one.ignore
        return stops

    def _predict(self) -> Stop | None:
        """Ask for one more frame and append it, all or nothing; or why there is none."""
        index = len(self._steps)
        # Each frame draws its own random numbers: with one seed for all, they would be the same for each.
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        ids, logprobs = self.source.next_frame(self.ids, seed, self.temperature)
        parsed = self.tokenizer.parse_trace(ids)
        if parsed.complete and not parsed.frames:
            return Stop("end", "the predicted program has ended")
        if parsed.error is None and len(parsed.frames) == 1 and not parsed.complete:
            ids, logprobs = np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)
            self._steps.append(self._step(parsed.frames[0], ids, logprobs, self._steps[-1]))
            return None
        reason = parsed.error or f"{len(parsed.frames)} frames where one was asked for"
        if len(ids) == 0 or ids[-1] not in self._ends:
            reason += f", cut after {len(ids):,} tokens"
        text = self.tokenizer.decode([token for token in ids if 0 <= token < self.tokenizer.vocab_size])
        shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
        return Stop("malformed", f"what was predicted as frame {index:,} is no frame: {reason}: {shown!r}")

    def _step(self, frame: Frame, ids: np.ndarray, logprobs: np.ndarray, previous: Step | None) -> Step:
        index = 0 if previous is None else previous.index + 1
        return Step(index, frame, ids, logprobs, self._scope(frame, index, previous))

    def _scope(self, frame: Frame, index: int, previous: Step | None) -> Scope:
        """The activation of a frame: CALL opens one, RETURN is the last of its own, the rest is of the innermost."""
        outer = _open_scope(previous)
        line = frame.line
        if frame.event == "call":
            places = self.program.call(line)
            depth = 1 if outer is None else outer.depth + 1
            return Scope(self.program.name(places), depth, _resolve(frame, {}), places, index, outer)
        if outer is None:  # a model wrote it, no program: it belongs to no activation, and nothing can refer to it
            return Scope("?", 0, _resolve(frame, {}), self.program.call(line), index, None)
        if frame.event != "line":
            places = self.program.stay(outer.places, line)
        elif previous is not None and previous.frame.event == "exception":  # handlers are wherever they are
            places = self.program.within(outer.places, line)
        else:
            places = self.program.follow(outer.places, line)
        state = _resolve(frame, outer.state)
        return replace(outer, function=self.program.name(places), state=state, places=places)

    def _at(self, frame: int | None) -> Step:
        if frame is None:
            return self.current
        if not 0 <= frame < len(self._steps):
            raise DebuggerError(f"there is no frame {frame}: there are {len(self._steps):,} so far, from 0")
        return self._steps[frame]

    def _before(self, step: Step) -> Mapping[str, str]:
        """The variables that `..` in this frame refers to."""
        outer = _open_scope(self._steps[step.index - 1]) if step.index else None
        return {} if outer is None else outer.state

    def _forget_ahead(self) -> None:
        del self._steps[self.position + 1 :]
        self._ending = None

    def _check_line(self, line: int) -> None:
        if not self.program.can_stop(line):
            raise DebuggerError(f"no frame can be on line {line}: it has no code of a function")


def _open_scope(step: Step | None) -> Scope | None:
    """The innermost activation that is open after a frame."""
    if step is None or step.scope.depth == 0:
        return None
    return step.scope.parent if step.frame.event == "return" else step.scope


def _resolve(frame: Frame, before: Mapping[str, str]) -> Mapping[str, str]:
    """The variables at a frame whose activation had `before`."""
    written = frame.locals
    if written is None:
        return before
    # A coarser trace leaves out variables, and says so with this pair in the first place.
    leaves_out = frame.event == "line" and next(iter(written.items()), None) == ("..", UNCHANGED) and ".." not in before
    if leaves_out:
        del written[".."]
    shown = {name: before.get(name, UNCHANGED) if value == UNCHANGED else value for name, value in written.items()}
    return {**before, **shown} if leaves_out else shown


def _arrives(step: Step, line: int) -> bool:
    """Whether a frame comes to a line, as far as its text tells; RETURN and EXCEPTION frames are there already."""
    return step.frame.event in ("call", "line") and line in step.scope.lines


def _path(expression: str) -> tuple[str, list[object]]:
    """`a[0]['k']` as ("a", [0, "k"])."""
    refusal = DebuggerError(f"{expression[:80]!r} is no variable, nor an element of one: nothing is evaluated here")
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
