"""Test how the server turns tokens into stop strings, reasoning, and tool calls, however the text is cut."""

import json
import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from cwm_core.inference.server.chat import FunctionTool, Parts, Splitter, ToolCall, to_messages
from cwm_core.inference.server.output import Output, StopStrings
from cwm_core.tokenizer.chat import REASONING_SYSTEM_PROMPT
from hypothesis import example, given
from hypothesis import strategies as st
from serving import ScriptedEngine, small_tokenizer

TOKENIZER = small_tokenizer()


def in_pieces(text, cuts):
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


CUTS = st.lists(st.integers(0, 80))
SHORT = st.text("ab\n", max_size=20)


def stopped(text, stops):
    """Return the shortest prefix that ends with a stop string, without the longest such string; otherwise the text."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(text=SHORT, stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4), cuts=CUTS)
@example(text="abab", stops=["bab", "ba"], cuts=[1, 2, 3])
def test_stop_strings_by_their_definition(text, stops, cuts):
    finder, out = StopStrings(stops), ""
    for piece in in_pieces(text, cuts):
        out += finder.feed(piece)
        if finder.found:
            break
    out += finder.finish()
    assert (out, finder.found) == stopped(text, stops)


@given(text=SHORT, stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_become_a_stop_string(text, stops):
    finder, out = StopStrings(stops), ""
    for char in text:
        out += finder.feed(char)
        if finder.found:
            return
    held = finder.finish()
    assert out + held == text
    assert not held or any(stop.startswith(held) for stop in stops)


PIECES = st.sampled_from([
    "<think>", "</think>", "<tool: bash>", "<tool: edit >\t", "<tool: >", "<tool:", "</tool>", "</tool> ", "<", ">",
    "\n", "\n", "\n\n", " ", "x", "ls -l", '{"a": 1}', "é",
])  # fmt: skip
ANSWERS = st.lists(PIECES, max_size=16).map("".join)
CALL = re.compile(r"^<tool: (?=[^>\n]*[^>\s])([^>\n]+)>[ \t]*\n(.*?)^</tool>[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
BASH = FunctionTool(
    "bash", "Runs commands.", {"properties": {"command": {"type": "string", "description": "what to run"}}}
)
EDIT = FunctionTool("edit", "", {"properties": {"path": {"type": "string"}, "text": {"type": "string"}}})
PREFIXES = st.sampled_from(["", "<think>\n", "<think>\nSo ", "It is", "It is\n", "<think>\nx\n</think>\n"])


def split_at_once(text, prefix, tools):
    """Apply the definition to the whole text."""
    reasoning, is_fresh = "", False
    whole = prefix + text
    if (
        whole.lstrip().startswith("<think>")
        and "</think>" not in prefix
        and (not prefix.strip() or "<think>" in prefix)
    ):
        thought, tag, text = whole.lstrip().removeprefix("<think>").partition("</think>")
        said = prefix.lstrip().removeprefix("<think>")
        # What the prefix holds of it is not said again.
        if said.strip():
            thought = thought[len(said) :] if tag or len(thought) >= len(said) else ""
            reasoning = thought.rstrip()
        else:
            reasoning = thought.strip()
        is_fresh, prefix = True, ""
        if not tag:
            return Parts(reasoning)
    parts = Parts(reasoning)
    if is_fresh:
        text = text.lstrip()
    # A tag begins a line; the line may have begun in the prefix.
    lead = "x" if prefix and not prefix.endswith("\n") and not is_fresh else ""
    text = lead + text
    found = CALL.search(text) if tools else None
    while found:
        parts.content += text[: found.start()]
        tool = {tool.name: tool for tool in tools}.get(found[1].strip(), FunctionTool(found[1].strip(), "", {}))
        parts.calls += (ToolCall(tool.name, tool.arguments(found[2].removesuffix("\n"))),)
        text = text[found.end() :].lstrip()
        found = CALL.search(text)
    parts.content += text
    parts.content = parts.content.removeprefix(lead)
    return parts


@given(text=ANSWERS, cuts=CUTS, prefix=PREFIXES, tools=st.sampled_from([(), (BASH, EDIT)]))
@example(text="a<tool: bash>\nls\n</tool>\n", cuts=[], prefix="", tools=(BASH,))
@example(text="<tool: bash>\nls\n</tool>", cuts=[1, 5, 30], prefix="<think>\nx\n</think>\n", tools=(BASH,))
def test_answers_split_by_the_definition_however_they_are_cut(text, cuts, prefix, tools):
    splitter, parts = Splitter(tools, prefix), Parts()
    for piece in in_pieces(text, cuts):
        parts += splitter.feed(piece)
    parts += splitter.finish()
    assert parts == split_at_once(text, prefix, tools)


def test_an_answer_with_everything():
    splitter = Splitter([BASH], "<think>\n")
    parts = splitter.feed("I look.\n</think>\n\nLet me look.\n<tool: bash>\nls -l\ncat x\n</tool>") + splitter.finish()
    assert parts == Parts("I look.", "Let me look.\n", (ToolCall("bash", '{"command": "ls -l\\ncat x"}'),))


def test_content_streams_at_once_where_no_tag_begins():
    splitter = Splitter([BASH], "")
    assert splitter.feed("It is ").content == "It is "
    assert splitter.feed("a <b").content == "a <b"
    assert splitter.feed("\n<to").content == "\n"
    assert splitter.feed("uch").content == "<touch"


@given(arguments=st.text(max_size=20))
def test_arguments_of_a_single_parameter_come_back(arguments):
    assert BASH.content(json.dumps({"command": arguments})) == arguments
    assert json.loads(BASH.arguments(arguments)) == {"command": arguments}


@given(values=st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5)), min_size=2))
def test_arguments_of_several_parameters_come_back(values):
    assert json.loads(EDIT.arguments(EDIT.content(json.dumps(values)))) == values


def test_arguments_are_always_an_object():
    for content in ("", "x", "[1]", '"x"', "{", "[" * 5000):
        assert json.loads(EDIT.arguments(content)) == {"content": content}


def test_messages_of_the_protocol():
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "x\n"},
    ]
    system, *rest = to_messages(messages, [BASH], reasoning=True)
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\nYou can use tools.")
    assert system["content"].endswith("## bash\nRuns commands.\nCONTENT is the command: what to run")
    assert rest == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<tool: bash>\nls\n</tool>", "reasoning_content": "hm"},
        {"role": "tool", "name": "bash", "content": "x\n"},
    ]
    TOKENIZER.encode_chat([system, *rest])
    assert to_messages(messages[1:2], [], reasoning=False) == [{"role": "user", "content": "hi"}]
    reasoned = to_messages(messages[1:2], [EDIT], reasoning=True)
    assert reasoned[0]["content"].startswith(REASONING_SYSTEM_PROMPT + "\n\nYou can use tools.")
    assert json.dumps(EDIT.parameters) in reasoned[0]["content"]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "bot", "content": ""}, r"messages\[0\] has an unknown role"),
        ({"role": ["user"], "content": ""}, "unknown role"),
        ({"content": ""}, "unknown role"),
        ({"role": "user"}, "no content"),
        ({"role": "user", "content": 1}, "expected a string or a list of parts"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "not text"),
        ({"role": "assistant"}, "neither content nor tool_calls"),
        ({"role": "assistant", "tool_calls": 1}, "expected a list"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\]: expected a function"),
        ({"role": "tool", "content": "x", "tool_call_id": "?"}, "answers no call"),
        ({"role": "tool", "content": "x", "tool_call_id": {}}, "answers no call"),
    ],
)
def test_bad_messages(message, why):
    with pytest.raises(ValueError, match=why):
        to_messages([message], [], reasoning=False)


@given(text=st.text(max_size=20), cuts=CUTS, data=st.data())
def test_text_never_ends_within_a_character(text, cuts, data):
    from cwm_core.inference.engine import Request

    ids = [t for piece in in_pieces(text, cuts) for t in TOKENIZER.encode_bytes(piece.encode("utf-8", "replace"))]
    text = TOKENIZER.decode(ids)
    special = data.draw(st.sampled_from(sorted(TOKENIZER.special_tokens.values())))
    engine = ScriptedEngine(TOKENIZER, lambda request: [*ids, special])
    engine.submit(Request([1], 1000, frozenset({special})))
    output, deltas = Output(TOKENIZER, ()), []
    while not output.finish_reason:
        deltas.append(output.feed(engine.step()))
    assert "".join(delta.text for delta in deltas) == text
    assert all("\ufffd" not in delta.text for delta in deltas) or "\ufffd" in text
    assert output.finish_reason == "stop"
    assert [t for delta in deltas for t in delta.ids] == [*ids, special]
