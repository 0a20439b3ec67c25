"""Implement `cwm debug`: debug predicted execution at a prompt or from an editor."""

from __future__ import annotations

import argparse
import cmd
import os
import pprint
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from .. import machines
from ..view.text import colorful, fit, paint, visible
from .options import (
    OK,
    add_tokenizer,
    add_verb,
    load_tokenizer,
    not_negative,
    port,
    positive,
    program,
    say,
    temperature,
    write,
)

if TYPE_CHECKING:
    from cwm_core.debugger import Debugger, Scope, Step, Stop, Verification

T = TypeVar("T")

_DIM, _RED, _CYAN, _BOLD = "2", "31", "36", "1"
_PRINTED_CHARS = 10_000
_LISTED = 5  # lines before and after the current one

# The arguments of a launch request, with their types.
_LAUNCH: dict[str, type | tuple[type, ...]] = {
    "model": str, "program": str, "call": str, "tokenizer": str, "endpoint": str, "device": str, "seed": int,
    "temperature": (int, float), "maxFrames": int, "maxTokens": int, "maxFrameTokens": int,
}  # fmt: skip


def add_debug(verbs: Any) -> None:
    """Add `cwm debug`."""
    parser = add_verb(
        verbs,
        _debug,
        "Step through the predicted execution of a call, without running the program.",
        "cwm debug sort.py --call 'bubble_sort([3, 1, 2])'\n"
        "  cwm debug runs/tiny sort.py --call 'bubble_sort([3, 1, 2])'\n"
        "  cwm debug tiny sort.py --call 'f(2)' --endpoint http://localhost:8000/v1 --tokenizer vocabulary",
        "MODEL is a model folder (default: the model in the package) or, with --endpoint, the name of a model on a\n"
        "completions server that accepts token ids, such as vLLM. The variable CWM_API_KEY holds the server's key.\n"
        "Type `help` at the prompt for the commands, which resemble pdb's. docs/guides/debug.md describes them and\n"
        "the configuration of editors.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model folder, or the model's name at --endpoint")
    parser.add_argument("program", nargs="?", metavar="FILE", help="Python file that defines the names in EXPR")
    parser.add_argument("--call", metavar="EXPR", help="expression to predict, such as 'f(3)'")
    add_tokenizer(parser)
    parser.add_argument("--endpoint", metavar="URL", help="server of the model, such as http://localhost:8000/v1")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="number of the sample (default: 0)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, metavar="T", help="sampling temperature (default: 0)"
    )
    parser.add_argument(
        "--max-frames",
        type=positive,
        default=1000,
        metavar="N",
        help="maximum frames that a command predicts (default: 1000)",
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=1 << 16,
        metavar="N",
        help="maximum tokens that a command predicts (default: 65536)",
    )
    parser.add_argument(
        "--max-frame-tokens", type=positive, default=4096, metavar="N", help="maximum tokens of a frame (default: 4096)"
    )
    parser.add_argument(
        "--dap", action="store_true", help="serve the Debug Adapter Protocol on standard input and output"
    )
    parser.add_argument("--port", type=port, metavar="N", help="with --dap, serve one client on this port of 127.0.0.1")


def _debug(args: argparse.Namespace) -> int:
    if args.port is not None and not args.dap:
        args.error("--port needs --dap")
    if args.dap:
        return _serve(args)
    if args.program is None:  # the only positional argument is FILE
        args.model, args.program = None, args.model
    if args.program is None or args.call is None:
        args.error("FILE and --call are required, except with --dap, where the editor sends them")
    Prompt(_open(args), os.path.basename(args.program)).run()
    return OK


def _open(args: argparse.Namespace) -> Debugger:
    """Create a debugger from the arguments; raise OSError, SyntaxError or ValueError if they are invalid."""
    from cwm_core import debugger

    code = program(args.program, args.call)
    vocabulary = None if args.tokenizer is None else Path(args.tokenizer)
    options = {name: getattr(args, name) for name in ("seed", "temperature", "max_frames", "max_tokens")}
    if args.endpoint is not None:
        if args.model is None:
            raise ValueError("--endpoint needs MODEL, the model's name on the server")
        if vocabulary is None:
            raise ValueError("--endpoint needs --tokenizer, the model's vocabulary")
        tokenizer = load_tokenizer(vocabulary)
        key = os.environ.get("CWM_API_KEY")
        source: Any = debugger.ServerFrames(
            args.endpoint, args.model, tokenizer, api_key=key, max_frame_tokens=args.max_frame_tokens
        )
    else:
        from .models import chosen_model, load_engine

        engine = load_engine(chosen_model(args), args.device, vocabulary)
        source = debugger.EngineFrames(engine, max_frame_tokens=args.max_frame_tokens)
        tokenizer = engine.tokenizer
    return debugger.Debugger(source, tokenizer, code, args.call, **options)


