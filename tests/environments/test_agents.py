"""Agents: scripts, the built-in engine against the same conversation from the start, and endpoints good and bad."""

import contextlib
import http.server
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cwm_core import Tokenizer
from cwm_core.environments import (
    ActionError,
    Budget,
    Call,
    EndpointAgent,
    EndpointError,
    OutOfBudget,
    Reply,
    ScriptedAgent,
    Task,
    parse_action,
    solution_actions,
    system_prompt,
)
from cwm_core.support import http as http_client

TEXTS = ["def f(x):\n    return x\n", "<tool: bash>\nls -l\n</tool>\n", "<output>\nx\n</output>\n"]
TOKENIZER = Tokenizer.train(TEXTS, 300)
TASK = Task("t", "Repair it.", Path("/r"), solution="diff --git a/x b/x\n")
OPENING = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "Repair it."}]


def further(messages, reply, observation="<output>\nx\n</output>"):
    return [
        *messages,
        {"role": "assistant", "content": reply.text},
        {"role": "tool: bash", "content": observation},
    ]


# ---- scripts


def test_scripts_are_lists_lists_by_name_and_functions():
    for script in (["a", "b"], {"t": ["a", "b"]}, lambda task: ["a", "b"]):
        generate = ScriptedAgent(script).start(TASK, 0, Budget())
        assert [generate(OPENING), generate(OPENING)] == [Reply("a"), Reply("b")]
        with pytest.raises(OutOfBudget, match="script"):
            generate(OPENING)
    with pytest.raises(ValueError, match="no actions for the task t"):
        ScriptedAgent({}).start(TASK, 0, Budget())
    with pytest.raises(ValueError, match="got a string"):
        ScriptedAgent("abc").start(TASK, 0, Budget())
    assert ScriptedAgent(["a"]).settings != ScriptedAgent(["b"]).settings


def test_solution_actions_are_well_formed_calls():
    actions = [parse_action(action) for action in solution_actions(TASK)]
    assert [action and action.tool for action in actions] == ["bash", "create", "bash", "submit", None]
    with pytest.raises(ValueError, match="no known solution"):
        solution_actions(Task("t", "x", Path("/r")))


def test_system_prompt_shows_every_tool():
    for tool in ("bash", "edit", "create", "submit"):
        assert f"\n<tool: {tool}>\n" in system_prompt()
    assert system_prompt(reasoning=True).endswith(system_prompt()) and "<think>" in system_prompt(reasoning=True)


def test_budget_refuses_values_that_are_not_positive():
    with pytest.raises(ValueError, match="turns must be positive"):
        Budget(turns=0)


# ---- the engine


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("torch")
    from cwm_core.model import preset
    from random_models import random_model

    shape = {
        "vocab_size": TOKENIZER.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "sliding_window": 64,
    }
    # So many that half of short replies end by one.
    return random_model(preset("tiny", **shape, eos_token_id=tuple(range(30))))


def engine_of(model, **options):
    from cwm_core.inference import Engine

    return Engine(model, TOKENIZER, **{"prefix_bytes": 1 << 28} | options)


def engine_agent(engine, **options):
    from cwm_core.environments import EngineAgent

    return EngineAgent(engine, **options)


@pytest.mark.parametrize("reasoning", [False, True])
def test_turns_read_only_new_tokens_and_equal_the_whole_conversation(model, reasoning):
    agent = engine_agent(engine_of(model), reasoning=reasoning)
    budget = Budget(action_tokens=12)
    generate = agent.start(TASK, 7, budget)
    prefix = "<think>\n" if reasoning else ""
    begun = [{"role": "assistant", "content": prefix}]
    messages, before = OPENING, np.empty(0, np.int32)
    end = TOKENIZER.special_tokens["<|eot_id|>"]
    stops, finishes = {*range(30), end, TOKENIZER.special_tokens["<|end_of_text|>"]}, set()
    for turn in range(8):
        reply = generate(messages)
        new, _ = TOKENIZER.encode_chat([*messages[-1 if turn else 0 :], *begun], add_generation_prompt=True)
        prompt = np.concatenate([before, new[1:] if turn else new])
        # An engine that has seen nothing, asked with all tokens at once.
        again = engine_of(model, prefix_bytes=0)
        from cwm_core.inference.cache import BLOCK
        from cwm_core.inference.engine import Request

        handle = again.submit(Request(prompt, 12, stops, 1.0, seed=(7, turn)))
        while handle.finish_reason is None:
            again.step()
        assert reply.ids == tuple(handle.ids)
        assert reply.prompt_tokens == len(prompt) and reply.tokens == len(handle.ids)
        np.testing.assert_allclose(reply.logprobs, handle.logprobs, atol=1e-4)
        stopped = handle.finish_reason == "stop"
        said = handle.ids[:-1] if stopped else handle.ids
        assert reply.text == prefix + TOKENIZER.decode(said)
        assert reply.finish == ("stop" if stopped else "length")
        if turn:
            # All blocks but what holds the token that ended the last reply, which the cache never held.
            assert reply.cached_tokens >= (len(before) - 2) // BLOCK * BLOCK
        before = np.concatenate([prompt, [*said, end]]).astype(np.int32)
        messages = further(messages, reply)
        finishes.add(reply.finish)
    assert finishes == {"stop", "length"}
    assert agent.settings["reasoning"] is reasoning


