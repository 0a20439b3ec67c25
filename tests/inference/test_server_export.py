"""The folder that other servers take: what vLLM reads of it through transformers says the same as our server."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import torch
from cwm_core.inference import Engine
from cwm_core.model import preset, save
from cwm_core.tokenizer.chat import CHAT_TEMPLATE
from random_models import random_model
from serving import app_of, post, small_tokenizer

transformers = pytest.importorskip("transformers")

TOKENIZER = small_tokenizer()
SPECIAL = TOKENIZER.special_tokens
STOPS = tuple(SPECIAL[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
MESSAGES = [
    {"role": "user", "content": "def f"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "été"},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    shape = {
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
        "sliding_window": 8,
        "full_attention_interval": 2,
    }
    model = random_model(preset("tiny", vocab_size=TOKENIZER.vocab_size, eos_token_id=STOPS, **shape))
    folder = tmp_path_factory.mktemp("exported")
    save(model, folder, format="huggingface")
    TOKENIZER.save(folder)
    return model, folder


def test_the_files_that_vllm_asks_for(exported):
    _, folder = exported
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CwmForCausalLM"] and config["eos_token_id"] == list(STOPS)
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATE
    # Where there is no generation_config.json, both take it from config.json.
    derived = transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(folder))
    assert derived.eos_token_id == list(STOPS)


@pytest.mark.parametrize("reasoning", [False, True])
def test_transformers_says_what_our_server_says(exported, reasoning):
    model, folder = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert theirs.generation_config.eos_token_id == list(STOPS)
    prompt = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, enable_thinking=reasoning, return_dict=True, return_tensors="pt"
    )
    ids = prompt["input_ids"]
    output = theirs.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=SPECIAL["<|pad|>"])[0].tolist()

    body = {
        "messages": MESSAGES,
        "max_tokens": 40,
        "temperature": 0,
        "return_token_ids": True,
        "chat_template_kwargs": {"enable_thinking": reasoning},
    }
    answer = post(app_of(Engine(model, TOKENIZER), TOKENIZER), "/v1/chat/completions", body).json()
    assert answer["prompt_token_ids"] == ids[0].tolist()
    assert answer["choices"][0]["token_ids"] == output[ids.shape[1] :]