# ---- for editors


def _serve(args: argparse.Namespace) -> int:
    from cwm_core.debugger.dap import Adapter

    def launch(asked: Mapping[str, Any]) -> Debugger:
        return _open(_launch_arguments(args, asked))

    if args.port is None:
        with _standard_streams() as (reader, writer):
            Adapter(reader, writer, launch).serve()
        return OK
    with socket.create_server(("127.0.0.1", args.port)) as server:
        say(args, f"waiting for a client on 127.0.0.1, port {server.getsockname()[1]}")
        connection, _ = server.accept()
    with connection, connection.makefile("rb") as reader, connection.makefile("wb") as writer:
        Adapter(reader, writer, launch).serve()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    return OK


def _launch_arguments(args: argparse.Namespace, asked: Mapping[str, Any]) -> argparse.Namespace:
    """Return the arguments of the command line, updated by a launch request; ignore other keys of the editor."""
    merged = vars(args).copy()
    for name, kind in _LAUNCH.items():
        value = asked.get(name)
        if value is None:
            continue
        is_of_kind = isinstance(value, kind) and not isinstance(value, bool)
        minimum = 1 if name.startswith("max") else 0
        if not is_of_kind or (isinstance(value, int | float) and value < minimum):
            raise ValueError(f"launch: invalid {name}: {value!r}")
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
        merged[snake] = value
    for name in ("program", "call"):
        if merged[name] is None:
            raise ValueError(f"launch: {name} is missing")
    return argparse.Namespace(**merged)


@contextmanager
def _standard_streams() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Reserve standard input and output for the protocol; other output goes to standard error."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with os.fdopen(output, "wb", closefd=False) as writer:
            yield sys.stdin.buffer, writer
    finally:
        os.dup2(output, sys.stdout.fileno())
        os.close(output)


# ---- for people


