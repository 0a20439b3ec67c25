"""Serve the debugger to editors with the Debug Adapter Protocol.

The protocol is specified at https://microsoft.github.io/debug-adapter-protocol/specification.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from .. import machines
from .._native import CwmError
from .debugger import Debugger, DebuggerError, Scope, Stop, StopReason
from .frames import SourceError

MAX_MESSAGE_BYTES = 4 << 20
MAX_HEADER_BYTES = 8 << 10
MAX_CHILDREN = 1000
"""Maximum number of variables to show for a value or a scope."""

_LAST_FRAME_SECONDS = 5.0  # to finish the current frame when the client leaves

_THREAD = {"id": 1, "name": "predicted execution"}
_CONTEXT = 1  # the reference of the model's context as a source, which exists in no file

_CAPABILITIES = {
    "supportsConfigurationDoneRequest": True,
    "supportsStepBack": True,
    "supportsSetVariable": True,
    "supportsRestartFrame": True,
    "supportsHitConditionalBreakpoints": True,
    "supportsEvaluateForHovers": True,
    "supportsTerminateRequest": True,
}

_REASONS = {
    StopReason.STEP: "step",
    StopReason.BREAKPOINT: "breakpoint",
    StopReason.MALFORMED: "exception",
    StopReason.LIMIT: "pause",
    StopReason.PAUSED: "pause",
}

# Requests that are answered while frames are being predicted.
_WHILE_RUNNING = frozenset({"pause", "threads", "setBreakpoints", "disconnect", "terminate"})

Launch = Callable[[Mapping[str, Any]], Debugger]
"""Function from the arguments of a launch request to a debugger."""


class ProtocolError(CwmError):
    """A malformed message. After a fatal error, the start of the next message cannot be found."""

    def __init__(self, text: str, is_fatal: bool = False) -> None:
        """Create an error with a message."""
        super().__init__(text)
        self.is_fatal = is_fatal


def read_message(reader: BinaryIO) -> dict[str, Any] | None:
    """Return the next message, or None at the end of the input; raise `ProtocolError` if it is malformed."""
    length, size = None, 0
    while True:
        line = reader.readline(MAX_HEADER_BYTES - size + 1)
        size += len(line)
        if not line:
            return None
        if size > MAX_HEADER_BYTES:
            raise ProtocolError(f"a header of more than {MAX_HEADER_BYTES:,} bytes", is_fatal=True)
        name, _, value = line.strip().partition(b":")
        if name.lower() == b"content-length":
            length = int(value) if value.strip().isdigit() and len(value) < 20 else None
        elif not name:
            break
    if length is None:
        raise ProtocolError("a header without a numeric Content-Length")
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {length:,} bytes; the limit is {MAX_MESSAGE_BYTES:,}", is_fatal=True)
    body = reader.read(length)
    if len(body) < length:
        return None
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("a message that is not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message that is not a JSON object")
    return message


def message_bytes(message: Mapping[str, Any]) -> bytes:
    """Return a message with its header."""
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class Adapter:
    """Serve one client with one debugger, which `launch` creates from the arguments of the launch request.

    Commands that go forward run in their own thread. Requests about the program fail until the command stops; other
    requests are answered. The session stays open at the end of the predicted program and after a malformed frame, so
    that the user can step back; a command that goes forward from the end terminates it.

    The additional request `verify` takes no arguments, runs the program in the sandbox, and answers with `message` and,
    if there is a difference, `frame`.
    """

    def __init__(self, reader: BinaryIO, writer: BinaryIO, launch: Launch) -> None:
        """Serve on two streams, which stay open."""
        self._reader, self._writer, self._launch = reader, writer, launch
        self._lock = threading.Lock()
        self._sequence = 0
        self._debugger: Debugger | None = None
        self._program = ""
        self._first_line, self._stop_on_entry = 1, True
        self._worker: threading.Thread | None = None
        self._then: Callable[[], None] | None = None
        self._is_over = self._is_terminated = False
        self._children: list[tuple[str, Any]] = []

    def serve(self) -> None:
        """Answer requests until the client disconnects or its stream ends."""
        while not self._is_over:
            try:
                message = read_message(self._reader)
            except ProtocolError as error:
                self._respond({}, error=str(error))
                if error.is_fatal:
                    break
                continue
            if message is None:
                break
            self._answer(message)
        self._is_over = True
        if (worker := self._worker) and self._debugger:
            self._debugger.interrupt.set()
            worker.join(_LAST_FRAME_SECONDS)

    # ---- messages

    def _answer(self, request: dict[str, Any]) -> None:
        command, arguments = request.get("command"), request.get("arguments")
        self._then = None
        try:
            handler = getattr(self, f"_on_{command}", None) if isinstance(command, str) else None
            if request.get("type") != "request" or handler is None:
                raise DebuggerError(f"unknown request {str(command)[:80]!r}")
            if self._is_running() and command not in _WHILE_RUNNING:
                raise DebuggerError("frames are being predicted; pause first")
            body = handler(arguments if isinstance(arguments, dict) else {})
        except (DebuggerError, SourceError, machines.SandboxError, OSError, SyntaxError) as error:
            self._respond(request, error=str(error))
        except Exception as error:  # no request may end the session
            self._respond(request, error=f"{type(error).__name__}: {error}")
        else:
            self._respond(request, body)
            if self._then:
                self._then()

    def _respond(self, request: Mapping[str, Any], body: Any = None, error: str | None = None) -> None:
        response = {
            "type": "response",
            "request_seq": request["seq"] if type(request.get("seq")) is int else 0,
            "command": str(request.get("command", ""))[:80],
            "success": error is None,
        }
        if error is not None:
            response["message"] = error
            body = {"error": {"id": 1, "format": "{text}", "variables": {"text": error}, "showUser": True}}
        self._send(response | ({} if body is None else {"body": body}))

    def _event(self, event: str, **body: Any) -> None:
        self._send({"type": "event", "event": event} | ({"body": body} if body else {}))

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._sequence += 1
            try:
                self._writer.write(message_bytes({"seq": self._sequence} | message))
                self._writer.flush()
            except (OSError, ValueError):  # the client closed its stream
                self._is_over = True

    # ---- the session

    def _on_initialize(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        self._first_line = 1 if arguments.get("linesStartAt1", True) else 0
        return _CAPABILITIES

    def _on_launch(self, arguments: Mapping[str, Any]) -> None:
        if self._debugger:
            raise DebuggerError("a program is already launched")
        if not isinstance(arguments.get("program"), str):
            raise DebuggerError("launch: program must be the path of a file")
        self._program = os.path.abspath(arguments["program"])
        self._stop_on_entry = bool(arguments.get("stopOnEntry", True))
        self._debugger = self._launch(arguments)
        self._then = lambda: self._event("initialized")

    def _on_configurationDone(self, arguments: Mapping[str, Any]) -> None:
        debugger = self._launched()
        self._then = self._entered if self._stop_on_entry else self._runner(debugger.continue_to)

    def _entered(self) -> None:
        self._stopped("entry", "the call of main()")

    def _on_disconnect(self, arguments: Mapping[str, Any]) -> None:
        self._is_over = True

    def _on_terminate(self, arguments: Mapping[str, Any]) -> None:
        if self._debugger:
            self._debugger.interrupt.set()
        self._is_terminated = True
        self._then = lambda: self._event("terminated")

    def _on_setBreakpoints(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        debugger = self._launched()
        path = arguments["source"].get("path", "")
        is_program = os.path.realpath(path) == os.path.realpath(self._program)
        if is_program:
            debugger.breakpoints = {}
        asked = arguments.get("breakpoints") or []
        return {"breakpoints": [self._breakpoint(debugger, is_program, one) for one in asked[:MAX_CHILDREN]]}

    def _breakpoint(self, debugger: Debugger, is_program: bool, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            if not is_program:
                raise DebuggerError(f"breakpoints work only in {self._program}")
            if asked.get("condition") or asked.get("logMessage"):
                raise DebuggerError("conditions and log messages are not supported; use a hit count")
            hits = str(asked.get("hitCondition") or 1)
            if not hits.isdecimal() or int(hits) < 1:
                raise DebuggerError(f"{hits[:80]!r}: expected a number of hits, at least 1")
            debugger.break_at(asked["line"] + 1 - self._first_line, int(hits) - 1)
        except DebuggerError as error:
            return {"verified": False, "line": asked.get("line", 0), "message": str(error)}
        return {"verified": True, "line": asked["line"]}

    # ---- running

    def _on_continue(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        self._then = self._runner(self._launched().continue_to)
        return {"allThreadsContinued": True}

    def _on_next(self, arguments: Mapping[str, Any]) -> None:
        self._then = self._runner(self._launched().next)

    def _on_stepIn(self, arguments: Mapping[str, Any]) -> None:
        self._then = self._runner(self._launched().step)

    def _on_stepOut(self, arguments: Mapping[str, Any]) -> None:
        self._then = self._runner(self._launched().out)

    def _on_stepBack(self, arguments: Mapping[str, Any]) -> None:
        self._then = self._runner(self._launched().back)

    def _on_reverseContinue(self, arguments: Mapping[str, Any]) -> None:
        self._then = self._runner(self._launched().back_to_breakpoint)

    def _on_restartFrame(self, arguments: Mapping[str, Any]) -> None:
        """Predict another sample from the call of an activation."""
        debugger = self._launched()
        stop = debugger.restart(frame=self._scope(arguments["frameId"])[1].entry)
        self._then = lambda: self._stopped("restart", stop.message)

    def _on_pause(self, arguments: Mapping[str, Any]) -> None:
        if self._is_running():
            self._launched().interrupt.set()

    def _runner(self, command: Callable[[], Stop]) -> Callable[[], None]:
        def start() -> None:
            self._launched().interrupt.clear()
            self._worker = threading.Thread(target=self._run, args=(command,), daemon=True)
            self._worker.start()

        return start

    def _run(self, command: Callable[[], Stop]) -> None:
        debugger = self._launched()
        before = debugger.position
        try:
            stop = command()
        except Exception as error:  # of the source: the debugger stays at its last frame
            self._stopped("exception", str(error) or type(error).__name__)
            return
        if stop.reason is not StopReason.END:
            self._stopped(_REASONS[stop.reason], stop.message)
        elif debugger.position > before:
            self._stopped("step", stop.message)
        else:
            self._worker = None
            self._event("terminated")

    def _stopped(self, reason: str, text: str) -> None:
        self._children = []
        self._worker = None
        if self._is_over or self._is_terminated:
            return
        if reason == "exception":
            self._event("output", category="stderr", output=text + "\n")
        self._event("stopped", reason=reason, description=text, text=text, threadId=_THREAD["id"])

    def _is_running(self) -> bool:
        return self._worker is not None

    def _launched(self) -> Debugger:
        if self._debugger is None:
            raise DebuggerError("no program is launched")
        return self._debugger

    # ---- inspecting

    def _on_threads(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"threads": [_THREAD]}

    def _on_stackTrace(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        scopes = self._launched().where()
        start = arguments.get("startFrame") or 0
        stop = start + (arguments.get("levels") or MAX_CHILDREN)
        frames = [self._stack_frame(level, scopes[level]) for level in range(len(scopes))[start:stop]]
        return {"stackFrames": frames, "totalFrames": len(scopes)}

    def _stack_frame(self, level: int, scope: Scope) -> Mapping[str, Any]:
        name, lines = scope.function, scope.lines
        if len(lines) > 1:
            name += f" (line {' or '.join(map(str, lines[:3]))}{' or ...' if len(lines) > 3 else ''})"
        frame: dict[str, Any] = {"id": level + 1, "name": name, "line": 0, "column": self._first_line}
        if not lines:
            return frame | {"presentationHint": "subtle"}
        if lines[0] < self._main_line():
            return frame | {"line": lines[0] - 1 + self._first_line, "source": self._file()}
        in_context = {"name": "main()", "sourceReference": _CONTEXT}
        return frame | {"line": lines[0] + self._first_line, "source": in_context}

    def _file(self) -> Mapping[str, Any]:
        return {"name": os.path.basename(self._program), "path": self._program}

    def _main_line(self) -> int:
        """Return the number of the line `def main()`, which is in no file."""
        debugger = self._launched()
        return len(debugger.program.texts) - 2 - debugger.call.count("\n")

    def _on_source(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        source = arguments.get("source")
        reference = source.get("sourceReference") if source else arguments.get("sourceReference")
        if reference != _CONTEXT:
            raise DebuggerError("no such source")
        return {"content": "".join(self._launched().program.texts), "mimeType": "text/x-python"}

    def _on_scopes(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        level, _ = self._scope(arguments["frameId"])
        scopes = [{"name": "Locals", "variablesReference": self._reference("locals", level), "expensive": False}]
        if level == 0:
            reference = self._reference("prediction", None)
            scopes.append({"name": "Prediction", "variablesReference": reference, "expensive": False})
        return {"scopes": scopes}

    def _scope(self, frame_id: int) -> tuple[int, Scope]:
        scopes = self._launched().where()
        if type(frame_id) is not int or not 1 <= frame_id <= len(scopes):
            raise DebuggerError("no such frame")
        return frame_id - 1, scopes[frame_id - 1]

    def _on_variables(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        kind, what = self._referred(arguments["variablesReference"])
        if kind == "locals":
            pairs = [(name, text, _literal(text)) for name, text in self._locals(what)]
        elif kind == "prediction":
            pairs = [(name, text, None) for name, text in self._prediction()]
        else:
            pairs = [(name, repr(value), value) for name, value in _elements(what)]
        start = arguments.get("start") or 0
        shown = pairs[start : start + min(arguments.get("count") or MAX_CHILDREN, MAX_CHILDREN)]
        variables = [self._variable(*pair) for pair in shown]
        if len(pairs) > start + len(shown) and not arguments.get("count"):
            variables.append(self._variable("...", f"{len(pairs) - len(shown):,} more", None))
        return {"variables": variables}

    def _locals(self, level: int) -> list[tuple[str, str]]:
        debugger = self._launched()
        pairs = list(debugger.locals(level=level).items())
        if level == 0 and (frame := debugger.current.frame).arg is not None:
            pairs.insert(0, (f"({'returned' if frame.event == 'return' else 'raised'})", frame.arg))
        return pairs

    def _prediction(self) -> list[tuple[str, str]]:
        step = self._launched().current
        probability = "unknown" if step.probability is None else f"{step.probability:.4g}"
        origin = "set by hand" if step.is_edited else "given" if step.index == 0 else "predicted"
        return [
            ("frame", f"{step.index}, {origin}"),
            ("event", step.frame.event),
            ("probability", probability),
            ("tokens", str(len(step.ids))),
        ]

    def _variable(self, name: str, text: str, value: Any) -> Mapping[str, Any]:
        reference = self._reference("elements", value) if _elements(value) else 0
        return {"name": name, "value": text, "variablesReference": reference}

    def _reference(self, kind: str, what: Any) -> int:
        self._children.append((kind, what))
        return len(self._children)

    def _referred(self, reference: int) -> tuple[str, Any]:
        if type(reference) is not int or not 1 <= reference <= len(self._children):
            raise DebuggerError("no such variables; references end at the next step")
        return self._children[reference - 1]

    def _on_setVariable(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._referred(arguments["variablesReference"]) != ("locals", 0):
            raise DebuggerError("only whole variables of the innermost activation can be set")
        self._launched().set(str(arguments["name"]), str(arguments["value"]))
        return {"value": str(arguments["value"])}

    def _on_evaluate(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        level = self._scope(arguments["frameId"])[0] if arguments.get("frameId") else 0
        text = self._launched().print(str(arguments["expression"]), level)
        shown = self._variable("", text, _literal(text))
        return {"result": text, "variablesReference": shown["variablesReference"]}

    def _on_verify(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        found = self._launched().verify()
        return {"message": str(found)} | ({"frame": found.difference.index} if found.difference else {})


def _literal(text: str) -> Any:
    """Return the value of a literal; None for other text."""
    try:
        return machines.evaluate_literal(text)
    except ValueError:
        return None


def _elements(value: Any) -> list[tuple[str, Any]]:
    """Return the names and values of the elements of a container."""
    if isinstance(value, dict):
        return [(repr(key), element) for key, element in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [(str(index), element) for index, element in enumerate(value)]
    return []