def test_several_rollouts_are_generated_together_and_as_alone(model):
    alone = [engine_agent(engine_of(model)).start(TASK, n, Budget(action_tokens=20))(OPENING).ids for n in range(6)]
    engine = engine_of(model)
    agent = engine_agent(engine)
    together = [None] * 6
    most = []
    step = engine.step

    def counted():
        most.append(engine.unfinished)
        return step()

    engine.step = counted

    def work(n):
        together[n] = agent.start(TASK, n, Budget(action_tokens=20))(OPENING).ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone
    assert max(most) > 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_tokens": 5}, "prompt tokens"),
        ({"context_tokens": 20}, "context tokens"),
        ({"seconds": 1e-9}, "seconds"),
    ],
)
def test_the_engines_agent_ends_with_its_budget(model, changes, reason):
    engine = engine_of(model)
    generate = engine_agent(engine).start(TASK, 0, Budget(**changes))
    with pytest.raises(OutOfBudget, match=reason):
        generate(OPENING)
    assert not engine.unfinished


def test_the_last_reply_ends_with_the_context(model):
    whole, _ = TOKENIZER.encode_chat(OPENING, add_generation_prompt=True)
    generate = engine_agent(engine_of(model)).start(TASK, 0, Budget(context_tokens=len(whole) + 3))
    reply = generate(OPENING)
    assert reply.tokens <= 3
    if reply.finish == "length":
        with pytest.raises(OutOfBudget, match="context tokens"):
            generate(further(OPENING, reply))


def test_an_interrupted_agent_raises_soon(model):
    engine = engine_of(model)
    agent = engine_agent(engine)
    errors = []

    def work():
        try:
            agent.start(TASK, 0, Budget(action_tokens=4000))(OPENING)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not engine.unfinished:
        time.sleep(0.001)
    agent.interrupt()
    thread.join(30)
    assert errors == ["the agent was interrupted"] and not engine.unfinished


# ---- endpoints


