"""A saved folder in Hugging Face's transformers: equal ids, equal texts, equal chats and loss masks."""

import json
import os
import re
from pathlib import Path

import pytest
from cwm_core import Tokenizer
from cwm_core.tokenizer import GPT2_PATTERN
from hypothesis import example, given
from hypothesis import strategies as st
from llama3 import rank_path

transformers = pytest.importorskip("transformers")
TemplateError = pytest.importorskip("jinja2").TemplateError

STDLIB = sorted(Path(os.__file__).parent.glob("*.py"))

TEXTS = st.lists(
    st.one_of(
        st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\u2028", "\u3000", "'LL", " word", "12345"]),
        st.sampled_from(["é", "e\u0301", "😀", "日本", "\x00", "=\n", "<think>\n", "<|", "|>"]),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)
SPECIAL_TEXTS = st.sampled_from(["<|begin_of_text|>", "<|eot_id|>", "<|frame_sep|>", "<|reserved_special_token_2|>"])
THINKING = st.sampled_from(["<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"])

MARGINS = st.sampled_from(["", "", " ", "\n", " \n\n", "\x1c", "\u3000"])
ANSWERS = st.tuples(MARGINS, st.lists(st.one_of(TEXTS, THINKING), max_size=3).map("".join), MARGINS).map("".join)
ROLES = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXTS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": ANSWERS}),
)
REASONED = st.fixed_dictionaries({"role": st.just("assistant"), "content": ANSWERS, "reasoning_content": ANSWERS})
# What encodes by itself as it does after "\n\n".
RESULTS = TEXTS.filter(lambda text: not re.match(r"\s*[\r\n]", text))
TOOLS = st.one_of(
    st.fixed_dictionaries({"role": st.just("tool"), "name": st.sampled_from(["bash", "a b"]), "content": RESULTS}),
    st.fixed_dictionaries({"role": st.sampled_from(["tool: edit", "tool:  é\n"]), "content": RESULTS}),
)
CHATS = st.lists(st.one_of(ROLES, REASONED, TOOLS), min_size=1, max_size=5)


@pytest.fixture(scope="module", params=["llama", "small"])
def pair(request, tmp_path_factory):
    """A tokenizer and what transformers makes of the folder that it saves."""
    if request.param == "llama":
        ours = Tokenizer.load(rank_path())
    else:
        ours = Tokenizer.train((path.read_text("utf-8") for path in STDLIB[:10]), 600)
    folder = tmp_path_factory.mktemp(request.param)
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@given(text=st.lists(st.one_of(TEXTS, SPECIAL_TEXTS), max_size=5).map("".join))
@example(text="")
def test_texts_give_equal_ids(pair, text):
    ours, theirs = pair
    plain = ours.encode(text).tolist()
    with_special = ours.encode(text, allowed_special="all").tolist()
    for add_special_tokens in (False, True):
        assert theirs(text, add_special_tokens=add_special_tokens)["input_ids"] == with_special
        split = theirs(text, add_special_tokens=add_special_tokens, split_special_tokens=True)
        assert split["input_ids"] == plain
    assert theirs.decode(plain) == theirs.decode(with_special) == text


@given(data=st.data())
def test_ids_give_equal_texts(pair, data):
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    assert theirs.decode(ids) == ours.decode(ids)
    bytes_of_text = ours.encode_bytes(data.draw(st.binary())).tolist()
    assert theirs.decode(bytes_of_text) == ours.decode(bytes_of_text)


def test_files_give_equal_ids(pair):
    ours, theirs = pair
    for path in STDLIB[::20]:
        text = path.read_text("utf-8")
        assert theirs(text)["input_ids"] == ours.encode(text, allowed_special="all").tolist()


