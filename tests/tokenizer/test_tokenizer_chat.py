"""Chats to tokens: the format stated a second time here, its parts encoded by tiktoken, is the oracle."""

import numpy as np
import pytest
from cwm_core import Tokenizer
from cwm_core.tokenizer.chat import REASONING_SYSTEM_PROMPT
from hypothesis import given
from hypothesis import strategies as st
from llama3 import SPECIAL

REASONING_TOKENS = ["<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]

CONTENTS = st.lists(
    st.one_of(
        st.sampled_from([*REASONING_TOKENS, "<|eot_id|>", "<|begin_of_text|>", "<|end_header_id|>", "<think>"]),
        st.sampled_from([" ", "\n", "\n\n", "\t", "\x1c", "\u3000", "word", " two words", "'s", "12345", "é", "😀"]),
        st.text(max_size=5),
    ),
    max_size=8,
).map("".join)
TOOL_NAMES = st.one_of(st.sampled_from(["bash", "edit", "<|eot_id|>"]), st.text(min_size=1).filter(str.strip))
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENTS}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": CONTENTS, "reasoning_content": CONTENTS}),
        st.fixed_dictionaries({"role": TOOL_NAMES.map("tool: {}".format), "content": CONTENTS}),
        st.fixed_dictionaries({"role": st.just("tool"), "name": TOOL_NAMES, "content": CONTENTS}),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train(["def f(x):\n    return x\n"] * 2, 270)


def chat_by_hand(peer, *parts):
    """Ids and mask of parts: a special token's name, or text; in a tuple where the loss counts."""
    ids, mask = [], []
    for part in parts:
        text, in_loss = (part[0], True) if isinstance(part, tuple) else (part, False)
        new = [SPECIAL[text]] if text in SPECIAL else peer.encode_ordinary(text)
        ids += new
        mask += [in_loss] * len(new)
    return ids, mask


def header(role):
    return "<|start_header_id|>", role, "<|end_header_id|>", "\n\n"


def restated(peer, messages, reasoning, add_generation_prompt):
    """Ids and mask by the description of the format, slowly."""
    messages = [dict(message) for message in messages]
    if reasoning and [message["role"] for message in messages[:1]] != ["system"]:
        messages = [{"role": "system", "content": REASONING_SYSTEM_PROMPT}, *messages]
    continued = add_generation_prompt and messages and messages[-1]["role"] == "assistant"
    if add_generation_prompt and not continued:
        messages.append({"role": "assistant", "content": "<think>\n" if reasoning else ""})

    ids, mask = [SPECIAL["<|begin_of_text|>"]], [False]
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if message.get("reasoning_content"):
            content = "\n".join(["<think>", message["reasoning_content"].strip(), "</think>", content.lstrip()])
        if role == "tool":
            role = "tool: " + message["name"]
        to_continue = bool(add_generation_prompt) and number == len(messages) - 1
        if not role.startswith("tool") and not to_continue:
            content = content.strip()

        # One part after another: a name becomes a special token only where it stands by itself in its own list.
        ids += [SPECIAL["<|start_header_id|>"], *peer.encode_ordinary(role), SPECIAL["<|end_header_id|>"]]
        ids += peer.encode_ordinary("\n\n")
        mask += [False] * (len(ids) - len(mask))
        allowed = set(REASONING_TOKENS) if role == "assistant" else set()
        ids += peer.encode(content, allowed_special=allowed, disallowed_special=())
        ids += [] if to_continue else [SPECIAL["<|eot_id|>"]]
        mask += [role == "assistant" and not to_continue] * (len(ids) - len(mask))
    return ids, mask


def assert_chat(llama, expected, *args, **kwargs):
    ids, mask = llama.encode_chat(*args, **kwargs)
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
    assert (ids.tolist(), mask.tolist()) == expected


@given(messages=MESSAGES, reasoning=st.booleans(), add_generation_prompt=st.booleans())
def test_any_chat_equals_the_format_restated(llama, peer, messages, reasoning, add_generation_prompt):
    expected = restated(peer, messages, reasoning, add_generation_prompt)
    options = {"reasoning": reasoning, "add_generation_prompt": add_generation_prompt}
    assert_chat(llama, expected, iter(messages), **options)


@given(messages=MESSAGES, reasoning=st.booleans())
def test_the_loss_is_on_what_the_assistant_wrote(llama, messages, reasoning):
    ids, mask = llama.encode_chat(messages, reasoning=reasoning)
    answers = ""
    for message in messages:
        if message["role"] == "assistant":
            thought = message.get("reasoning_content")
            written = f"<think>\n{thought.strip()}\n</think>\n" if thought else ""
            answers += (written + message["content"].lstrip()).strip() + "<|eot_id|>"
    assert llama.decode(ids[mask]) == answers
    assert np.count_nonzero(ids == SPECIAL["<|eot_id|>"]) == np.count_nonzero(ids == SPECIAL["<|start_header_id|>"])


