"""The model against transformers' CwmForCausalLM, and against itself packed and alone."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cwm_core.model import ModelConfig, Transformer, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model, randomize
from torch.utils.checkpoint import checkpoint

transformers = pytest.importorskip("transformers")


@st.composite
def configs(draw):
    kv_heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 5))
    window = draw(st.integers(1, 12))
    every = draw(st.integers(1, 4))
    return ModelConfig(
        vocab_size=draw(st.integers(5, 60)),
        hidden_size=12 * kv_heads,  # the oracle wants width to be a multiple of its heads
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        sliding_window=window,
        full_attention_interval=every,
        eos_token_id=(),
    )


def oracle_of(model):
    config = {k: v for k, v in model.config.to_hf().items() if k != "architectures"}
    oracle = transformers.CwmForCausalLM._from_config(
        transformers.CwmConfig(**config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    state = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    oracle.load_state_dict(state, strict=True)
    return oracle


def assert_logits_equal(ours, expected, tolerance=1e-5):
    """Compare to `tolerance` of the largest value: rounding errors scale with the summands, not with the sum."""
    torch.testing.assert_close(ours, expected, atol=tolerance * max(1, expected.abs().max().item()), rtol=0)


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_logits_equal_transformers(config, length, batch, seed):
    torch.manual_seed(seed)
    model = randomize(Transformer(config))
    tokens = torch.randint(config.vocab_size, (batch, length))
    with torch.no_grad():
        assert_logits_equal(model(tokens), oracle_of(model)(tokens).logits)


@settings(max_examples=20, deadline=None)
@given(configs(), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 2**31))
def test_packed_logits_equal_transformers(config, lengths, seed):
    torch.manual_seed(seed)
    model = randomize(Transformer(config))
    oracle = oracle_of(model)
    tokens = torch.randint(config.vocab_size, (sum(lengths),))
    with torch.no_grad():
        expected = torch.cat([oracle(document[None]).logits[0] for document in tokens.split(lengths)])
        assert_logits_equal(model(tokens, torch.tensor([0, *lengths]).cumsum(0)), expected)


@pytest.mark.parametrize("length", [63, 64, 65, 512, 513, 641, 1100])
def test_logits_equal_transformers_about_the_ends_of_windows_and_blocks(length):
    torch.manual_seed(length)
    model = randomize(
        Transformer(
            preset(
                "tiny",
                vocab_size=50,
                sliding_window=64,
                num_hidden_layers=2,
                full_attention_interval=2,
                layer_windows=(),
            )
        )
    )
    tokens = torch.randint(50, (1, length))
    with torch.no_grad():
        assert_logits_equal(model(tokens), oracle_of(model)(tokens).logits)


def test_logits_equal_transformers_at_far_positions():
    torch.manual_seed(0)
    model = randomize(Transformer(preset("tiny", head_dim=128, max_position_embeddings=131_072)))
    tokens = torch.randint(4096, (1, 64))
    positions = torch.arange(131_072 - 64, 131_072)[None]
    with torch.no_grad():
        expected = oracle_of(model)(tokens, position_ids=positions).logits
        assert_logits_equal(model(tokens, position_ids=positions), expected, 1e-4)


@settings(max_examples=40, deadline=None)
@given(configs(), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**31))
def test_packed_equals_alone(config, lengths, seed):
    torch.manual_seed(seed)
    model = randomize(Transformer(config))
    documents = [torch.randint(config.vocab_size, (n,)) for n in lengths]
    offsets = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    with torch.no_grad():
        packed = model(torch.cat(documents), cu_seqlens=offsets)
        alone = torch.cat([model(document) for document in documents])
    assert_logits_equal(packed, alone)


@settings(max_examples=30, deadline=None)
@given(configs(), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 20), st.integers(0, 2**31))
def test_a_cap_of_the_global_window_equals_such_layers(config, lengths, cap, seed):
    torch.manual_seed(seed)
    model = randomize(Transformer(config)).eval()
    windows = tuple(cap if window is None else window for window in config.layer_windows)
    capped = Transformer(replace(config, layer_windows=windows)).eval()
    capped.load_state_dict(model.state_dict())
    tokens = torch.randint(config.vocab_size, (sum(lengths),))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, offsets, global_window=cap), capped(tokens, offsets))


def test_rows_with_documents_equal_documents_alone():
    torch.manual_seed(0)
    model = randomize(Transformer(preset("tiny", sliding_window=5)))
    tokens = torch.randint(4096, (2, 12))
    with torch.no_grad():
        logits = model(tokens, cu_seqlens=torch.tensor([0, 7, 12, 24]))
        assert logits.shape == (2, 12, 4096)
        torch.testing.assert_close(logits[0, 7:], model(tokens[0, 7:]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[1], model(tokens[1]), atol=1e-5, rtol=1e-5)


def test_32b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Transformer(preset("cwm-32b"))
    assert sum(p.numel() for p in model.parameters()) == 32_581_097_472


def test_32b_configuration_equals_transformers_default():
    ours, theirs = preset("cwm-32b").to_hf(), transformers.CwmConfig().to_dict()
    different = {k for k in ours if ours[k] != theirs.get(k)}
    assert different == {"architectures"}
    assert ModelConfig.from_hf(theirs) == preset("cwm-32b")


@given(configs())
def test_configuration_round_trip(config):
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "multiple of num_key_value_heads"),
        ({"head_dim": 3}, "even"),
        ({"sliding_window": 0}, "window must be"),
    ],
)
def test_contradictory_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **change)


def test_the_documentation_runs():
    page = (Path(__file__).parents[2] / "docs/concepts/model.md").read_text("utf-8")
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["logits"].shape == (300, 4096) and names["each"].shape == (300,)
    torch.testing.assert_close(names["each"].sum(), names["total"].detach())


def test_checkpointed_layers_give_equal_gradients():
    config = preset("tiny", vocab_size=50, sliding_window=40)
    tokens, offsets = torch.randint(50, (700,)), torch.tensor([0, 600, 700])
    gradients = []
    for checkpointed in (False, True):
        model = random_model(config)
        for layer in model.layers if checkpointed else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        model.loss(tokens, tokens, cu_seqlens=offsets).total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 2, 4], [0]])
def test_offsets_that_do_not_cover_the_tokens_are_refused(offsets):
    with pytest.raises(ValueError, match="cu_seqlens"):
        Transformer(preset("tiny"))(torch.zeros(4, dtype=torch.long), cu_seqlens=torch.tensor(offsets))
