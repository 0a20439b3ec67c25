"""Correct descriptions pass, corrupted ones fail, and failed ones are asked for again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import cwm_core as cwm
import pytest
from bad_server import bad_server, drip, reply, silent
from chat_server import server
from cwm_core.cli import main
from cwm_core.corpus.describe import (
    Describer,
    Fault,
    KeyValue,
    faults,
    key_values,
    steps,
)
from cwm_core.corpus.descriptions import GIVEN_UP, describe_stores
from cwm_core.corpus.generator import generate
from cwm_core.support.endpoint import (
    AnswerError,
    AnswerProblem,
    ContextExceeded,
    Endpoint,
    EndpointError,
    chat_model,
    without_thinking,
)
from hypothesis import assume, given
from hypothesis import strategies as st

CODE = """\
def f(n, s):
    out = []
    for i in range(n):
        out.append((i, s))
    if n > 5:
        raise ValueError(n)
    return out
"""
CAUGHT = """\
def f(n):
    return 1 // n

def g(n):
    try:
        return f(n)
    except ArithmeticError:
        return n
"""
GOOD = (
    "1. The function `f` is called with `n = 2` and `s` as `'a'`.\n2. It loops over `range(n)`: first `i` is `0`, "
    "then 1 on line 4. In the end `out` is `[(0, 'a'), (1, 'a')]`, which it returns."
)

seeds = st.integers(0, 10**6)


def described(trace: cwm.Trace) -> list[str]:
    """Return a correct description in sentences: every change, then how it ends."""
    sentences = ["The program runs step by step."]
    for number, (frame, state) in enumerate(zip(trace.frames, trace.states(), strict=True), 1):
        if state is not None:
            changed = [f"`{name}` is `{state[name]}`" for name, value in (frame.locals or {}).items() if value != ".."]
            sentences.append(
                f"{number}. At `{frame.line.strip()}` " + " and ".join(changed or ["nothing changed"]) + "."
            )
        else:
            sentences.append(f"Then `{frame.line.strip()}` ends with `{frame.arg}`.")
    if trace.exception is not None:
        sentences.append(f"It raises `{trace.exception}`.")
    return sentences


@given(seeds)
def test_correct_descriptions_have_no_faults(seed: int) -> None:
    trace = cwm.record_source(*generate(seed))
    assert faults(trace, "\n".join(described(trace))) == []


@given(seeds, st.data())
def test_a_value_that_is_not_in_the_trace_is_a_fault(seed: int, data: st.DataObject) -> None:
    trace = cwm.record_source(*generate(seed))
    sentences = described(trace)
    wrong = data.draw(
        st.sampled_from(["`987654`", "`'not there'`", "`x` is `[987654]`", "987654", "`-98765`", "`9876.5`"])
    )
    sentences.insert(data.draw(st.integers(0, len(sentences))), f"Now it is {wrong}.")
    assert {fault.reason for fault in faults(trace, "\n".join(sentences))} == {"unsupported value"}


@given(seeds, st.data())
def test_a_key_value_that_is_not_stated_is_a_fault(seed: int, data: st.DataObject) -> None:
    trace = cwm.record_source(*generate(seed))
    keys = key_values(trace)
    assume(keys)
    gone = data.draw(st.sampled_from(keys)).value
    kept = [sentence for sentence in described(trace) if gone not in sentence]
    found = faults(trace, "\n".join(kept))
    assert {fault.reason for fault in found} <= {"missing value"}
    assert {f"{key.what}: {key.value}" for key in keys if key.value == gone} <= {fault.detail for fault in found}


def test_key_values() -> None:
    assert key_values(cwm.record_source(CODE, "f(1, 'a')")) == [
        KeyValue("argument n", "1"),
        KeyValue("argument s", "'a'"),
        KeyValue("final n", "1"),
        KeyValue("final s", "'a'"),
        KeyValue("final out", "[(0, 'a')]"),
        KeyValue("final i", "0"),
        KeyValue("return value", "[(0, 'a')]"),
        KeyValue("result", "[(0, 'a')]"),
    ]
    raised = key_values(cwm.record_source(CODE, "f(6, 'a')"))
    assert [key.value for key in raised if key.what == "exception"] == ["ValueError(6)"]
    assert "return value" not in {key.what for key in raised}
    assert [key.what for key in key_values(cwm.record_source(CAUGHT, "g(0)"))] == [
        "argument n",
        "final n",
        "return value",
        "result",
    ]
    assert [key.what for key in key_values(cwm.record_source(CAUGHT, "f(0)"))] == ["argument n", "final n", "exception"]
    long = key_values(cwm.record_source("def f(n):\n    text = 'x' * n\n    return f\n", "f(300)"))
    assert [key.what for key in long] == ["argument n", "final n"]
    assert key_values(cwm.record_source("", "3")) == [KeyValue("result", "3")]
    cut = cwm.Recorder(max_frames=6).record_source(CODE, "f(3, 'a')")
    assert {key.what.split()[0] for key in key_values(cut)} == {"argument", "final"}


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        ("", "", set()),
        ("`n = 2`", "`n` being 2", set()),
        ("`n = 2`", "`n = 2.0`", {"missing value", "unsupported value"}),  # types count between backticks
        ("`'a'`", '`"a"`', set()),
        ("`0`", "`4`", {"unsupported value"}),
        ("then 1", "then 7", {"unsupported value"}),
        ("line 4", "line 12", set()),
        ("`range(n)`", "`range(3)`", {"unsupported value"}),
        ("(1, 'a')]`", "(1, 'b')]`", {"missing value", "unsupported value"}),
        ("(1, 'a')]`", "(1, 'a')`", {"missing value"}),  # it does not parse, so its parts are checked
        ("`out` is `[(0, 'a'), (1, 'a')]`", "`out` has two items", {"missing value"}),
        ("`range(n)`", "`for i in range(n):`", set()),
        ("It loops", "It's a loop, and doesn't stop: 'now'; it loops", set()),
    ],
)
def test_faults(old: str, new: str, reasons: set[str]) -> None:
    trace = cwm.record_source(CODE, "f(2, 'a')")
    assert old in GOOD
    assert {fault.reason for fault in faults(trace, GOOD.replace(old, new))} == reasons


@given(st.text(max_size=200))
def test_any_text_can_be_judged(text: str) -> None:
    trace = cwm.record_source(CODE, "f(2, 'a')")
    found = faults(trace, f"{text} `{text}` ```\n{text}\n```")
    assert found and {fault.reason for fault in found} <= {"missing value", "unsupported value", "empty"}
    assert faults(trace, " \n") == [Fault("empty", "")]


def test_steps_name_what_changes() -> None:
    assert steps(cwm.record_source(CODE, "f(1, 'a')")).split("\n")[2:5] == [
        "3. call: def f(n, s):    # n = 1, s = 'a'",
        "4. line: out = []",
        "5. line: for i in range(n):    # out = []",
    ]


def test_attempts_repeat_until_one_is_right() -> None:
    trace = cwm.record_source(CODE, "f(2, 'a')")
    answers = iter(["", AnswerError(AnswerProblem.CUT, "cut"), GOOD.replace("`0`", "`4`"), GOOD, "never asked for"])
    asked: list[Sequence[dict[str, str]]] = []

    def generate(messages: Sequence[dict[str, str]]) -> str:
        asked.append(messages)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    describe = Describer(generate, attempts=4)
    assert describe(trace) == GOOD
    assert describe.failures == {"empty": 1, "cut answer": 1, "unsupported value": 1}
    assert (describe.described, describe.given_up) == (1, 0)
    assert CODE.strip() in asked[0][0]["content"] and "START_OF_TRACE" not in asked[0][0]["content"]
    assert "unsupported value: 4" in asked[3][-1]["content"] and len(asked[3]) == 3

    stubborn = Describer(lambda _: "It returns.", attempts=2)
    assert stubborn(trace) is None and stubborn.failures == {"missing value": 2} and stubborn.given_up == 1


def test_invalid_templates_and_attempts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks the field \{steps\}"):
        Describer(str, template="{code}")
    with pytest.raises(ValueError, match="attempts: expected at least 1"):
        Describer(str, attempts=0)
    got: list[str] = []
    template = "{code}|{steps}"
    braces = cwm.record_source("def f():\n    return '{steps}'\n", "f()")
    Describer(lambda messages: got.append(messages[0]["content"]) or "", attempts=1, template=template)(braces)
    assert got[0].count("return '{steps}'") == 3  # in the code and at two steps: nothing is filled in twice


def test_a_model_behind_an_endpoint(monkeypatch) -> None:
    monkeypatch.setenv("CWM_API_KEY", "k")
    body = json.dumps({"choices": [{"message": {"content": GOOD}}]}).encode()
    with server(200, body) as (url, requests):
        ask = chat_model(Endpoint(url), "m", temperature=0.1)
        assert Describer(ask)(cwm.record_source(CODE, "f(2, 'a')")) == GOOD
    [request] = requests
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer k")
    assert (request["model"], request["temperature"], len(request["messages"])) == ("m", 0.1, 1)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, b"no such\nmodel", "status 400: no such model"),
        (200, b"no json", "not a JSON object"),
        (200, b"{}", "expected a chat completion"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "no text"),
    ],
)
def test_a_model_behind_an_endpoint_that_fails(status: int, body: bytes, said: str) -> None:
    with server(status, body) as (url, _), pytest.raises(EndpointError, match=said):
        chat_model(Endpoint(url, retries=0), "m")([{"role": "user", "content": "x"}])


def store_of(path, seeds):
    with cwm.TraceWriter(path) as writer:
        for seed in seeds:
            program = generate(seed)
            writer.add(cwm.record_source(program.code, program.call), None if seed == 3 else f"t{seed}", source="s")
    return path


def test_stores_are_described_and_runs_resume(tmp_path) -> None:
    store = store_of(tmp_path / "a.cwmtraces", range(12))
    asked = []

    def recorded(messages):
        asked.append(messages)
        return answer(messages)

    def answer(messages):
        text = messages[0]["content"]
        index = next(i for i, trace in enumerate(cwm.TraceReader(store)) if steps(trace) in text)
        return "no values" if index == 5 else "\n".join(described(cwm.TraceReader(store)[index]))

    out, whole = tmp_path / "chats.jsonl", tmp_path / "whole.jsonl"
    seen = []
    counts = describe_stores([store], whole, Describer(answer, attempts=2), parallel=3, progress=seen.append)
    assert counts == (11, 1) == seen[-1] and len(seen) == 12
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"t{i}" if i != 3 else "a.cwmtraces#3" for i in range(12) if i != 5]
    assert all(row["source"] == "s" and [m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert all("START_OF_TRACE" not in row["messages"][0]["content"] for row in rows)

    class Stop(Exception):
        pass

    def stop(counts):
        if counts.described == 4:
            raise Stop

    with pytest.raises(Stop):
        describe_stores([store], out, Describer(answer, attempts=2), parallel=2, progress=stop)
    with open(out, "ab") as file:
        file.write(b'{"key": "to')
    assert describe_stores([store], out, Describer(recorded, attempts=2), parallel=2) == (11, 1)
    assert len(asked) == 9
    assert out.read_bytes() == whole.read_bytes()
    out.write_text("{\n")
    with pytest.raises(ValueError, match="line 1"):
        describe_stores([store], out, Describer(answer))


# ---- endpoints that fail


def chat(text: str | None, finish: str = "stop") -> object:
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


DOWN = "http://127.0.0.1:9/v1"  # the discard service, which does not run


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "status 401: who are you"), (404, "status 404: who are you"), (500, "status 500"), (None, "refused")],
)
def test_a_failing_endpoint_stops_the_run_and_loses_no_trace(tmp_path, capsys, monkeypatch, status, said) -> None:
    store, out = store_of(tmp_path / "a.cwmtraces", range(4)), tmp_path / "chats.jsonl"
    monkeypatch.setattr("cwm_core.support.http._pause", no_pause)
    command = ["corpus", "describe", str(store), "--model", "m", "-o", str(out), "--attempts", "1", "--endpoint"]
    with bad_server(reply({"error": {"message": "who are you"}}, status or 500)) as served:
        assert main([*command, served.url if status else DOWN]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and "run the same command to resume" in line
    assert out.read_bytes() == b"" == (tmp_path / ("chats.jsonl" + GIVEN_UP)).read_bytes()
    with bad_server(reply(chat("It returns."))) as served:  # the endpoint answers, so the traces are given up
        assert main([*command, served.url]) == 1
    assert "0 traces described, 4 given up" in capsys.readouterr().err
    assert main([*command, DOWN, "--json"]) == 1  # nothing is left to ask for
    assert json.loads(capsys.readouterr().out) == {"described": 0, "given_up": 4, "failures": {}}


async def no_pause(seconds: float) -> None:
    pass


def test_descriptions_before_an_endpoint_failure_are_kept(tmp_path) -> None:
    store, out, asked = store_of(tmp_path / "a.cwmtraces", range(6)), tmp_path / "chats.jsonl", []

    def answer(messages):
        asked.append(messages)
        index = next(i for i, trace in enumerate(cwm.TraceReader(store)) if steps(trace) in messages[0]["content"])
        if index == 3 and len(asked) == 4:
            raise EndpointError("status 503")
        return "\n".join(described(cwm.TraceReader(store)[index]))

    with pytest.raises(EndpointError, match="503"):
        describe_stores([store], out, Describer(answer), parallel=1)
    assert describe_stores([store], out, Describer(answer), parallel=1) == (6, 0)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()][3] == "a.cwmtraces#3"


def test_a_trace_too_long_for_the_model_is_given_up_alone(tmp_path) -> None:
    store = store_of(tmp_path / "a.cwmtraces", range(3))

    def answer(messages):
        index = next(i for i, trace in enumerate(cwm.TraceReader(store)) if steps(trace) in messages[0]["content"])
        if index == 1:
            raise ContextExceeded("too long")
        return "\n".join(described(cwm.TraceReader(store)[index]))

    describer = Describer(answer)
    assert describe_stores([store], tmp_path / "chats.jsonl", describer) == (2, 1)
    assert describer.failures == {"longer than the model's context": 1}


@pytest.mark.parametrize("script", [silent, drip(b"HTTP/1.1 200 OK\r\n\r\n"), reply({}, 503)])
@pytest.mark.parametrize("verb", ["describe", "functions --workers 1", "functions --workers 2"])
def test_an_interrupt_ends_the_requests(tmp_path, script, verb) -> None:
    store_of(tmp_path / "a.cwmtraces", range(4))
    (tmp_path / "shop.py").write_text("def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x + 2\n")
    cwm.Tokenizer.train(["some text"], 260).save(tmp_path / "vocabulary")
    what = (
        "describe a.cwmtraces -o out.jsonl"
        if verb == "describe"
        else f"{verb} shop.py -o out --tokenizer vocabulary --any-license"
    )
    with bad_server(script) as served:
        command = [sys.executable, "-m", "cwm_core", "corpus", *what.split(), "--endpoint", served.url, "--model", "m"]
        working = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=os.environ)
        while not served.requests:
            assert working.poll() is None, working.stderr.read()
            time.sleep(0.05)
        working.send_signal(signal.SIGINT)
        said = working.communicate(timeout=30)[1].decode()
    assert working.returncode == 130 and said.endswith("interrupted\n") and "Traceback" not in said


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat(GOOD, "length"), "cut answer"),
        (chat(GOOD, "content_filter"), "cut answer"),
        (chat(None, "length"), "cut answer"),
        (chat(None), "no text"),
        (chat("<think>\n" + GOOD), "no text"),
    ],
)
def test_cut_answers_and_thinking_are_not_kept(body, reason) -> None:
    with bad_server(reply(body)) as served:
        describer = Describer(chat_model(Endpoint(served.url), "m"), attempts=2)
        assert describer(cwm.record_source(CODE, "f(2, 'a')")) is None
        assert len(served.requests) == 2 and describer.failures == {reason: 2}


def test_a_description_is_kept_without_its_thinking() -> None:
    with bad_server(reply(chat(f"<think>\nn is 987654?\n</think>\n\n{GOOD}"))) as served:
        assert Describer(chat_model(Endpoint(served.url), "m"))(cwm.record_source(CODE, "f(2, 'a')")) == GOOD


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b", "b"),
        ("\n<thinking>a\n</thinking>\n b", "b"),
        ("<reasoning>a</reasoning>b", "b"),
        ("<seed:think>a</seed:think>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("a\n</think>\n\nb", "b"),  # it began in the prompt
        ("<think></think>\nb", "b"),
        ("<think>a", None),
        ("[THINK]a", None),
        ("It prints `</think>` and `<think>`.", "It prints `</think>` and `<think>`."),
        ("I think <b>so</b>.", "I think <b>so</b>."),
    ],
)
def test_thinking_is_removed(text, left) -> None:
    assert without_thinking(text) == left


def test_traces_of_the_same_key_in_several_stores_are_all_described(tmp_path) -> None:
    stores = []
    for name, first in (("one", 0), ("two", 10)):
        (tmp_path / name).mkdir()
        stores.append(tmp_path / name / "x.cwmtraces")
        with cwm.TraceWriter(stores[-1]) as writer:
            for seed in range(first, first + 3):
                program = generate(seed)
                writer.add(cwm.record_source(program.code, program.call), "a key" if seed % 10 == 2 else None)
    every = [trace for store in stores for trace in cwm.TraceReader(store)]

    def answer(messages):
        return "\n".join(described(next(trace for trace in every if steps(trace) in messages[0]["content"])))

    out = tmp_path / "chats.jsonl"
    assert describe_stores(stores[:1], out, Describer(answer)) == (3, 0)
    assert describe_stores(stores, out, Describer(answer)) == (6, 0)
    assert describe_stores(reversed(stores), out, Describer(answer)) == (6, 0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["x.cwmtraces#0", "x.cwmtraces#1", "a key"] * 2
    assert len({row["trace"] for row in rows}) == 6


def test_files_without_digests_resume(tmp_path) -> None:
    store, out = store_of(tmp_path / "a.cwmtraces", range(3)), tmp_path / "chats.jsonl"
    out.write_text('{"key": "t0"}\n')
    (tmp_path / ("chats.jsonl" + GIVEN_UP)).write_text('"t1"\n')
    assert describe_stores([store], out, Describer(lambda _: "no values", attempts=1)) == (1, 2)
