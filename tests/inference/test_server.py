"""The server's routes in this process: what they accept, refuse and answer."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx
from cwm_core.inference import Engine
from cwm_core.inference.server.engine_thread import MAX_FAILURES
from cwm_core.model import preset
from cwm_core.tokenizer.chat import REASONING_SYSTEM_PROMPT
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from serving import ScriptedEngine, app_of, ask, client_of, events_of, post, small_tokenizer, until

TOKENIZER = small_tokenizer()
SPECIAL = TOKENIZER.special_tokens
EOT = SPECIAL["<|eot_id|>"]
MODEL = random_model(
    preset(
        "tiny",
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=8,
        sliding_window=16,
    )
)
HELLO = [{"role": "user", "content": "hi"}]


def says(text, *ids):
    """An engine that answers with the text, then the ids."""
    return ScriptedEngine(TOKENIZER, lambda request: [*TOKENIZER.encode(text).tolist(), *ids])


def app_that_says(text, *ids, **options):
    return app_of(says(text, *ids), TOKENIZER, **options)


def assert_error(response, status, why, param=None, code=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json().pop("error")
    assert set(error) == {"message", "type", "param", "code"}
    assert why in error["message"]
    assert (error["param"], error["code"]) == (param, code)


def completion(**body):
    return body if "prompt" in body else {"prompt": "x", **body}


def chat(**body):
    return {"messages": HELLO, **body}


# ---- completions


def test_greedy_completions_are_those_of_the_engine():
    engine = Engine(MODEL, TOKENIZER, max_batch=3)
    prompts = ["def f(x):", "été", "\n", "x" * 40]
    expected = Engine(MODEL, TOKENIZER).generate(prompts, 12, [EOT])
    body = {"prompt": prompts, "max_tokens": 12, "temperature": 0, "stop_token_ids": [EOT], "return_token_ids": True}
    answer = post(app_of(engine, TOKENIZER), "/v1/completions", body | {"logprobs": 2}).json()
    for choice, generation, prompt in zip(answer["choices"], expected, prompts, strict=True):
        assert choice["token_ids"] == generation.ids.tolist()
        assert choice["prompt_token_ids"] == TOKENIZER.encode(prompt).tolist()
        assert choice["finish_reason"] == generation.finish_reason
        ids = generation.ids[:-1] if generation.finish_reason == "stop" else generation.ids
        text = "".join(TOKENIZER.stream_decoder().feed([t for t in ids.tolist() if t not in SPECIAL.values()]))
        assert choice["text"].rstrip("\ufffd") == text.rstrip("\ufffd")
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"] == pytest.approx(generation.logprobs.tolist(), abs=1e-4)
        assert [max(top.values()) for top in logprobs["top_logprobs"]] == logprobs["token_logprobs"]
    total = sum(len(generation.ids) for generation in expected)
    prompt_tokens = sum(TOKENIZER.count(prompt) for prompt in prompts)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": total, "total_tokens": prompt_tokens + total}
    assert answer["usage"] == usage


def test_a_stream_says_what_the_whole_answer_says():
    body = completion(prompt=["a", "def"], n=2, seed=5, max_tokens=20, logprobs=1, return_token_ids=True, stop=["e"])
    whole = post(app_of(Engine(MODEL, TOKENIZER), TOKENIZER), "/v1/completions", body).json()
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = post(app_of(Engine(MODEL, TOKENIZER), TOKENIZER), "/v1/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events_of(response.text)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    for expected in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == expected["index"]]
        assert "".join(c["text"] for c in mine) == expected["text"]
        assert [t for c in mine for t in c["token_ids"]] == expected["token_ids"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [expected["finish_reason"]]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [x for c in mine for x in c["logprobs"][key]] == expected["logprobs"][key]


def test_samples_differ_and_repeat_by_seed():
    def ids(**options):
        body = completion(n=3, max_tokens=10, return_token_ids=True, **options)
        answer = post(app_of(Engine(MODEL, TOKENIZER), TOKENIZER), "/v1/completions", body).json()
        return [choice["token_ids"] for choice in answer["choices"]]

    first = ids(seed=-7)
    assert first == ids(seed=-7)
    assert first != ids(seed=8)
    assert ids() != ids()
    assert first[0] != first[1] != first[2]
    assert ids(top_k=1)[0] == ids(temperature=0)[0] == ids(top_p=1e-9)[0]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(stream):
    engine = says("one two\nthree" * 50)
    app = app_of(engine, TOKENIZER)
    response = post(app, "/v1/completions", completion(max_tokens=500, stop=["wo\nth"], stream=stream))
    choices = [e["choices"][0] for e in events_of(response.text)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "one t"
    assert choices[-1]["finish_reason"] == "stop"
    assert not engine.handles


def test_prompts_in_every_form():
    for prompt, sent in [
        ("hi", [TOKENIZER.encode("hi").tolist()]),
        (["hi", "x"], [TOKENIZER.encode("hi").tolist(), TOKENIZER.encode("x").tolist()]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [EOT]], [[5, 6], [EOT]]),
        (["hi", [5]], [TOKENIZER.encode("hi").tolist(), [5]]),
        ("<|eot_id|>", [TOKENIZER.encode("<|eot_id|>").tolist()]),
    ]:
        engine = says("yes")
        answer = post(app_of(engine, TOKENIZER), "/v1/completions", {"prompt": prompt})
        assert answer.status_code == 200, answer.text
        assert [list(request.prompt) for request in engine.requests] == sent


def test_special_tokens_are_left_out_or_named():
    frame, [a], [b] = SPECIAL["<|frame_sep|>"], TOKENIZER.encode("a").tolist(), TOKENIZER.encode("b").tolist()
    for skip, text in [(True, "ab"), (False, "a<|frame_sep|>b")]:
        engine = ScriptedEngine(TOKENIZER, lambda request: [a, frame, b, EOT])
        body = completion(stop_token_ids=[EOT], skip_special_tokens=skip)
        [choice] = post(app_of(engine, TOKENIZER), "/v1/completions", body).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize(
    ("body", "why", "param", "code"),
    [
        ({}, "prompt must be", "prompt", None),
        ({"prompt": None}, "prompt must be", "prompt", None),
        ({"prompt": []}, "prompt must be", "prompt", None),
        ({"prompt": ""}, "the prompt is empty", "prompt", None),
        ({"prompt": [[]]}, "the prompt is empty", "prompt", None),
        ({"prompt": 5}, "prompt must be", "prompt", None),
        ({"prompt": [1, "x"]}, "prompt must be a list of token ids", "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt must be a list of token ids", "prompt", "invalid_type"),
        ({"prompt": [1, 10**30]}, "outside the vocabulary", "prompt", None),
        ({"prompt": [-1]}, "outside the vocabulary", "prompt", None),
        (completion(prompt="x" * 2000), "exceed the model's length", None, "context_length_exceeded"),
        (completion(max_tokens=1000), "exceed the model's length", "max_tokens", "context_length_exceeded"),
        (completion(max_tokens=600), "max_tokens may be at most 500", "max_tokens", None),
        (completion(max_tokens=0), "at least 1", "max_tokens", None),
        (completion(max_tokens=1.5), "max_tokens must be an integer, not a number", "max_tokens", "invalid_type"),
        (completion(max_tokens=True), "not a boolean", "max_tokens", "invalid_type"),
        (completion(temperature="hot"), "temperature must be a number, not a string", "temperature", "invalid_type"),
        (completion(temperature=2.1), "at most 2", "temperature", None),
        (completion(temperature=-1), "at least 0", "temperature", None),
        (completion(top_p=0), "more than 0", "top_p", None),
        (completion(top_k=-2), "at least -1", "top_k", None),
        (completion(seed=2**64), "at most", "seed", None),
        (completion(n=200), "at most 128", "n", None),
        (completion(prompt=["x"] * 65, n=2), "at most 128", "n", None),
        (completion(stop=["a"] * 5), "at most 4", "stop", None),
        (completion(stop=[""]), "1 to 256", "stop", None),
        (completion(stop=["a", 1]), "stop must be", "stop", "invalid_type"),
        (completion(stop_token_ids=[9999]), "outside the vocabulary", "stop_token_ids", None),
        (completion(stop_token_ids="x"), "a list of token ids", "stop_token_ids", "invalid_type"),
        (completion(logprobs=21), "at most 20", "logprobs", None),
        (completion(logprobs=True), "an integer", "logprobs", "invalid_type"),
        (completion(echo=True), "echo is not supported", "echo", "unsupported_parameter"),
        (completion(best_of=3), "best_of is not supported", "best_of", "unsupported_parameter"),
        (completion(suffix="x"), "suffix is not supported", "suffix", "unsupported_parameter"),
        (completion(presence_penalty=1), "not supported", "presence_penalty", "unsupported_parameter"),
        (completion(logit_bias={"5": 1}), "not supported", "logit_bias", "unsupported_parameter"),
        (completion(tempreature=1), "unrecognized request argument: tempreature", "tempreature", "unknown_parameter"),
        (completion(stream_options={}, stream=1), "a boolean", "stream", "invalid_type"),
        (completion(stream_options={"include_usage": True}), "needs stream", "stream_options", None),
        (completion(model=5), "model must be a string", "model", "invalid_type"),
    ],
)
def test_bad_completions(body, why, param, code):
    app = app_that_says("x", max_tokens=500)
    assert_error(post(app, "/v1/completions", body), 400, why, param, code)


def test_fields_that_ask_for_nothing_are_ignored():
    body = completion(
        model="tiny", user="me", echo=False, best_of=1, presence_penalty=0.0, logit_bias=None, suffix=None
    )
    assert post(app_that_says("x"), "/v1/completions", body).status_code == 200
    body = chat(tool_choice="auto", response_format={"type": "text"}, store=True, metadata={"a": "b"}, top_k=-1)
    assert post(app_that_says("x"), "/v1/chat/completions", body).status_code == 200


def test_another_model():
    response = post(app_that_says("x"), "/v1/completions", completion(model="gpt"))
    assert_error(response, 404, "there is no model 'gpt'", "model", "model_not_found")


# ---- chats


def test_reasoning_and_calls():
    tools = [
        {"type": "function", "function": {"name": "bash", "parameters": {"properties": {"c": {"type": "string"}}}}}
    ]
    text = "I look.\n</think>\nLet me.\n<tool: bash>\nls -l\n</tool>"
    body = chat(tools=tools, reasoning_effort="high", max_completion_tokens=100)
    engine = says(text, EOT)
    answer = post(app_of(engine, TOKENIZER), "/v1/chat/completions", body).json()
    [choice] = answer["choices"]
    [call] = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Let me.\n", "reasoning_content": "I look."}
    assert (call["type"], call["function"]) == ("function", {"name": "bash", "arguments": '{"c": "ls -l"}'})
    assert choice["finish_reason"] == "tool_calls"
    prompt = TOKENIZER.decode(engine.requests[0].prompt)
    assert REASONING_SYSTEM_PROMPT + "\n\nYou can use tools" in prompt
    assert prompt.endswith("assistant<|end_header_id|>\n\n<think>\n")

    events = events_of(post(app_that_says(text, EOT), "/v1/chat/completions", body | {"stream": True}).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I look."
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me.\n"
    [streamed] = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert streamed["index"] == 0 and streamed["function"] == call["function"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_between_special_tokens():
    start, end = SPECIAL["<|reasoning_thinking_start|>"], SPECIAL["<|reasoning_thinking_end|>"]
    yes, no = TOKENIZER.encode("yes").tolist(), TOKENIZER.encode("no").tolist()
    engine = ScriptedEngine(TOKENIZER, lambda request: [start, *no, end, *yes, EOT])
    [choice] = post(app_of(engine, TOKENIZER), "/v1/chat/completions", chat()).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "reasoning_content": "no"}
    assert choice["finish_reason"] == "stop"


def test_one_call_at_a_time_ends_the_answer():
    tools = [{"type": "function", "function": {"name": "a"}}]
    text = "<tool: a>\n1\n</tool>\n<tool: a>\n2\n</tool>\n"
    for parallel, calls in [(True, 2), (False, 1)]:
        body = chat(tools=tools, parallel_tool_calls=parallel)
        [choice] = post(app_that_says(text, EOT), "/v1/chat/completions", body).json()["choices"]
        assert len(choice["message"]["tool_calls"]) == calls
        assert choice["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_content():
    text = "<tool: a>\n1\n</tool>\n"
    tools = [{"type": "function", "function": {"name": "a"}}]
    for body in (chat(), chat(tools=tools, tool_choice="none")):
        [choice] = post(app_that_says(text, EOT), "/v1/chat/completions", body).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_an_assistants_message_is_continued():
    engine = says("it is</think>so", EOT)
    messages = [*HELLO, {"role": "assistant", "content": "<think>\nI think "}]
    [choice] = post(app_of(engine, TOKENIZER), "/v1/chat/completions", {"messages": messages}).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "so", "reasoning_content": "it is"}
    assert TOKENIZER.decode(engine.requests[0].prompt).endswith("<think>\nI think ")
    messages[-1] = {"role": "assistant", "content": "So", "reasoning_content": "hm"}
    [choice] = post(app_that_says(" x", EOT), "/v1/chat/completions", {"messages": messages}).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": " x"}


def test_log_probabilities_of_a_chat():
    body = chat(logprobs=True, top_logprobs=2, stream=True)
    events = events_of(post(app_that_says("é", EOT), "/v1/chat/completions", body).text)
    entries = [e for event in events for e in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["bytes"] for entry in entries] == [[0xC3], [0xA9], list(b"<|eot_id|>")] or len(entries) == 2
    assert all(entry["logprob"] == -0.5 and len(entry["top_logprobs"]) == 2 for entry in entries)


@pytest.mark.parametrize(
    ("body", "why", "param"),
    [
        ({}, "messages must be", "messages"),
        ({"messages": []}, "messages must be", "messages"),
        ({"messages": "hi"}, "messages must be a list of objects", "messages"),
        ({"messages": [5]}, "messages must be a list of objects", "messages"),
        ({"messages": [{"role": "bot", "content": ""}]}, "unknown role", "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "no content", "messages"),
        ({"messages": [{"role": "tool", "name": 5, "content": ""}]}, "answers no call", "messages"),
        (chat(tools=[{}]), "expected a tool of type function", "tools[0]"),
        (chat(tools=[{"type": "function", "function": {"name": "a>"}}]), "the name must not", "tools[0].function.name"),
        (chat(tools=[{"type": "function", "function": {"name": "a", "parameters": 5}}]), "must be the schema",
         "tools[0].function.parameters"),
        (chat(tool_choice="required"), "auto or none", "tool_choice"),
        (chat(tool_choice={"type": "function"}), "auto or none", "tool_choice"),
        (chat(top_logprobs=2), "needs logprobs", "top_logprobs"),
        (chat(response_format={"type": "json_object"}), "not supported", "response_format"),
        (chat(chat_template_kwargs={"x": 1}), "unrecognized", "x"),
        (chat(reasoning_effort=1), "a string", "reasoning_effort"),
    ],
)  # fmt: skip
def test_bad_chats(body, why, param):
    response = post(app_that_says("x"), "/v1/chat/completions", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert why in error["message"] and error["param"] == param


def test_a_vocabulary_without_chats():
    from cwm_core import Tokenizer

    plain = Tokenizer.train(["x"], 256, special_tokens=[])
    response = post(app_of(ScriptedEngine(plain), plain), "/v1/chat/completions", chat())
    assert_error(response, 400, "lacks the special token", "messages")


# ---- bodies, keys, other routes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "stop_token_ids", "stream",
    "seed", "stream_options", "logprobs", "top_logprobs", "echo", "tools", "tool_choice", "model",
    "chat_template_kwargs",
])  # fmt: skip
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"]),
    st.sampled_from(["system", "user", "assistant", "tool", "tool: x"]) | JSON,
)
BODIES = st.one_of(
    st.binary(max_size=50),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(NAMES, JSON, max_size=5).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(NAMES, JSON, max_size=3).map(
        lambda value: json.dumps({"prompt": "x", "max_tokens": 3} | value).encode()
    ),
    st.tuples(st.dictionaries(NAMES, JSON, max_size=2), st.lists(MESSAGE, max_size=3)).map(
        lambda parts: json.dumps(chat(max_tokens=3) | {"messages": parts[1]} | parts[0]).encode()
    ),
)


@settings(max_examples=20)
@given(
    bodies=st.lists(BODIES, min_size=20, max_size=20), path=st.sampled_from(["/v1/completions", "/v1/chat/completions"])
)
def test_whatever_the_body_the_answer_is_well_formed(bodies, path):
    engine = ScriptedEngine(TOKENIZER)
    app = app_of(engine, TOKENIZER, max_tokens=50)

    async def send():
        async with client_of(app) as client:
            for body in bodies:
                response = await client.post(path, content=body, headers={"content-type": "application/json"})
                assert response.status_code in (200, 400, 404), (body, response.text)
                if response.headers["content-type"].startswith("text/event-stream"):
                    events_of(response.text)
                elif response.status_code != 200:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                else:
                    assert response.json()["choices"]
            assert app.state.service.engine_thread.open == 0
            until(lambda: not engine.handles)

    asyncio.run(send())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is not JSON"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": [' + b"9" * 5000 + b"]}", "not valid JSON"),
        (b'{"prompt": "x", "max_tokens": 1e999}', "must be an integer"),
    ],
)
def test_malformed_bodies(content, why):
    headers = {"content-type": "application/json"}
    assert_error(
        ask(app_that_says("x"), "/v1/completions", content=content, headers=headers), 400, why
    ) if "integer" not in why else None
    response = ask(app_that_says("x"), "/v1/completions", content=content, headers=headers)
    assert response.status_code == 400 and why in response.json()["error"]["message"]


def test_bodies_have_bounds():
    app = app_that_says("x", body_bytes=1000)
    assert_error(post(app, "/v1/completions", {"prompt": "x" * 1000}), 413, "larger than 1000 bytes")

    async def chunks():
        for _ in range(50):
            yield b" " * 100

    response = ask(app_that_says("x", body_bytes=1000), "/v1/completions", content=chunks(),
                   headers={"content-type": "application/json"})  # fmt: skip
    assert_error(response, 413, "larger than 1000 bytes")
    response = ask(app_that_says("x"), "/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert_error(response, 415, "application/json")


def test_large_bodies_are_prepared_off_the_loop():
    body = {"prompt": "x" * 900, "max_tokens": 3, "user": "u" * 20_000}
    assert post(app_that_says("x"), "/v1/completions", body).status_code == 200
    response = post(app_that_says("x"), "/v1/completions", body | {"n": 0})
    assert_error(response, 400, "at least 1", "n")


def test_keys():
    app = lambda: app_that_says("x", api_key="se-crét")  # noqa: E731
    for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic se-cret"}, {"authorization": "\xff"}):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        response = ask(app(), "/v1/completions", json=completion(), headers=encoded)
        assert_error(response, 401, "API key", None, "invalid_api_key")
        assert ask(app(), "/v1/models", content=b"", headers=encoded).status_code == 405
    plain = app_that_says("x", api_key="secret")
    assert (
        ask(plain, "/v1/completions", json=completion(), headers={"authorization": "Bearer secret"}).status_code == 200
    )
    assert_error(ask(app(), "/v1/models"), 401, "API key", None, "invalid_api_key")
    assert ask(app(), "/health").status_code == 200


def test_other_routes():
    app = lambda: app_that_says("x")  # noqa: E731
    assert ask(app(), "/health").json() == {"status": "ok"}
    [model] = ask(app(), "/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 1000)
    assert_error(ask(app(), "/v1/none"), 404, "Not Found")
    assert_error(ask(app(), "/v1/completions"), 405, "Method Not Allowed")


def test_metrics():
    async def run():
        async with client_of(app_that_says("hello")) as client:
            for body in (completion(n=2), {}):
                await client.post("/v1/completions", json=body)
            return (await client.get("/metrics")).text

    lines = asyncio.run(run()).splitlines()
    assert 'cwm_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'cwm_requests_total{path="/v1/completions",status="400"} 1.0' in lines
    generated = 2 * TOKENIZER.count("hello")
    assert f"cwm_generated_tokens_total {float(generated)}" in lines
    assert "cwm_prompt_tokens_total 1.0" in lines
    assert "cwm_time_to_first_token_seconds_count 1.0" in lines
    assert "cwm_sequences_open 0.0" in lines
    assert "cwm_cache_bytes 0.0" in lines


# ---- the engine's failures, and bounds


def test_a_failing_step_is_an_error_and_not_the_end(caplog):
    engine = says("hello")
    app = app_of(engine, TOKENIZER)

    async def run():
        async with client_of(app) as client:
            engine.failures = [RuntimeError("secret detail")]
            whole = await client.post("/v1/completions", json=completion())
            engine.failures = [RuntimeError("secret detail")]
            streamed = await client.post("/v1/completions", json=completion(stream=True))
            after = await client.post("/v1/completions", json=completion())
            assert (await client.get("/health")).status_code == 200
            engine.failures = [RuntimeError("secret detail")] * MAX_FAILURES
            for _ in range(3):
                await client.post("/v1/completions", json=completion())
            return (
                whole,
                streamed,
                after,
                await client.get("/health"),
                await client.post("/v1/completions", json=completion()),
            )

    whole, streamed, after, health, refused = asyncio.run(run())
    assert_error(whole, 500, "generation failed", None, "engine_error")
    [event] = events_of(streamed.text)
    assert event["error"]["code"] == "engine_error"
    assert after.status_code == 200
    assert_error(health, 503, "the engine has failed")
    assert_error(refused, 503, "the engine has failed")
    assert "secret" not in whole.text + streamed.text + health.text


@pytest.mark.parametrize("method", ["submit", "cancel"])
def test_a_broken_engine_is_an_error(monkeypatch, method):
    engine = ScriptedEngine(TOKENIZER)
    app = app_of(engine, TOKENIZER, request_seconds=20)

    async def run():
        async with client_of(app) as client:
            monkeypatch.setattr(engine, method, lambda *_: 1 / 0)
            if method == "cancel":
                engine.failures = [RuntimeError("no step")]
            return await asyncio.gather(*(client.post("/v1/completions", json=completion(n=2)) for _ in range(5)))

    answers = asyncio.run(run())
    assert answers[0].status_code == 500
    for answer in answers:
        assert answer.status_code == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert app.state.service.engine_thread.open == 0


def test_a_bug_is_an_error_without_a_traceback(monkeypatch):
    app = app_that_says("x")
    monkeypatch.setattr(app.state.service, "_check", lambda *_: 1 / 0)
    assert_error(post(app, "/v1/completions", completion()), 500, "the server failed")


def test_the_queue_has_bounds():
    engine = ScriptedEngine(TOKENIZER, max_batch=2, seconds=0.01)
    app = app_of(engine, TOKENIZER, max_queue=3)

    async def run():
        async with client_of(app) as client:
            posts = [client.post("/v1/completions", json=completion(max_tokens=30)) for _ in range(9)]
            responses = await asyncio.gather(*posts)
            assert app.state.service.engine_thread.open == 0
            return responses, await client.post("/v1/completions", json=completion(n=6))

    responses, large = asyncio.run(run())
    assert sorted(response.status_code for response in responses) == [200] * 5 + [429] * 4
    refused = next(response for response in responses if response.status_code == 429)
    assert_error(refused, 429, "try again later", None, "queue_full")
    assert refused.headers["retry-after"] == "1"
    assert large.status_code == 429
    assert engine.most_running == 2


@pytest.mark.parametrize("stream", [False, True])
def test_requests_have_a_time(stream):
    engine = ScriptedEngine(TOKENIZER, seconds=0.02)
    app = app_of(engine, TOKENIZER, request_seconds=0.3)
    response = post(app, "/v1/completions", completion(max_tokens=500, stream=stream))
    error = events_of(response.text)[-1] if stream else response.json()
    assert error["error"]["code"] == "request_timeout"
    assert response.status_code == (200 if stream else 504)
    assert not engine.handles


def test_stopping_ends_open_requests():
    engine = ScriptedEngine(TOKENIZER, seconds=0.01)
    app = app_of(engine, TOKENIZER)

    async def run():
        async with app.router.lifespan_context(app):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")
            task = asyncio.create_task(client.post("/v1/completions", json=completion(max_tokens=500)))
            while not engine.handles:
                await asyncio.sleep(0.01)
        return await task

    assert_error(asyncio.run(run()), 503, "the server is stopping")
    assert not engine.handles
