"""Generation against the plain loop without a cache, and against transformers."""

import numpy as np
import pytest
import torch
from cwm_core.inference import Engine
from cwm_core.model import Transformer, preset
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB = 50


def make_model(seed=0, **changes):
    """Return a model with random weights that are large enough for the output to depend on every visible token."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "sliding_window": 7,
    }
    model = Transformer(preset("tiny", **shape | {"full_attention_interval": 2} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    return model


MODEL = make_model()
prompts_of = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=9)


@torch.no_grad()
def plain_greedy(model, prompt, max_new_tokens, stop_ids=(), supply=None):
    """Recompute everything for each token; returns ids and log probabilities (NaN where supplied)."""
    ids, logprobs = [], []
    while len(ids) < max_new_tokens and not (ids and ids[-1] in stop_ids):
        scores = model(torch.tensor([*prompt, *ids]))[-1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        if supply and ids[-1] not in stop_ids:
            for token in supply(list(ids)) or ():
                if len(ids) < max_new_tokens and ids[-1] not in stop_ids:
                    ids.append(token)
                    logprobs.append(float("nan"))
    return ids, logprobs


def assert_greedy(model, prompt, ids, expected):
    """Check equality, but accept either of two tokens that are equally likely up to rounding, and what follows it."""
    for i, (ours, theirs) in enumerate(zip(ids, expected, strict=True)):
        if ours != theirs:
            scores = model(torch.tensor([*prompt, *ids[:i]]))[-1].log_softmax(-1)
            assert scores[[ours, theirs]].min() > scores.max() - 1e-4, (i, ours, theirs)
            return


@settings(max_examples=30, deadline=None)
@given(prompts_of, st.integers(1, 25), st.sets(st.integers(0, VOCAB - 1), max_size=4), st.integers(1, 5))
def test_greedy_equals_the_loop_without_a_cache(prompts, max_new_tokens, stop_ids, max_batch):
    results = Engine(MODEL, max_batch=max_batch).generate(prompts, max_new_tokens, stop_ids)
    for prompt, result in zip(prompts, results, strict=True):
        ids, logprobs = plain_greedy(MODEL, prompt, max_new_tokens, stop_ids)
        assert result.ids.tolist() == ids
        np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-4)
        assert result.finish_reason == ("stop" if ids[-1] in stop_ids else "length")
        assert not result.supplied.any()


@settings(max_examples=30, deadline=None)
@given(prompts_of, st.integers(1, 25), st.sets(st.integers(0, VOCAB - 1), max_size=2), st.integers(1, 5))
def test_supplied_tokens_run_through_the_model_as_if_sampled(prompts, max_new_tokens, stop_ids, max_batch):
    def supply(index, ids):
        """Supply no tokens or up to a run longer than the window, depending on all earlier tokens."""
        return [(index + sum(ids) + k) % VOCAB for k in range(sum(ids) % 11)] if ids[-1] % 3 == 0 else None

    results = Engine(MODEL, max_batch=max_batch).generate(prompts, max_new_tokens, stop_ids, on_token=supply)
    for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        ids, logprobs = plain_greedy(MODEL, prompt, max_new_tokens, stop_ids, lambda ids, i=i: supply(i, ids))
        assert result.ids.tolist() == ids
        np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-4)
        assert result.supplied.tolist() == np.isnan(logprobs).tolist()


def test_long_generation_crosses_cache_blocks():
    result = Engine(MODEL).generate([[3], list(range(40))], 150)
    assert result[0].ids.tolist() == plain_greedy(MODEL, [3], 150)[0]
    assert result[1].ids.tolist() == plain_greedy(MODEL, range(40), 150)[0]


def test_samples_follow_the_distribution():
    prompt, n = [4, 8, 15], 1500
    results = Engine(MODEL, max_batch=500).generate([prompt] * n, 1, temperature=2.0, seed=3)
    counts = np.bincount([result.ids[0] for result in results], minlength=VOCAB)
    with torch.no_grad():
        logits = MODEL(torch.tensor(prompt))[-1]
    expected = (logits / 2.0).softmax(-1).numpy()
    chi2 = (((counts - n * expected) ** 2) / (n * expected)).sum()
    assert chi2 < 100  # 49 degrees of freedom: exceeded by chance once in 10^5
    token = results[0].ids[0]
    assert results[0].logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    prompt = [4, 8, 15]
    with torch.no_grad():
        probabilities, order = MODEL(torch.tensor(prompt))[-1].softmax(-1).sort(descending=True)
    top_p = 0.8
    size = int((probabilities.cumsum(-1) < top_p).sum()) + 1
    assert 1 < size < VOCAB
    results = Engine(MODEL, max_batch=500).generate([prompt] * 1000, 1, temperature=1.0, top_p=top_p)
    assert {int(result.ids[0]) for result in results} == set(order[:size].tolist())


def test_samples_do_not_depend_on_the_batch():
    prompts = [[i, 2 * i] for i in range(12)]
    small, large = (
        Engine(MODEL, max_batch=b).generate(prompts, 10, temperature=1.5, top_p=0.9, seed=5) for b in (2, 12)
    )
    assert [r.ids.tolist() for r in small] == [r.ids.tolist() for r in large]
    other = Engine(MODEL).generate(prompts, 10, temperature=1.5, top_p=0.9, seed=6)
    assert [r.ids.tolist() for r in other] != [r.ids.tolist() for r in large]


def test_text_prompts_and_stop_tokens_of_the_model():
    class Tokenizer:
        def encode(self, text):
            return np.array([ord(c) % VOCAB for c in text], np.int32)

    expected = plain_greedy(MODEL, [ord(c) % VOCAB for c in "hello"], 5)[0]
    model = make_model(eos_token_id=(expected[2],))
    result = Engine(model, Tokenizer()).generate(["hello"], 5)[0]
    assert result.finish_reason == "stop"
    assert result.ids.tolist() == expected[: expected.index(expected[2]) + 1]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[VOCAB]], {}, "token 50 is outside"),
        ([[-1]], {}, "token -1 is outside"),
        (["text"], {}, "no tokenizer"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[1]], {"temperature": -1}, "temperature"),
        ([[1]], {"top_p": 0}, "top_p"),
        ([[1]], {"on_token": lambda i, ids: [VOCAB]}, "token 50 is outside"),
    ],
)
def test_bad_input_is_refused(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        Engine(MODEL).generate(prompts, **{"max_new_tokens": 3} | options)


def test_no_prompts():
    assert Engine(MODEL).generate([], 5) == []


def test_a_model_without_stop_tokens_ends_at_those_of_its_tokenizer():
    class Tokenizer:
        stop_tokens = ()

        def encode(self, text):
            return np.array([ord(c) % VOCAB for c in text], np.int32)

    tokenizer = Tokenizer()
    expected = plain_greedy(MODEL, tokenizer.encode("hello").tolist(), 5)[0]
    tokenizer.stop_tokens = (expected[2],)
    result = Engine(MODEL, tokenizer).generate(["hello"], 5)[0]
    assert result.finish_reason == "stop"
    assert result.ids.tolist() == expected[: expected.index(expected[2]) + 1]
    longer = Engine(MODEL, tokenizer).generate(["hello"], 5, stop_ids=())[0]
    assert longer.ids.tolist() == expected and longer.finish_reason == "length"