class Prompt(cmd.Cmd):
    """The debugger's prompt, with commands named as in pdb; an empty line repeats the last command."""

    def __init__(self, debugger: Debugger, file: str) -> None:
        """Show frames of `debugger`, with `file` as the name of the program."""
        super().__init__()
        self.debugger, self.file, self.level = debugger, file, 0
        self.paint = paint if colorful() else lambda text, code: text
        self.prompt = "(cwm) " if sys.stdin.isatty() else ""
        self.use_rawinput = sys.stdin.isatty()

    def run(self) -> None:
        """Read commands until `quit` or the end of the input; Ctrl-C at the prompt raises KeyboardInterrupt."""
        self._show()
        self.cmdloop()

    def onecmd(self, line: str) -> bool:
        """Run a command, and print the error if it fails."""
        from cwm_core.debugger import DebuggerError, SourceError

        try:
            return bool(super().onecmd(line))
        except (DebuggerError, SourceError, machines.SandboxError, OSError, ValueError) as error:
            self._print(f"*** {error}", _RED)
            return False

    def default(self, line: str) -> bool:  # type: ignore[override]  # `cmdloop` uses the result; typeshed says None
        """Run the short form of a command, or end at the end of the input."""
        name, argument, _ = self.parseline(line)
        if line == "EOF":
            return True
        if name not in _SHORT:
            self._say(f"*** unknown command {line.split(maxsplit=1)[0]!r}; type help for a list", _RED)
            return False
        return bool(getattr(self, f"do_{_SHORT[name]}")(argument or ""))

    def do_help(self, arg: str) -> None:
        """[COMMAND]: describe a command, or all."""
        shorts: dict[str, list[str]] = {}
        for short, name in _SHORT.items():
            shorts.setdefault(name, []).append(short)
        for name in (_SHORT.get(arg, arg),) if arg else _COMMANDS:
            if name not in _COMMANDS:
                raise ValueError(f"unknown command {name!r}")
            write(f"{', '.join([name, *shorts.get(name, [])]):<18} {getattr(self, f'do_{name}').__doc__}\n")

    # ---- moving

    def do_step(self, arg: str) -> None:
        """Go to the next frame."""
        self._go(self.debugger.step)

    def do_next(self, arg: str) -> None:
        """Go to the next frame that is not inside a deeper call."""
        self._go(self.debugger.next)

    def do_out(self, arg: str) -> None:
        """Go to the return of the current function."""
        self._go(self.debugger.out)

    def do_continue(self, arg: str) -> None:
        """[LINE]: go to that line, a breakpoint, or the end."""
        line = _number(arg) if arg else None
        self._go(lambda: self.debugger.continue_to(line))

    def do_back(self, arg: str) -> None:
        """[N]: go back N frames (default: 1); going forward again replays them."""
        count = _number(arg) if arg else 1
        self._go(lambda: self.debugger.back(count))

    def do_reverse(self, arg: str) -> None:
        """Go back to the previous breakpoint, or to the first frame."""
        self._go(self.debugger.back_to_breakpoint)

    def do_restart(self, arg: str) -> None:
        """[first] [SEED [TEMPERATURE]]: discard what follows this frame, or the first, and predict another sample."""
        words = arg.split()
        frame = 0 if words[:1] == ["first"] else None
        words = words[frame == 0 :]
        seed = _number(words[0]) if words else None
        value = _parsed(temperature, words[1]) if len(words) > 1 else None
        self._go(lambda: self.debugger.restart(seed, value, frame=frame))

    def do_set(self, arg: str) -> None:
        """NAME = VALUE: set a variable in this frame, discard what follows, and predict from there."""
        name, equals, value = arg.partition("=")
        if not equals:
            raise ValueError("expected set NAME = VALUE")
        self.debugger.set(name.strip(), value.strip())
        self._show()

    # ---- breakpoints

    def do_break(self, arg: str) -> None:
        """[LINE [N]]: stop at a line after ignoring N arrivals; without LINE, list the breakpoints."""
        if arg:
            line, _, ignore = arg.partition(" ")
            self.debugger.break_at(_number(line), _number(ignore) if ignore else 0)
        for one in self.debugger.breakpoints.values():
            passed = f", ignored {one.ignore} times" if one.ignore else ""
            self._say(f"{self.file}:{one.line}, reached {one.hits} times{passed}")

    def do_clear(self, arg: str) -> None:
        """[LINE]: remove a breakpoint, or all."""
        if not arg:
            self.debugger.breakpoints.clear()
        elif self.debugger.breakpoints.pop(_number(arg), None) is None:
            raise ValueError(f"no breakpoint at line {arg}")

    # ---- inspecting

    def do_print(self, arg: str) -> None:
        """[NAME or NAME[KEY]...]: show a variable or an element of one; without NAME, show all variables."""
        if arg:
            self._print(self.debugger.print(arg, self.level))
        else:
            for name, value in self.debugger.locals(level=self.level).items():
                self._say(f"{name} = {value}")

    def do_pp(self, arg: str) -> None:
        """NAME: show a variable as print does, and pretty-print a literal."""
        text = self.debugger.print(arg, self.level)
        with suppress(ValueError):
            text = pprint.pformat(machines.evaluate_literal(text), width=self._width())
        for line in text[:_PRINTED_CHARS].split("\n"):
            self._say(line)

    def do_where(self, arg: str) -> None:
        """Show the stack, innermost function last."""
        scopes = self.debugger.where()
        for level in reversed(range(len(scopes))):
            self._say(("> " if level == self.level else "  ") + self._place(scopes[level]))

    def do_up(self, arg: str) -> None:
        """Select the caller, to show its variables."""
        self._look(self.level + 1)

    def do_down(self, arg: str) -> None:
        """Select the called function, to show its variables."""
        self._look(self.level - 1)

    def do_list(self, arg: str) -> None:
        """[LINE]: show the program around a line, or around the current one."""
        texts = self.debugger.program.texts
        current = self.debugger.where()[self.level].lines
        around = _number(arg) if arg else current[0] if current else 1
        for number in range(max(around - _LISTED, 1), min(around + _LISTED + 1, len(texts))):
            mark = ("B" if number in self.debugger.breakpoints else " ") + ("->" if number in current else "  ")
            row = f"{number:>{len(str(len(texts)))}} {mark} {texts[number].rstrip().expandtabs(4)}"
            self._say(row.rstrip(), _BOLD if number in current else "")

    def do_verify(self, arg: str) -> None:
        """[process]: run the program in a sandbox and show the first difference; 'process' does not isolate."""
        if arg not in ("", "process"):
            raise ValueError("expected verify or verify process, which does not isolate the program")
        found = self.debugger.verify(sandbox="process" if arg else "bubblewrap")
        self._say(str(found), _RED if found.difference else "")
        for row in _departure(self.debugger, found):
            self._print("  " + row)

    def do_quit(self, arg: str) -> bool:
        """End the debugger."""
        return True

    # ---- output

    def _go(self, command: Callable[[], Stop]) -> None:
        with self._interruptible():
            stop = command()
        self.level = 0
        self._show()
        if stop.message:
            self._print(stop.message, _RED if stop.reason == "malformed" else _DIM)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Make Ctrl-C stop the command after the current frame, and a second Ctrl-C end the debugger."""

        def stop(*_: object) -> None:
            if self.debugger.interrupt.is_set():
                raise KeyboardInterrupt
            self.debugger.interrupt.set()

        self.debugger.interrupt.clear()
        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _look(self, level: int) -> None:
        self.debugger.locals(level=level)
        self.level = level
        self._say("> " + self._place(self.debugger.where()[level]))

    def _show(self) -> None:
        """Show the place and the line of the current frame, and the changed variables."""
        step, frame = self.debugger.current, self.debugger.current.frame
        head = f"> {self._place(step.scope)}"
        self._say(f"{head}  frame {step.index} {frame.event}  {_origin(step)}", _DIM)
        self._say("-> " + frame.line.strip())
        if frame.locals is None:
            self._say(f"   {'returned' if frame.event == 'return' else 'raised'} {frame.arg}", _CYAN)
        changed = [f"{name} = {step.scope.state[name]}" for name, text in (frame.locals or {}).items() if text != ".."]
        if changed:
            self._say("   " + ", ".join(changed), _CYAN)

    def _place(self, scope: Scope) -> str:
        lines = " or ".join(map(str, scope.lines[:3])) + (" or ..." if len(scope.lines) > 3 else "")
        return f"{self.file}:{lines or '?'} in {scope.function}"

    def _print(self, text: str, color: str = "") -> None:
        """Print a text up to a limit."""
        shown = text if len(text) <= _PRINTED_CHARS else text[:_PRINTED_CHARS] + "..."
        write(self.paint(visible(shown), color) + "\n")

    def _say(self, text: str, color: str = "") -> None:
        """Print a text, cut to one row of the terminal."""
        write(self.paint(fit(visible(text[:_PRINTED_CHARS]), self._width()), color) + "\n")

    def _width(self) -> int:
        return max(shutil.get_terminal_size((100, 24)).columns, 40)


_COMMANDS = [
    "step", "next", "out", "continue", "back", "reverse", "restart", "set", "break", "clear", "print", "pp", "where",
    "up", "down", "list", "verify", "quit", "help",
]  # fmt: skip
_SHORT = {
    "s": "step", "n": "next", "r": "out", "return": "out", "c": "continue", "cont": "continue", "b": "break",
    "cl": "clear", "p": "print", "w": "where", "bt": "where", "u": "up", "d": "down", "l": "list", "rc": "reverse",
    "q": "quit", "exit": "quit", "h": "help",
}  # fmt: skip


def _number(text: str) -> int:
    return _parsed(not_negative, text.strip())


def _parsed(kind: Callable[[str], T], text: str) -> T:
    try:
        return kind(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def _origin(step: Step) -> str:
    if step.is_edited:
        return "set by hand"
    return "given" if step.probability is None else f"p={step.probability:.3g}"


def _departure(debugger: Debugger, found: Verification) -> Iterator[str]:
    """Yield the differing parts of two frames, with `..` resolved."""
    difference = found.difference
    if difference is None or difference.frame:
        return
    real, step = found.real.frames[difference.index], debugger.steps[difference.index]
    for name in ("event", "line", "value"):
        if getattr(difference, name):
            part = "arg" if name == "value" else name
            ours, theirs = getattr(step.frame, part), getattr(real, part)
            yield f"{name}: predicted {(ours or 'none').strip()}, actual {(theirs or 'none').strip()}"
    state = found.real.state(difference.index) or {}
    for name in difference.changed + difference.missing + difference.extra:
        ours, theirs = step.scope.state.get(name), state.get(name)
        if ours == theirs:  # one frame shows the value, the other marks it as unchanged
            ours, theirs = (step.frame.locals or {}).get(name), (real.locals or {}).get(name)
        yield f"{name}: predicted {ours or 'none'}, actual {theirs or 'none'}"
