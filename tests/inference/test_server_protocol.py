"""Small print of the protocol: tools without parameters, one model's route, web pages, fields that ask for nothing."""

import asyncio

import pytest

pytest.importorskip("torch")
pytest.importorskip("starlette")

from cwm_core.inference.server.chat import FunctionTool
from serving import ScriptedEngine, app_of, ask, client_of, post
from test_server import EOT, TOKENIZER, app_that_says, assert_error, chat, completion, says

# ---- tools


def function(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"parameters": None},
        {"parameters": {}},
        {"parameters": {"type": "object"}},
        {"parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False}},
    ],
)
@pytest.mark.parametrize("content", ["", "\n", "{}\n", "please\n"])
def test_a_tool_without_parameters_gets_no_arguments(parameters, content):
    text = f"<tool: now>\n{content}</tool>"
    engine = says(text, EOT)
    body = chat(tools=[function("now", **parameters)])
    [choice] = post(app_of(engine, TOKENIZER), "/v1/chat/completions", body).json()["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}
    assert "It takes no parameters" in TOKENIZER.decode(engine.requests[0].prompt)


def test_a_tool_whose_object_is_free_takes_what_the_model_writes():
    parameters = {"type": "object", "additionalProperties": {"type": "integer"}}
    body = chat(tools=[function("count", parameters=parameters)])
    answer = post(app_that_says('<tool: count>\n{"a": 1}\n</tool>', EOT), "/v1/chat/completions", body).json()
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"a": 1}'


def test_an_earlier_call_without_arguments_is_written_without_content():
    engine = says("ok", EOT)
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    body = {"messages": messages, "tools": [function("now")]}
    assert post(app_of(engine, TOKENIZER), "/v1/chat/completions", body).status_code == 200
    assert "<tool: now>\n\n</tool>" in TOKENIZER.decode(engine.requests[0].prompt)


def test_contents_and_arguments_of_a_tool_that_takes_nothing_are_inverse():
    tool = FunctionTool("now", "", {"type": "object", "properties": {}})
    assert tool.content(tool.arguments("")) == ""
    assert tool.arguments(tool.content("{}")) == "{}"


# ---- the model


def test_the_route_of_the_model():
    app = app_that_says("x")
    one = ask(app, "/v1/models/tiny")
    assert one.status_code == 200
    assert one.json() == ask(app_that_says("x"), "/v1/models").json()["data"][0]
    assert one.json()["id"] == "tiny" and one.json()["max_model_len"] == 1000


@pytest.mark.parametrize("name", ["other", "tiny/sub", "TINY"])
def test_the_route_of_another_model(name):
    response = ask(app_that_says("x"), f"/v1/models/{name}")
    assert_error(response, 404, f"there is no model {name!r}", "model", "model_not_found")


def test_the_route_of_a_model_with_a_slash_in_its_name():
    from cwm_core.inference.server import create_app

    app = create_app(ScriptedEngine(TOKENIZER), TOKENIZER, name="lab/tiny")
    assert ask(app, "/v1/models/lab/tiny").json()["id"] == "lab/tiny"


def test_the_route_of_the_model_needs_the_key():
    assert_error(ask(app_that_says("x", api_key="k"), "/v1/models/tiny"), 401, "missing", None, "invalid_api_key")


# ---- fields


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 0},
        {"top_logprobs": 0, "logprobs": False},
        {"top_logprobs": None},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {}},
        {"min_tokens": 0, "length_penalty": 1.0, "use_beam_search": False, "priority": 0},
        {"add_generation_prompt": True, "continue_final_message": False, "prompt_logprobs": None},
    ],
)
def test_fields_that_ask_for_nothing(fields):
    response = post(app_that_says("x", EOT), "/v1/chat/completions", chat(**fields))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["logprobs"] is None


def test_no_alternatives_beside_each_token():
    body = chat(logprobs=True, top_logprobs=0)
    [choice] = post(app_that_says("x", EOT), "/v1/chat/completions", body).json()["choices"]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[], []]


@pytest.mark.parametrize("fields", [{"min_tokens": 3}, {"use_beam_search": True}, {"prompt_logprobs": 1}])
def test_fields_that_ask_for_something_are_refused(fields):
    response = post(app_that_says("x"), "/v1/completions", completion(**fields))
    assert_error(response, 400, "is not supported", next(iter(fields)), "unsupported_parameter")


# ---- max_tokens


@pytest.mark.parametrize(
    ("limits", "wanted", "given"),
    [({}, 5000, 999), ({"max_tokens": 50}, 5000, 50), ({"max_tokens": 50}, 20, 20), ({}, 999, 999)],
)
def test_a_server_may_clamp_max_tokens(limits, wanted, given):
    engine = says("x", EOT)
    app = app_of(engine, TOKENIZER, clamp_max_tokens=True, **limits)
    assert post(app, "/v1/completions", completion(max_tokens=wanted)).status_code == 200
    assert engine.requests[0].max_new_tokens == given


def test_a_prompt_that_fills_the_context_is_refused_clamped_or_not():
    app = app_that_says("x", clamp_max_tokens=True)
    body = completion(prompt="x" * 1000, max_tokens=5)
    assert_error(post(app, "/v1/completions", body), 400, "exceed the model's length", None, "context_length_exceeded")


# ---- web pages


def preflight(app, origin):
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async def run():
        async with client_of(app) as client:
            asked = await client.options("/v1/chat/completions", headers=headers)
            answer = await client.post("/v1/chat/completions", json=chat(), headers={"origin": origin})
            return asked, answer

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "origin", "allowed"),
    [
        ({}, "http://localhost:3000", True),
        ({}, "http://127.0.0.1", True),
        ({}, "https://example.org", False),
        ({}, "http://localhost.example.org", False),
        ({"api_key": "k"}, "https://example.org", True),
        ({"cors_origins": ["https://example.org"]}, "https://example.org", True),
        ({"cors_origins": ["https://example.org"]}, "http://localhost:3000", False),
        ({"cors_origins": ["*"]}, "https://example.org", True),
    ],
)
def test_pages_that_may_use_the_server(options, origin, allowed):
    asked, answer = preflight(app_that_says("x", EOT, **options), origin)
    if allowed:
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] in (origin, "*")
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert answer.headers["access-control-allow-origin"] in (origin, "*")  # of refusals too
    else:
        assert asked.status_code == 400
        assert not {"access-control-allow-origin"} & (asked.headers.keys() | answer.headers.keys())


def test_a_stream_may_be_read_by_a_page():
    async def run():
        async with client_of(app_that_says("x", EOT)) as client:
            headers = {"origin": "http://localhost"}
            return await client.post("/v1/chat/completions", json=chat(stream=True), headers=headers)

    response = asyncio.run(run())
    assert response.headers["access-control-allow-origin"] == "http://localhost"
    assert response.text.endswith("data: [DONE]\n\n")
