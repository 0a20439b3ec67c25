"""The Debug Adapter Protocol: a scripted client over pipes, in the order that editors speak."""

from __future__ import annotations

import io
import os
import queue
import socket
import subprocess
import sys
import threading

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.cli import debug, main
from cwm_core.debugger import DebuggerError, SourceError
from cwm_core.debugger.dap import MAX_MESSAGE_BYTES, Adapter, ProtocolError, message_bytes, read_message
from debugging import CALL, TOKENIZER, debugger
from hypothesis import given
from hypothesis import strategies as st


class Client:
    """Sends requests and reads what comes back, checking sequence numbers."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.sent = self.received = 0
        self.events = []

    def send(self, command, **arguments):
        self.sent += 1
        self.writer.write(
            message_bytes({"seq": self.sent, "type": "request", "command": command, "arguments": arguments})
        )
        self.writer.flush()

    def read(self):
        message = read_message(self.reader)
        assert message is not None
        self.received += 1
        assert message["seq"] == self.received
        return message

    def ask(self, command, **arguments):
        """Return the body of the response, and keep the events before it."""
        self.send(command, **arguments)
        while (message := self.read())["type"] == "event":
            self.events.append(message)
        assert (message["type"], message["request_seq"], message["command"]) == ("response", self.sent, command)
        if not message["success"]:
            assert message["message"] == message["body"]["error"]["variables"]["text"]
            raise DebuggerError(message["message"])
        return message.get("body")

    def event(self, name):
        """Return the body of the next event, which must be this one."""
        message = self.events.pop(0) if self.events else self.read()
        assert (message["type"], message["event"]) == ("event", name), message
        return message.get("body")

    def stopped(self):
        """Return the reason of the stop, and the stack."""
        body = self.event("stopped")
        assert body["threadId"] == 1
        return body["reason"], self.stack()

    def stack(self):
        body = self.ask("stackTrace", threadId=1)
        assert body["totalFrames"] == len(body["stackFrames"])
        return [(frame["name"], frame["line"]) for frame in body["stackFrames"]]

    def variables(self, scope=0, frame=1):
        reference = self.ask("scopes", frameId=frame)["scopes"][scope]["variablesReference"]
        return {v["name"]: v["value"] for v in self.ask("variables", variablesReference=reference)["variables"]}


@pytest.fixture
def served():
    """Start an adapter whose model knows the program; return its client and its debugger."""
    ends = []

    def start(**options):
        subject, _ = debugger(**options)
        (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
        files = [
            os.fdopen(fd, mode)
            for fd, mode in ((theirs_in, "rb"), (theirs_out, "wb"), (ours_in, "rb"), (ours_out, "wb"))
        ]
        adapter = Adapter(files[0], files[1], lambda arguments: subject)
        thread = threading.Thread(target=adapter.serve)
        thread.start()
        ends.append((thread, files))
        return Client(files[2], files[3]), subject

    yield start
    for thread, files in ends:
        files[3].close()
        thread.join(10)
        assert not thread.is_alive()
        for file in files[:3]:
            file.close()


def begin(client, breakpoints=(), **launch):
    capabilities = client.ask("initialize", adapterID="cwm", linesStartAt1=True)
    assert capabilities["supportsStepBack"] and capabilities["supportsSetVariable"]
    client.ask("launch", program="/somewhere/prog.py", **launch)
    client.event("initialized")
    found = client.ask("setBreakpoints", source={"path": "/somewhere/prog.py"}, breakpoints=list(breakpoints))
    client.ask("configurationDone")
    return found["breakpoints"]


def test_a_session_as_an_editor_leads_it(served):
    client, _ = served()
    assert begin(client, [{"line": 4}, {"line": 5}]) == [
        {"verified": True, "line": 4},
        {"verified": False, "line": 5, "message": "no frame can be on line 5: it has no code inside a function"},
    ]
    assert client.event("stopped")["reason"] == "entry"
    assert client.ask("threads") == {"threads": [{"id": 1, "name": "predicted execution"}]}
    assert client.ask("continue", threadId=1) == {"allThreadsContinued": True}
    # main() is in no file: its lines are those of the text that the model was given, which begins with an empty one.
    assert client.stopped() == ("breakpoint", [("g", 4), ("f", 10), ("main", 23)])
    assert client.variables() == {"n": "1"} and client.variables(frame=2) == {"xs": "[1, 0, 3]", "total": "0", "x": "1"}
    assert client.variables(scope=1)["frame"] == "9, predicted"
    client.ask("stepOut", threadId=1)
    reason, stack = client.stopped()
    assert (reason, stack[0]) == ("step", ("g", 4)) and client.variables() == {"(returned)": "2", "n": "1"}
    client.ask("stepIn", threadId=1)
    assert client.stopped() == ("step", [("g", 1), ("f", 10), ("main", 23)])
    client.ask("stepBack", threadId=1)
    assert client.stopped()[0] == "step" and client.variables() == {"(returned)": "2", "n": "1"}
    client.ask("reverseContinue", threadId=1)
    assert client.stopped() == ("breakpoint", [("g", 4), ("f", 10), ("main", 23)])
    client.ask("setBreakpoints", source={"path": "/somewhere/prog.py"}, breakpoints=[])
    client.ask("next", threadId=1)
    assert client.stopped()[0] == "step"
    client.ask("continue", threadId=1)
    body = client.event("stopped")
    assert (body["reason"], body["text"]) == ("step", "the predicted program has ended")
    assert client.stack() == [("main", 23)] and client.variables() == {"(returned)": "7"}
    client.ask("continue", threadId=1)
    assert client.event("terminated") is None
    client.ask("disconnect")


def test_without_a_stop_at_the_entry(served):
    client, _ = served()
    begin(client, [{"line": 15}], stopOnEntry=False)
    assert client.stopped() == ("breakpoint", [("f", 15), ("main", 23)])


def test_lines_and_sources(served):
    client, _ = served()
    client.ask("initialize", linesStartAt1=False)
    client.ask("launch", program="prog.py")
    client.event("initialized")
    path = os.path.abspath("prog.py")
    found = client.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3, "hitCondition": "2"}])
    assert found["breakpoints"] == [{"verified": True, "line": 3}]
    client.ask("configurationDone")
    client.event("stopped")
    client.ask("continue")
    assert client.stopped()[1] == [("g", 3), ("f", 9), ("main", 22)]
    frames = client.ask("stackTrace", threadId=1, startFrame=1, levels=2)["stackFrames"]
    assert [frame["source"].get("path") for frame in frames] == [path, None]
    text = client.ask("source", source=frames[1]["source"], sourceReference=0)["content"]
    assert text.split("\n")[frames[1]["line"]] == "    return f([1, 0, 3])"
    assert client.variables() == {"n": "2"}


def test_breakpoints_that_cannot_be(served):
    client, _ = served()
    begin(client)
    client.event("stopped")
    for asked, why in (
        ({"line": 4, "condition": "n == 1"}, "conditions and log messages are not supported"),
        ({"line": 4, "logMessage": "{n}"}, "conditions and log messages are not supported"),
        ({"line": 4, "hitCondition": ">= 2"}, "expected a number of hits"),
        ({"line": 4, "hitCondition": "0"}, "expected a number of hits"),
        ({"line": 4000}, "no frame can be on line 4000"),
    ):
        (found,) = client.ask("setBreakpoints", source={"path": "/somewhere/prog.py"}, breakpoints=[asked])[
            "breakpoints"
        ]
        assert not found["verified"] and why in found["message"]
    (found,) = client.ask("setBreakpoints", source={"path": "/other.py"}, breakpoints=[{"line": 4}])["breakpoints"]
    assert not found["verified"] and "breakpoints work only in /somewhere/prog.py" in found["message"]


def test_values_are_shown_nested_and_names_looked_up(served):
    code = "def f(a, o):\n    return a\n"
    client, _ = served(code=code, call="f({'k': [1, (2, {3})], 'e': []}, len)")
    begin(client, [{"line": 2}], stopOnEntry=False)
    client.event("stopped")
    reference = client.ask("scopes", frameId=1)["scopes"][0]["variablesReference"]

    def children(reference):
        return {
            v["name"]: (v["value"], v["variablesReference"])
            for v in client.ask("variables", variablesReference=reference)["variables"]
        }

    top = children(reference)
    assert top["o"] == ("<built-in function len>", 0) and top["a"][0] == "{'k': [1, (2, {3})], 'e': []}"
    inner = children(top["a"][1])
    assert inner["'e'"] == ("[]", 0) and children(inner["'k'"][1])["0"] == ("1", 0)
    assert children(children(children(inner["'k'"][1])["1"][1])["1"][1]) == {"0": ("3", 0)}
    shown = client.ask("evaluate", expression="a['k']", frameId=1, context="hover")
    assert shown["result"] == "[1, (2, {3})]" and children(shown["variablesReference"])["0"] == ("1", 0)
    with pytest.raises(DebuggerError, match="expected a variable or an element of one"):
        client.ask("evaluate", expression="len(a)")
    with pytest.raises(DebuggerError, match="no variable 'a'"):
        client.ask("evaluate", expression="a", frameId=2)


def test_many_variables_are_bounded(served):
    client, _ = served(code="def f(a):\n    return a\n", call="f(list(range(300)) * 10)")
    client_variables = begin(client, [{"line": 2}], stopOnEntry=False)
    assert client_variables[0]["verified"]
    client.event("stopped")
    client.ask("setVariable", variablesReference=client.ask("scopes", frameId=1)["scopes"][0]["variablesReference"],
               name="a", value=str(list(range(3000))))  # fmt: skip
    reference = client.ask("evaluate", expression="a")["variablesReference"]
    shown = client.ask("variables", variablesReference=reference)["variables"]
    assert len(shown) == 1001 and shown[-1]["value"] == "2,000 more"
    page = client.ask("variables", variablesReference=reference, start=2990, count=100)["variables"]
    assert [v["name"] for v in page] == [str(i) for i in range(2990, 3000)]


def test_setting_a_variable(served):
    client, _ = served()
    begin(client, [{"line": 8}], stopOnEntry=False)
    client.event("stopped")
    scopes = client.ask("scopes", frameId=1)["scopes"]
    reference = scopes[0]["variablesReference"]
    assert client.ask("setVariable", variablesReference=reference, name="total", value="41") == {"value": "41"}
    assert client.variables()["total"] == "41" and client.variables(scope=1)["frame"] == "4, set by hand"
    client.ask("next")
    client.event("stopped")
    assert client.variables()["total"] == "41"
    outer = client.ask("scopes", frameId=2)["scopes"][0]["variablesReference"]
    inner = client.ask("scopes", frameId=1)["scopes"]
    for reference, name, value, why in (
        (outer, "x", "1", "only whole variables of the innermost"),
        (inner[1]["variablesReference"], "frame", "1", "only whole variables of the innermost"),
        (inner[0]["variablesReference"], "nope", "1", "no variable 'nope'"),
        (inner[0]["variablesReference"], "xs", "..", "a value cannot be"),
        (999, "x", "1", "no such variables"),
    ):
        with pytest.raises(DebuggerError, match=why):
            client.ask("setVariable", variablesReference=reference, name=name, value=value)


def test_another_sample_from_the_call_of_a_function(served):
    client, subject = served()
    begin(client, [{"line": 4}], stopOnEntry=False)
    client.event("stopped")
    client.ask("restartFrame", frameId=2)
    assert client.stopped() == ("restart", [("f", 6), ("main", 23)])
    assert (subject.seed, subject.temperature, len(subject.steps)) == (1, 1.0, 3)


def test_a_frame_that_is_none_stops_and_can_be_left_behind(served):
    client, subject = served()
    subject.source.replaced[5, 0.0] = TOKENIZER.encode("nonsense")
    begin(client, stopOnEntry=False)
    output = client.event("output")
    assert output["category"] == "stderr" and "the prediction for frame 5 is not a frame" in output["output"]
    reason, stack = client.stopped()
    assert (reason, stack[0]) == ("exception", ("f", 8))
    client.ask("restartFrame", frameId=1)
    client.event("stopped")
    client.ask("continue")
    assert client.event("stopped")["text"] == "the predicted program has ended"


def test_an_error_of_the_source_stops(served):
    client, subject = served()

    class Failing:
        def next_frame(self, ids, seed, temperature):
            raise SourceError("no connection")

    subject.source = Failing()
    begin(client, stopOnEntry=False)
    assert client.event("output")["output"] == "no connection\n"
    assert client.stopped()[0] == "exception"


class Slow:
    """Predict an endless loop, one frame whenever the test permits it."""

    def __init__(self):
        self.gate = threading.Semaphore(0)

    def next_frame(self, ids, seed, temperature):
        assert self.gate.acquire(timeout=10)
        frame = TOKENIZER.encode("<|line_sep|>{}<|action_sep|>    x\n<|frame_sep|>", allowed_special="all")
        return frame, np.zeros(len(frame), np.float32)


def test_pausing_and_requests_during_a_prediction(served):
    client, subject = served(max_frames=10**9)
    slow = subject.source = Slow()
    begin(client)
    client.event("stopped")
    client.ask("pause", threadId=1)  # nothing runs: no effect
    client.ask("continue")
    slow.gate.release()
    assert client.ask("threads")["threads"]
    assert client.ask("setBreakpoints", source={"path": "/somewhere/prog.py"}, breakpoints=[{"line": 4}])
    for command in ("stackTrace", "next", "continue", "variables", "evaluate", "restartFrame"):
        with pytest.raises(DebuggerError, match="frames are being predicted; pause first"):
            client.ask(command)
    client.ask("pause", threadId=1)
    slow.gate.release()
    assert client.event("stopped")["reason"] == "pause"
    client.ask("continue")
    client.ask("terminate")
    assert client.event("terminated") is None
    slow.gate.release()
    client.ask("disconnect")


def test_verify(served):
    if cwm.machines.bubblewrap_refusal():
        pytest.skip("no sandbox here")
    client, subject = served()
    begin(client, stopOnEntry=False)
    client.event("stopped")
    assert client.ask("verify") == {"message": "54 frames equal the real execution"}
    subject.back(49)
    subject.set("total", "1")
    assert client.ask("verify") == {"message": "frame 4 differs from the real execution: total", "frame": 4}


# ---- mistakes of clients


def test_invalid_requests_get_an_error_and_the_session_continues(served):
    client, _ = served()
    for command in ("stackTrace", "continue", "setBreakpoints", "evaluate", "configurationDone", "verify"):
        with pytest.raises(DebuggerError, match="no program is launched"):
            client.ask(command, source={"path": "x"})
    for command in ("nonsense", "", "__class__", "_on_pause", "attach"):
        with pytest.raises(DebuggerError, match="unknown request"):
            client.ask(command)
    with pytest.raises(DebuggerError, match="launch: program must be the path"):
        client.ask("launch", program=7)
    begin(client)
    client.event("stopped")
    for command, arguments, why in (
        ("launch", {"program": "x"}, "already launched"),
        ("scopes", {}, "KeyError"),
        ("scopes", {"frameId": 99}, "no such frame"),
        ("scopes", {"frameId": "1"}, "no such frame"),
        ("variables", {"variablesReference": 99}, "no such variables"),
        ("variables", {"variablesReference": -1}, "no such variables"),
        ("stackTrace", {"startFrame": "x"}, "TypeError"),
        ("setBreakpoints", {"source": 7}, "AttributeError"),
        ("setBreakpoints", {"source": {"path": "/somewhere/prog.py"}, "breakpoints": [{"line": "x"}]}, "TypeError"),
        ("source", {"sourceReference": 7}, "no such source"),
        ("evaluate", {"expression": None}, "expected a variable"),
        ("restartFrame", {"frameId": None}, "no such frame"),
    ):
        with pytest.raises(DebuggerError, match=why) as error:
            client.ask(command, **arguments)
        assert "Traceback" not in str(error.value) and "\n" not in str(error.value)
    assert client.stack() == [("main", 22)]


def test_messages_that_are_none(served):
    client, _ = served()
    for data, why in (
        (b"Content-Length: 3\r\n\r\n{{{", "not JSON"),
        (b"Content-Length: 2\r\n\r\n[]", "not a JSON object"),
        (b"Content-Length: x\r\n\r\n", "numeric"),
        (b"Content-Length: -5\r\n\r\n", "numeric"),
        (b"Content-Length: \xff\r\n\r\n", "numeric"),
        (b"hello: 1\r\n\r\n", "numeric"),
        (b"\r\n", "numeric"),
        (b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc", "not JSON"),
        (b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000, "not JSON"),
    ):
        client.writer.write(data)
        client.writer.flush()
        message = client.read()
        assert not message["success"] and why in message["message"] and message["request_seq"] == 0
    for message in (
        {},
        {"type": "event"},
        {"type": "request", "command": 7},
        {"type": "response", "command": "threads"},
    ):
        client.writer.write(message_bytes(message))
        client.writer.flush()
        assert "unknown request" in client.read()["message"]
    client.ask("initialize")


@pytest.mark.parametrize(
    "data",
    [b"Content-Length: 999999999999\r\n\r\n", b"x" * 100_000, b"a: b\r\n" * 10_000, b"Content-Length: 99\r\n\r\n{"],
)
def test_a_stream_that_cannot_be_followed_ends_the_session(data):
    out = io.BytesIO()
    Adapter(io.BytesIO(data), out, lambda arguments: None).serve()
    if data.endswith(b"{"):
        assert out.getvalue() == b""
    else:
        answer = read_message(io.BytesIO(out.getvalue()))
        assert not answer["success"] and "bytes" in answer["message"]


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_bytes(data, body):
    stream = io.BytesIO(data + b"\r\n\r\n" + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    out = io.BytesIO()
    Adapter(stream, out, lambda arguments: None).serve()
    answers = io.BytesIO(out.getvalue())
    while (answer := read_message(answers)) is not None:
        assert answer["success"] is False


def test_reading_messages():
    message = {"type": "request", "text": "é\n"}
    stream = io.BytesIO(b"Content-Type: x\r\n" + message_bytes(message) + message_bytes({}))
    assert read_message(stream) == message and read_message(stream) == {} and read_message(stream) is None
    with pytest.raises(ProtocolError, match="the limit is"):
        read_message(io.BytesIO(b"Content-Length: %d\r\n\r\n" % (MAX_MESSAGE_BYTES + 1)))


def test_a_client_that_is_gone(served):
    client, subject = served(max_frames=10**9)
    slow = subject.source = Slow()
    begin(client, stopOnEntry=False)
    client.writer.close()
    slow.gate.release(1000)


# ---- the whole command


def check_command(client):
    client.ask("initialize")
    for wrong, why in (
        ({"program": "prog.py"}, "launch: call is missing"),
        ({"program": "prog.py", "model": "model"}, "launch: call is missing"),
        ({"program": "prog.py", "model": "nowhere", "call": CALL}, "nowhere"),
        ({"program": "nowhere.py", "model": "model", "call": CALL}, "nowhere.py"),
        ({"program": "prog.py", "model": "model", "call": "f("}, "never closed"),
        ({"program": "prog.py", "model": "model", "call": CALL, "seed": "x"}, "launch: invalid seed: 'x'"),
        ({"program": "prog.py", "model": "model", "call": CALL, "temperature": -1}, "launch: invalid temperature: -1"),
    ):
        with pytest.raises(DebuggerError, match=why):
            client.ask("launch", **wrong)
    client.ask(
        "launch", program="prog.py", model="model", call=CALL, temperature=0.5, seed=3, type="cwm", request="launch"
    )
    client.event("initialized")
    client.ask("configurationDone")
    client.event("stopped")
    client.ask("continue")
    assert "is not a frame" in client.event("output")["output"]
    assert client.event("stopped")["reason"] == "exception"
    client.ask("disconnect")
    assert read_message(client.reader) is None


def test_the_command_over_its_streams(model):
    argv = [sys.executable, "-m", "cwm_core", "debug", "--dap"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        check_command(Client(process.stdout, process.stdin))
        assert process.wait(20) == 0 and process.stderr.read() == b""


def test_the_command_at_a_port(model, monkeypatch):
    said = queue.Queue()
    monkeypatch.setattr(debug, "say", lambda args, text: said.put(text))
    thread = threading.Thread(target=main, args=(["debug", "--dap", "--port", "0"],))
    thread.start()
    port = int(said.get(timeout=20).split()[-1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        check_command(Client(connection.makefile("rb"), connection.makefile("wb")))
    thread.join(20)
    assert not thread.is_alive()