class Server:
    """Answers each request with the next of `answers`: (status, headers, body), or a function of the handler."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def __enter__(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if callable(answer):
                    answer(self)
                    return
                status, headers, data = answer
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


def completion(content="Hello.", finish="stop", **more):
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 12}}
    choice = {"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}
    return 200, {}, {"choices": [choice], "usage": usage}


def refusal(status, message="no", code=None, **headers):
    return status, headers, {"error": {"message": message, "code": code}}


@pytest.fixture
def no_waiting(monkeypatch):
    waits = []

    async def pause(seconds):
        waits.append(seconds)

    monkeypatch.setattr(http_client, "_pause", pause)
    return waits


def test_an_endpoints_reply():
    with Server(completion()) as server:
        agent = EndpointAgent(server.url, "m", fields={"temperature": 0.5, "seed": None})
        generate = agent.start(TASK, 11, Budget(action_tokens=100))
        reply = generate(OPENING)
        assert reply == Reply("Hello.", "stop", None, None, 5, 20, 12)
        generate(further(OPENING, reply, "a\udc80b"))
    (path, headers, body), (_, _, second) = server.requests
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body == {"model": "m", "messages": OPENING, "max_tokens": 100, "temperature": 0.5}
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "a?b"},
    ]


def test_ids_logprobs_reasoning_and_tools_role():
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": None}, {"logprob": float("-inf")}]}
    status, headers, body = completion(reasoning_content="so\n", content="\nOk.", finish="length")
    body["choices"][0] |= {"token_ids": [1, 2, 3], "logprobs": logprobs}
    with Server((status, headers, body)) as server:
        agent = EndpointAgent(server.url, "m", tool_role="tool")
        generate = agent.start(TASK, 11, Budget())
        reply = generate(OPENING)
        assert reply == Reply("<think>\nso\n</think>\nOk.", "length", (1, 2, 3), (-0.5, None, None), 5, 20, 12)
        generate(further(OPENING, reply))
    assert server.requests[1][2]["messages"][-1]["role"] == "tool"
    assert server.requests[1][2]["messages"][-1]["name"] == "bash"
    assert [body["seed"] for _, _, body in server.requests] == [11, 12]


def tool_call(name, arguments):
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


EDIT = "f.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE"


@pytest.mark.parametrize(
    ("message", "tool", "content"),
    [
        ({"content": [{"text": "<tool: bash>\n"}, {"type": "text", "text": "ls\n</tool>"}]}, "bash", "ls"),
        ({"content": None, "tool_calls": [tool_call("bash", {"command": "ls"})]}, "bash", "ls"),
        ({"content": "So.", "tool_calls": [tool_call("submit", {"content": "d"})]}, "submit", "d"),
        ({"tool_calls": [tool_call("create", {"path": "f", "content": "x"})]}, "create", "f\nx"),
        ({"tool_calls": [tool_call("edit", {"path": "f.py", "search": "a", "replace": "b"})]}, "edit", EDIT),
    ],
)  # fmt: skip
def test_an_endpoints_own_forms_of_text_and_calls_are_read(message, tool, content):
    status, headers, body = completion()
    body["choices"][0]["message"] = {"role": "assistant", **message}
    with Server((status, headers, body)) as server:
        reply = EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING)
    assert parse_action(reply.text) == Call(tool, content)


@pytest.mark.parametrize(
    ("calls", "refusal"),
    [
        ([tool_call("bash", {"command": "a"}), tool_call("bash", {"command": "b"})], "Exactly one tool call"),
        ([tool_call("python", "{broken")], "no tool 'python'"),
    ],
)
def test_calls_that_no_environment_takes_are_refused_there(calls, refusal):
    with Server(completion(None, tool_calls=calls)) as server:
        reply = EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING)
    with pytest.raises(ActionError, match=refusal):
        parse_action(reply.text)


@pytest.mark.parametrize(
    ("budget", "turns", "reason"),
    [({"context_tokens": 30}, 2, "context tokens"), ({"prompt_tokens": 5}, 0, "prompt tokens")],
)
def test_budgets_of_tokens_bind_without_a_count_of_the_server(budget, turns, reason, caplog):
    status, headers, body = completion("x" * 30)
    del body["usage"]
    with Server((status, headers, body)) as server:
        generate = EndpointAgent(server.url, "m").start(TASK, 0, Budget(**budget))
        messages = OPENING
        for _ in range(turns):
            reply = generate(messages)
            assert (reply.tokens, reply.prompt_tokens) == (None, None)
            messages = further(messages, reply)
        with pytest.raises(OutOfBudget, match=reason):
            generate(messages)
    assert caplog.text.count("does not count tokens") == 1


def test_temporary_failures_are_tried_again(no_waiting):
    def hang_up(handler):
        handler.connection.close()

    answers = [refusal(503), refusal(429, **{"Retry-After": "7"}), hang_up, refusal(500), completion()]
    with Server(*answers) as server:
        generate = EndpointAgent(server.url, "m").start(TASK, 0, Budget())
        assert generate(OPENING).text == "Hello."
    assert len(server.requests) == 5
    assert no_waiting[1] == 7
    assert 0.5 <= no_waiting[0] <= 1 and 2 <= no_waiting[2] <= 4 and 4 <= no_waiting[3] <= 8


def test_tries_end(no_waiting):
    with Server(refusal(503, "overloaded")) as server:
        generate = EndpointAgent(server.url, "m", retries=2).start(TASK, 0, Budget())
        with pytest.raises(EndpointError, match=r"status 503: overloaded \(the last of 3 tries"):
            generate(OPENING)
    with pytest.raises(EndpointError, match=r"did not answer: .*refused"):
        EndpointAgent(server.url, "m", retries=0).start(TASK, 0, Budget())(OPENING)


def test_time_limits_hold(no_waiting):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                handler.wfile.write(b" ")
                threading.Event().wait(0.02)

    def silent(handler):
        threading.Event().wait(2)

    for answer in (drip, silent):
        with Server(answer) as server:
            generate = EndpointAgent(server.url, "m", request_seconds=0.3, retries=0).start(TASK, 0, Budget())
            started = time.monotonic()
            with pytest.raises(EndpointError, match="did not answer"):
                generate(OPENING)
            assert time.monotonic() - started < 1.5
            with pytest.raises(OutOfBudget, match="seconds"):
                EndpointAgent(server.url, "m").start(TASK, 0, Budget(seconds=0.2))(OPENING)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", {"choices": []}, {"choices": [{"message": "x"}]}, {"choices": [3]}, b"[" * 100_000],
)
def test_answers_of_another_kind_are_refused(body):
    with (
        Server((200, {}, body)) as server,
        pytest.raises(EndpointError, match=r"expected a chat completion|not a JSON object"),
    ):
        EndpointAgent(server.url, "m", retries=0).start(TASK, 0, Budget())(OPENING)


@pytest.mark.parametrize("hostile", [None, 3, "x", [], {}, -1, True])
def test_odd_fields_of_an_answer_are_no_harm(hostile):
    choice = {"message": {"content": hostile, "reasoning_content": hostile}, "finish_reason": hostile}
    choice |= {"token_ids": hostile, "logprobs": hostile}
    with Server((200, {}, {"choices": [choice], "usage": hostile})) as server:
        reply = EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING)
    assert isinstance(reply.text, str) and reply.finish == "stop"


def test_too_long_an_answer_is_refused(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 1000)
    with Server(completion("x" * 2000)) as server, pytest.raises(EndpointError, match="longer than 1,000 bytes"):
        EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING)


def test_context_of_an_endpoint(no_waiting):
    exceeded = refusal(400, "the prompt and 65536 more exceed", "context_length_exceeded")
    with Server(exceeded, completion()) as server:  # once more, without asking for a number
        assert EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING).text == "Hello."
        assert [("max_tokens" in body) for _, _, body in server.requests] == [True, False]
    with Server(exceeded) as server, pytest.raises(OutOfBudget, match="context tokens"):
        EndpointAgent(server.url, "m").start(TASK, 0, Budget())(OPENING)
    with Server(completion()) as server:
        generate = EndpointAgent(server.url, "m").start(TASK, 0, Budget(context_tokens=25))
        messages = further(OPENING, generate(OPENING))
        with pytest.raises(OutOfBudget, match="context tokens"):
            generate(messages)
        with pytest.raises(OutOfBudget, match="prompt tokens"):
            EndpointAgent(server.url, "m").start(TASK, 0, Budget(prompt_tokens=19))(OPENING)


SECRET = "sk-not-to-be-seen"


def test_the_key_is_sent_and_never_shown(monkeypatch, no_waiting):
    monkeypatch.setenv("SOME_KEY", SECRET + "\n")
    with Server(completion(), refusal(401, f"Incorrect API key provided: {SECRET}")) as server:
        agent = EndpointAgent(server.url, "m", key_variable="SOME_KEY")
        generate = agent.start(TASK, 0, Budget())
        generate(OPENING)
        with pytest.raises(EndpointError, match="status 401") as error:
            generate(OPENING)
    assert server.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(error.value) + repr(agent) + repr(vars(agent)) + json.dumps(agent.settings)
    monkeypatch.setenv("SOME_KEY", SECRET + "\nX: y")
    with pytest.raises(EndpointError, match="SOME_KEY does not hold a key") as error:
        generate(OPENING)
    assert SECRET not in str(error.value)


def test_redirects_are_not_followed(monkeypatch):
    monkeypatch.setenv("CWM_API_KEY", SECRET)
    with Server(completion()) as other, Server((307, {"Location": f"{other.url}/chat/completions"}, b"")) as server:
        generate = EndpointAgent(server.url, "m").start(TASK, 0, Budget())
        with pytest.raises(EndpointError, match="status 307"):
            generate(OPENING)
    assert not other.requests


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="http:// or https://"):
        EndpointAgent("file:///etc/passwd", "m")
    with pytest.raises(ValueError, match="tool_role"):
        EndpointAgent("http://x", "m", tool_role="function")


def test_an_endpoint_of_our_own_server(model):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from serving import app_of, running_server

    engine = engine_of(model, max_length=400)
    with running_server(app_of(engine, TOKENIZER)) as url:
        fields = {"temperature": 1.0, "return_token_ids": True, "logprobs": True}
        agent = EndpointAgent(f"{url}/v1", "tiny", fields=fields, tool_role="tool")
        budget = Budget(action_tokens=10, context_tokens=400)
        generate = agent.start(TASK, 5, budget)
        reply = generate(OPENING)
        again = generate(further(OPENING, reply))
    first = engine_agent(engine_of(model, max_length=400)).start(TASK, 5, budget)(OPENING)
    # The server draws by (seed, choice), the engine's agent by (seed, turn): the first of both is the same.
    assert reply.ids == first.ids and reply.prompt_tokens == first.prompt_tokens
    np.testing.assert_allclose(reply.logprobs, first.logprobs, atol=1e-4)
    assert again.prompt_tokens > reply.prompt_tokens + reply.tokens
