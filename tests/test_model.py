"""The model against transformers' CwmForCausalLM, and against itself packed and alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cwm_core.model import ModelConfig, Transformer, preset
from cwm_core.model.attention import attention, reference_attention
from cwm_core.model.loss import cross_entropy
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import randomize

transformers = pytest.importorskip("transformers")


@st.composite
def configs(draw):
    kv_heads = draw(st.integers(1, 3))
    layers = draw(st.integers(1, 5))
    window = draw(st.integers(1, 12))
    every = draw(st.integers(1, 4))
    return ModelConfig(
        vocab_size=draw(st.integers(5, 60)),
        width=12 * kv_heads,  # the oracle wants width to be a multiple of its heads
        ffn_width=draw(st.integers(1, 40)),
        layers=layers,
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_size=2 * draw(st.integers(1, 8)),
        window=window,
        global_every=every,
        stop_tokens=(),
    )


def oracle_of(model):
    config = {k: v for k, v in model.config.to_hf().items() if k != "architectures"}
    oracle = transformers.CwmForCausalLM._from_config(
        transformers.CwmConfig(**config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    state = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    oracle.load_state_dict(state, strict=True)
    return oracle


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31))
def test_logits_equal_transformers(config, length, batch, seed):
    torch.manual_seed(seed)
    model = randomize(Transformer(config))
    tokens = torch.randint(config.vocab_size, (batch, length))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), oracle_of(model)(tokens).logits, atol=1e-5, rtol=1e-5)


def test_logits_equal_transformers_at_far_positions():
    torch.manual_seed(0)
    model = randomize(Transformer(preset("tiny", head_size=128, max_length=131_072)))
    tokens = torch.randint(4096, (1, 64))
    positions = torch.arange(131_072 - 64, 131_072)[None]
    with torch.no_grad():
        expected = oracle_of(model)(tokens, position_ids=positions).logits
        torch.testing.assert_close(model(tokens, position_ids=positions), expected, atol=1e-4, rtol=1e-4)


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
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


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
    model = randomize(Transformer(preset("tiny", window=5)))
    tokens = torch.randint(4096, (2, 12))
    with torch.no_grad():
        logits = model(tokens, cu_seqlens=torch.tensor([0, 7, 12, 24]))
        assert logits.shape == (2, 12, 4096)
        torch.testing.assert_close(logits[0, 7:], model(tokens[0, 7:]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[1], model(tokens[1]), atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.none() | st.integers(1, 50),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_attention_equals_reference(lengths, window, kv_heads, groups, seed):
    torch.manual_seed(seed)
    n = sum(lengths)
    q, k, v = (torch.randn(1, heads, n, 8, dtype=torch.float64) for heads in (kv_heads * groups, kv_heads, kv_heads))
    upstream = torch.randn_like(q)
    results = []
    for function in (attention, reference_attention):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        out = function(*inputs, lengths, window)
        out.backward(upstream)
        results.append([out, *(t.grad for t in inputs)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_attention_equals_reference_over_many_query_blocks():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 1300, 8), torch.randn(1, 2, 1300, 8), torch.randn(1, 2, 1300, 8)
    for window in (1, 100, 700, None):
        expected = reference_attention(q, k, v, [1100, 200], window)
        torch.testing.assert_close(attention(q, k, v, [1100, 200], window), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(2, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_loss_equals_cross_entropy(monkeypatch_chunks, n, vocab, kept, seed):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(n, 6, dtype=torch.float64), torch.randn(vocab, 6, dtype=torch.float64)
    targets, mask = torch.randint(vocab, (n,)), torch.rand(n) < kept
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss = cross_entropy(h, w, targets, mask)
        else:
            loss = torch.nn.functional.cross_entropy((h @ w.T)[mask], targets[mask], reduction="sum").float()
        (loss * 0.3).backward()
        results.append((loss, h.grad, w.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def monkeypatch_chunks():
    """Chunks of a few rows, so that small examples cross chunk boundaries."""
    from cwm_core.model import loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_LOGITS", 90)
        yield


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
    [({"heads": 5}, "multiple of kv_heads"), ({"head_size": 3}, "even"), ({"window": 0}, "window must be")],
)
def test_contradictory_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **change)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 2, 4], [0]])
def test_offsets_that_do_not_cover_the_tokens_are_refused(offsets):
    with pytest.raises(ValueError, match="cu_seqlens"):
        Transformer(preset("tiny"))(torch.zeros(4, dtype=torch.long), cu_seqlens=torch.tensor(offsets))