@given(messages=CHATS, reasoning=st.booleans(), add_generation_prompt=st.booleans())
@example(messages=[{"role": "assistant", "content": "\n😀 "}], reasoning=False, add_generation_prompt=False)
@example(messages=[{"role": "assistant", "content": ""}], reasoning=False, add_generation_prompt=False)
@example(
    messages=[{"role": "assistant", "content": "\n\nYes. ", "reasoning_content": "\n is it? \n"}],
    reasoning=True,
    add_generation_prompt=False,
)
def test_chats_give_equal_ids_and_masks(pair, messages, reasoning, add_generation_prompt):
    ours, theirs = pair
    if add_generation_prompt and messages[-1]["role"] == "assistant":
        # Continued as it is: like a tool's result, it must not begin with line breaks to come out equal.
        messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"].lstrip()}]
    ids, mask = ours.encode_chat(messages, reasoning=reasoning, add_generation_prompt=add_generation_prompt)
    chat = theirs.apply_chat_template(
        messages,
        enable_thinking=reasoning,
        add_generation_prompt=add_generation_prompt,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert chat["input_ids"] == ids.tolist()
    assert chat["assistant_masks"] == mask.astype(int).tolist()


def test_reasoning_is_off_by_default(pair):
    ours, theirs = pair
    messages = [{"role": "user", "content": "hi"}]
    ids, _ = ours.encode_chat(messages, add_generation_prompt=True)
    chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert chat["input_ids"] == ids.tolist()


@pytest.mark.parametrize(
    "message", [{"role": "tool: bash", "content": "\nx"}, {"role": "user", "content": "x <|eot_id|>"}]
)
def test_chats_that_a_template_cannot_express(pair, message):
    ours, theirs = pair
    ids, _ = ours.encode_chat([message])
    assert theirs.apply_chat_template([message], return_dict=True)["input_ids"] != ids.tolist()
    assert theirs.apply_chat_template([message], tokenize=False) == ours.decode(ids)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "bot", "content": ""}, "message 1 has the unknown role bot"),
        ({"role": "tool", "content": ""}, "unknown role tool"),
        ({"role": "tool: ", "content": ""}, "unknown role tool: "),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "bash"}}]}, "tool_calls"),
    ],
)
def test_the_template_refuses_what_it_would_drop(pair, message, why):
    _, theirs = pair
    messages = [{"role": "user", "content": "hi"}, message]
    with pytest.raises(TemplateError, match=why):
        theirs.apply_chat_template(messages)
    with pytest.raises(TemplateError, match="system message"):
        theirs.apply_chat_template(messages[:1], tools=[{"type": "function"}])


def test_special_tokens_have_their_roles(pair):
    ours, theirs = pair
    special = ours.special_tokens
    assert theirs.bos_token_id == special["<|begin_of_text|>"]
    assert theirs.eos_token_id == special["<|end_of_text|>"]
    assert theirs.pad_token_id == special["<|pad|>"]
    assert len(theirs) == ours.vocab_size
    batch = theirs(["a b c", ""], padding=True)
    assert batch["input_ids"][1] == [special["<|pad|>"]] * len(batch["input_ids"][0])
    assert theirs.decode([special["<|eot_id|>"], *ours.encode("x")], skip_special_tokens=True) == "x"


def test_files_saved_by_transformers_load(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.special_tokens == ours.special_tokens
    text = STDLIB[1].read_text("utf-8")
    assert again.encode(text).tolist() == ours.encode(text).tolist()


def test_a_model_beside_the_tokenizer_changes_nothing(tmp_path):
    ours = Tokenizer.train(["a b"], 260)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cwm", "architectures": ["CwmForCausalLM"]}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a b\n\n c")["input_ids"] == ours.encode("a b\n\n c").tolist()


def test_a_vocabulary_without_the_tokens_of_a_chat(tmp_path):
    ours = Tokenizer.train(["a b"], 260, pattern=GPT2_PATTERN, special_tokens=["<|end_of_text|>"])
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a b\n\n c")["input_ids"] == ours.encode("a b\n\n c").tolist()
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (None, "<|end_of_text|>", None)
    with pytest.raises(ValueError, match="chat_template"):
        theirs.apply_chat_template([{"role": "user", "content": "hi"}])