def test_chat(llama, peer):
    messages = [
        {"role": "user", "content": "  hi <|eot_id|><|reasoning_thinking_start|> \n"},
        {"role": "assistant", "content": " <|reasoning_thinking_start|>x<|reasoning_thinking_end|> <|eot_id|>y "},
        {"role": "tool: bash", "content": " completed.\n"},
    ]
    answer = "<|reasoning_thinking_start|>", "x", "<|reasoning_thinking_end|>", " <|eot_id|>y", "<|eot_id|>"
    body = [
        "<|begin_of_text|>",
        *(*header("user"), "hi <|eot_id|><|reasoning_thinking_start|>", "<|eot_id|>"),
        *(*header("assistant"), *((part,) for part in answer)),
        *(*header("tool: bash"), " completed.\n", "<|eot_id|>"),
    ]
    assert_chat(llama, chat_by_hand(peer, *body), messages)
    prompted = chat_by_hand(peer, *body, *header("assistant"))
    assert_chat(llama, prompted, messages, add_generation_prompt=True)
    by_name = [*messages[:2], {"role": "tool", "name": "bash", "content": " completed.\n"}]
    assert_chat(llama, chat_by_hand(peer, *body), by_name)


def test_reasoning_chat_begins_and_ends_as_the_guide_says(llama, peer):
    system = ["<|begin_of_text|>", *header("system"), REASONING_SYSTEM_PROMPT, "<|eot_id|>"]
    user = [*header("user"), "hi", "<|eot_id|>"]
    expected = chat_by_hand(peer, *system, *user, *header("assistant"), "<think>\n")
    messages = [{"role": "user", "content": "hi"}]
    assert_chat(llama, expected, messages, reasoning=True, add_generation_prompt=True)
    assert messages == [{"role": "user", "content": "hi"}]

    own = ["<|begin_of_text|>", *header("system"), "Be brief.", "<|eot_id|>"]
    messages.insert(0, {"role": "system", "content": "Be brief."})
    assert_chat(llama, chat_by_hand(peer, *own, *user), messages, reasoning=True)


def test_reasoning_content_is_what_the_model_wrote(llama):
    written = {"role": "assistant", "content": "<think>\nIt is 4.\n</think>\nFour."}
    parsed = {"role": "assistant", "content": "\n\nFour.", "reasoning_content": "\nIt is 4.\n"}
    assert llama.encode_chat([parsed])[0].tolist() == llama.encode_chat([written])[0].tolist()
    without = {"role": "assistant", "content": "Four.", "reasoning_content": ""}
    plain = {"role": "assistant", "content": "Four."}
    assert llama.encode_chat([without])[0].tolist() == llama.encode_chat([plain])[0].tolist()


def test_an_assistants_prefix_is_continued_unchanged(llama, peer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>\nSo "}]
    expected = chat_by_hand(
        peer, "<|begin_of_text|>", *header("user"), "hi", "<|eot_id|>", *header("assistant"), "<think>\nSo "
    )
    assert_chat(llama, expected, messages, add_generation_prompt=True)


def test_long_chat_texts_are_cut(llama, peer):
    text = "ab" * 150_000 + "c" * 150_000
    ids, _ = llama.encode_chat([{"role": "tool: bash", "content": text}])
    expected = chat_by_hand(
        peer, "<|begin_of_text|>", *header("tool: bash"), text[:400_000], text[400_000:], "<|eot_id|>"
    )
    assert ids.tolist() == expected[0]

    # A reasoning token that a cut goes through is none.
    text = "." * 399_990 + "<|reasoning_thinking_end|>"
    ids, _ = llama.encode_chat([{"role": "assistant", "content": text}])
    assert SPECIAL["<|reasoning_thinking_end|>"] not in ids
    ids, _ = llama.encode_chat([{"role": "assistant", "content": text[1000:]}])
    assert SPECIAL["<|reasoning_thinking_end|>"] in ids


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "bot", "content": ""}, "message 1: .*'bot'"),
        ({"role": "tool: ", "content": ""}, "'tool: '"),
        ({"role": "tool", "content": ""}, "'tool'"),
        ({"role": "tool", "name": " ", "content": ""}, "'tool:  '"),
        ({"role": "tool: bash", "name": "bash", "content": ""}, "keys"),
        ({"role": "user"}, "message 1: .*keys"),
        ({"content": "x"}, "keys"),
        ({}, "keys"),
        ({"role": "user", "content": "", "name": "x"}, "keys"),
        ({"role": "user", "content": "", "reasoning_content": "x"}, "keys"),
        ({"role": "assistant", "content": "", "tool_calls": []}, "keys .*optionally reasoning_content"),
        ({"role": "user", "content": None}, "message 1: content: expected a string, got NoneType"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "content: expected a string, got list"),
        ({"role": ["user"], "content": "x"}, "role: expected a string, got list"),
        (
            {"role": "assistant", "content": "x", "reasoning_content": None},
            "reasoning_content: expected a string, got NoneType",
        ),
    ],
)
def test_bad_messages_are_refused(small, message, why):
    with pytest.raises(ValueError, match=why):
        small.encode_chat([{"role": "user", "content": "hi"}, message])


def test_chat_needs_its_special_tokens():
    tokenizer = Tokenizer.train([], 256, special_tokens=["<|begin_of_text|>"])
    with pytest.raises(ValueError, match="start_header_id"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_an_empty_chat(small):
    ids, mask = small.encode_chat([])
    assert small.decode(ids) == "<|begin_of_text|>"
    assert not mask.any()
    ids, _ = small.encode_chat([], add_generation_prompt=True)
    assert small.decode(ids) == "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"
