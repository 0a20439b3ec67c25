"""Sequences that join, leave, fork and share prefixes, windows that come round, constraints, sampling, quantization."""

import threading

import numpy as np
import pytest
import torch
from cwm_core.inference import Engine, Request, cache, cache_bytes
from cwm_core.inference.attention import decode_mask, split_attention
from cwm_core.inference.cache import KeyValueCache
from cwm_core.inference.prefixes import common_prefix
from cwm_core.inference.quantize import weight_bytes
from cwm_core.inference.runner import joined
from cwm_core.inference.sampling import Sampling, choose
from cwm_core.model import Transformer, preset, save
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from test_engine import VOCAB, assert_greedy, make_model, plain_greedy

# Rings of 16 places come round within the tests; the margin leaves 8 of them to a window of 7, and to blocks of 8.
WINDOW = 7
MODEL = make_model(seed=2, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(autouse=True)
def small_rings(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 8)
    monkeypatch.setattr(cache, "MARGIN", 5)
    monkeypatch.setattr("cwm_core.inference.engine.SHORTEST_PREFIX", 2)


def run(engine, handles):
    """Step until all have ended; the events by handle."""
    events = {handle: [] for handle in handles}
    while any(handle.finish_reason is None for handle in handles):
        for event in engine.step():
            events[event.handle].append(event)
    return events


def random_prompt(n, seed=0):
    return np.random.default_rng(seed).integers(VOCAB, size=n).tolist()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_greedy_equals_transformers(small_oracle, data):
    """Alone and together, of mixed lengths, read in pieces of any size, with and without memory of prefixes."""
    ours, theirs = small_oracle
    shared = random_prompt(data.draw(st.integers(0, 50)), seed=1)
    prompts = [
        shared[: data.draw(st.integers(0, len(shared)))] + data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1))
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    new_tokens = data.draw(st.integers(1, 40))
    engine = Engine(
        ours,
        max_batch=data.draw(st.integers(1, 5)),
        prefill_chunk=data.draw(st.integers(1, 60)),
        prefix_bytes=data.draw(st.sampled_from([0, 15_000, 100_000])),
    )
    for _ in range(2):  # the second time from remembered prefixes
        for prompt, result in zip(prompts, engine.generate(prompts, new_tokens), strict=True):
            tokens = torch.tensor([prompt])
            options = {"attention_mask": torch.ones_like(tokens), "do_sample": False}
            expected = theirs.generate(tokens, max_new_tokens=new_tokens, **options)
            assert_greedy(ours, prompt, result.ids.tolist(), expected[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def small_oracle(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model")
    save(MODEL, folder)
    return MODEL, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sequences_join_leave_fork_and_are_cancelled(data):
    """Whatever happens to others between the steps, each sequence says what it says alone."""
    engine = Engine(
        MODEL,
        max_batch=data.draw(st.integers(1, 4)),
        prefill_chunk=data.draw(st.integers(1, 40)),
        prefix_bytes=data.draw(st.sampled_from([0, 5000, 20_000, 1_000_000])),
        max_cache_bytes=data.draw(st.sampled_from([None, cache_bytes(MODEL.config, 128, 2, torch.float32)])),
    )
    handles, forks = [], []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["submit", "step", "step", "step", "cancel", "fork"]))
        if action == "submit":
            prompt = random_prompt(data.draw(st.integers(1, 50)), seed=data.draw(st.integers(0, 2)))
            handles.append(engine.submit(Request(prompt, data.draw(st.integers(1, 30)), ())))
        elif action == "step":
            engine.step()
        elif handles and action == "cancel":
            engine.cancel(data.draw(st.sampled_from(handles)))
        elif handles:
            parent = data.draw(st.sampled_from(handles))
            at = data.draw(st.integers(1, min(len(parent.tokens), 90)))
            forks.append((engine.fork(parent, at), parent.tokens[:at].tolist()))
    run(engine, handles + [fork for fork, _ in forks])
    for handle, prompt in [(handle, handle.prompt) for handle in handles] + forks:
        assert handle.prompt.tolist() == list(prompt)
        if handle.ids:
            assert_greedy(MODEL, prompt, handle.ids, plain_greedy(MODEL, prompt, len(handle.ids))[0])
        if handle.finish_reason == "length":
            assert len(handle.ids) == handle.request.max_new_tokens
        else:
            assert handle.finish_reason == "cancelled"
    assert engine.unfinished == 0 and not engine._running


def test_events_tell_all_that_handles_hold():
    engine = Engine(MODEL)
    stop = plain_greedy(MODEL, [3], 6)[0][4]

    def supply(ids):
        return [7, 8] if len(ids) == 2 else None

    requests = [
        Request([3], 6, [stop]),
        Request([3], 6, [], on_token=supply, top_logprobs=3),
        Request([5], 4, [], top_logprobs=VOCAB),
    ]
    handles = [engine.submit(request) for request in requests]
    events = run(engine, handles)
    for handle in handles:
        of_handle = events[handle]
        assert [event.token for event in of_handle] == handle.ids
        assert [event.supplied for event in of_handle] == handle.supplied
        np.testing.assert_equal([event.logprob for event in of_handle], handle.logprobs)
        assert [event.finish_reason for event in of_handle[:-1]] == [None] * (len(of_handle) - 1)
        assert of_handle[-1].finish_reason == handle.finish_reason
    assert [handle.finish_reason for handle in handles] == ["stop", "length", "length"]
    assert events[handles[1]][2].token == 7 and events[handles[1]][2].supplied
    with torch.no_grad():
        for event, before in zip(events[handles[2]], range(1, 5), strict=True):
            expected = MODEL(torch.tensor(handles[2].tokens[:before]))[-1].log_softmax(-1).sort(descending=True)
            assert [token for token, _ in event.top] == expected.indices.tolist()
            np.testing.assert_allclose([logprob for _, logprob in event.top], expected.values, atol=1e-4)
    assert all(len(event.top) == (0 if event.supplied else 3) for event in events[handles[1]])


def test_a_shared_prefix_is_read_once():
    read = []
    engine = Engine(MODEL, prefix_bytes=1_000_000)
    prefill = engine._runner.prefill
    engine._runner.prefill = lambda pieces: (read.extend(len(piece.tokens) for piece in pieces), prefill(pieces))
    prompt = random_prompt(40)
    results = engine.generate([prompt] * 8, 20)
    assert read == [16, 16, 7]  # a ring at a time
    read.clear()
    engine.generate([[*prompt, *results[0].ids[:19]]], 1)  # a next turn
    engine.generate([[*prompt[:-3], 1, 2]], 1)
    engine.generate([[*prompt[:20], 1]], 1)  # the rings have forgotten position 13
    assert read == [58 - 56, 38 - 32, 20 - 16]
    no_memory = Engine(MODEL)
    for _ in range(2):
        handle = no_memory.submit(Request(prompt, 1))
        run(no_memory, [handle])
        assert handle.reused == 0


def test_positions_that_a_ring_lost_are_not_copied_from_a_copy():
    """A sequence taken up again near its end is shorter than a ring, and yet its first positions are gone."""
    engine = Engine(MODEL)
    prompts = [random_prompt(20), [*random_prompt(20)[:14], 0], [*random_prompt(20)[:5], 0, 0]]
    handles = []
    for prompt in prompts:
        handles.append(engine.submit(Request(prompt, 30, ())))
        engine.step()
    assert [handle.reused for handle in handles] == [0, 14, 0]
    run(engine, handles)
    assert [handle.ids for handle in handles] == [plain_greedy(MODEL, prompt, 30)[0] for prompt in prompts]


def test_a_step_may_overwrite_the_first_place_of_a_ring_that_is_just_full():
    engine = Engine(MODEL, prefill_chunk=8)
    prompts = [random_prompt(25), [7], [*random_prompt(25)[:3], 0]]
    handles = [engine.submit(Request(prompt, 30, ())) for prompt in prompts[:2]]
    engine.step()
    engine.step()  # the second goes on while the first reads what fills a ring
    assert engine._cache.lengths[0] == 16
    engine.prefill_chunk = 20  # the third is read at once
    handles.append(engine.submit(Request(prompts[2], 30, ())))
    run(engine, handles)
    for handle, prompt in zip(handles, prompts, strict=True):
        np.testing.assert_allclose(handle.logprobs, plain_greedy(MODEL, prompt, 30)[1], atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_prompts_that_leave_a_known_one_anywhere_reuse_all_whole_blocks(data):
    engine = Engine(MODEL, prefill_chunk=data.draw(st.integers(1, 60)), prefix_bytes=1_000_000)
    known = [random_prompt(90)]
    engine.generate(known, 1)
    for i in range(data.draw(st.integers(1, 6))):
        other = data.draw(st.sampled_from(known))
        at = data.draw(st.integers(0, len(other)))
        prompt = other[:at] + random_prompt(data.draw(st.integers(1, 30)), seed=i + 1)
        handle = engine.submit(Request(prompt, 10, ()))
        run(engine, [handle])
        shared = max(common_prefix(np.array(prompt[:-1]), np.array(tokens)) for tokens in known)
        assert handle.reused == shared // 8 * 8
        assert_greedy(MODEL, prompt, handle.ids, plain_greedy(MODEL, prompt, 10)[0])
        known.append(handle.tokens[:-1].tolist())


def test_parts_of_prefixes_used_longest_ago_go_first():
    """There is room for two prompts and a third: each takes 48 tokens in three layers, a cache 48 in two and 16."""
    limit = 3 * cache_bytes(MODEL.config, 48, dtype=torch.float32)
    engine = Engine(MODEL, prefix_bytes=limit)
    prompts = [random_prompt(49, seed) for seed in range(3)]

    def reused(i, at=49):
        handle = engine.submit(Request([*prompts[i][:at], 0], 1))
        run(engine, [handle])
        parts = engine._prefixes._parts.values()
        assert engine._prefixes.nbytes == sum(part.nbytes for part in parts) <= limit
        return handle.reused

    assert [reused(0), reused(1), reused(0, 20), reused(0)] == [0, 0, 16, 48]
    assert reused(2) == 0  # in place of what the first prompt needs in its middle, and of the second
    assert [reused(0, 30), reused(0, 30), reused(1)] == [16, 24, 0]
    small = Engine(MODEL, prefix_bytes=limit // 6)  # of a prompt that it has no room for it keeps the beginning
    small.generate([prompts[0]], 1)
    assert small._prefixes.find(np.array(prompts[0], np.int32)) == 16


def test_cancelling_frees_the_slot_at_once():
    engine = Engine(MODEL, max_batch=1)
    first, second = (engine.submit(Request([i], 50, ())) for i in (1, 2))
    engine.step()
    assert first.ids and not second.ids
    engine.cancel(first)
    assert first.finish_reason == "cancelled" and not engine._running
    assert {event.handle for event in engine.step()} == {second}
    engine.cancel(second)
    engine.cancel(second)
    assert engine.step() == [] and engine.unfinished == 0


def test_a_callback_may_cancel_and_its_error_ends_its_sequence_alone():
    engine = Engine(MODEL)
    other = engine.submit(Request([4], 8, ()))
    cancelled = engine.submit(Request([5], 8, (), on_token=lambda ids: engine.cancel(cancelled)))
    broken = engine.submit(Request([6], 8, (), on_token=lambda ids: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    run(engine, [other])
    assert cancelled.finish_reason == broken.finish_reason == "cancelled"
    assert other.ids == plain_greedy(MODEL, [4], 8)[0]


def test_requests_from_other_threads():
    engine = Engine(MODEL, max_batch=3)
    handles = []

    def submit(seed):
        for i in range(10):
            handles.append(engine.submit(Request([seed, i], 5, ())))

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.unfinished:
        engine.step()
    assert len(handles) == 40
    assert all(handle.ids == plain_greedy(MODEL, handle.prompt, 5)[0] for handle in handles)


def test_one_step_at_a_time():
    engine = Engine(MODEL)
    engine.submit(Request([4], 8, (), on_token=lambda ids: engine.step()))
    with pytest.raises(RuntimeError, match="another step of this engine is running"):
        engine.step()


class Digits:
    """Allows some tokens, anything in every third place, and nothing after `end`."""

    def __init__(self, tokens, end):
        self.mask = np.zeros(VOCAB, bool)
        self.mask[tokens] = True
        self.end, self.seen = end, []

    def allowed(self):
        if len(self.seen) == self.end:
            return np.zeros(VOCAB, bool)
        return None if len(self.seen) % 3 == 2 else self.mask

    def advance(self, token):
        self.seen.append(token)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_constraints_are_kept_and_log_probabilities_are_the_models(temperature):
    tokens = [5, 17, 40]
    engine = Engine(MODEL)
    constraints = [Digits(tokens, 20), Digits([9], 12)]
    handles = [
        engine.submit(Request([1, 2, i], 40, (), temperature, constraint=constraint))
        for i, constraint in enumerate(constraints)
    ]
    free = engine.submit(Request([1, 2, 3], 30, ()))
    events = run(engine, [*handles, free])
    assert free.ids == plain_greedy(MODEL, [1, 2, 3], 30)[0]
    for handle, constraint in zip(handles, constraints, strict=True):
        assert handle.finish_reason == "constraint" and handle.ids == constraint.seen
        assert len(handle.ids) == constraint.end and events[handle][-1].token is None
        for i, token in enumerate(handle.ids):
            with torch.no_grad():
                logits = MODEL(torch.tensor(handle.tokens[: 3 + i]))[-1]
            assert handle.logprobs[i] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
            if i % 3 < 2:
                assert constraint.mask[token]
                logits = logits.masked_fill(~torch.from_numpy(constraint.mask), float("-inf"))
            if temperature == 0:
                assert token == int(logits.argmax())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 5), st.floats(0.01, 1), st.integers(0, 12), st.integers(1, 10))
def test_choices_equal_the_definition(seed, temperature, top_p, top_k, allowed):
    """The inverse of the distribution function, over tokens sorted by probability, written out in float64."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, 10)).astype(np.float32) * 3
    for row in logits:
        row[rng.permutation(10)[allowed:]] = -np.inf
    uniforms = rng.random(4)
    sampling = Sampling(temperature, top_p, top_k)
    chosen = choose(torch.from_numpy(logits), [sampling] * 4, uniforms.tolist())
    for row, uniform, token in zip(logits.astype(np.float64), uniforms, chosen.tolist(), strict=True):
        order = np.argsort(-row, kind="stable")[: top_k or None]
        p = np.exp((row[order] - row.max()) / temperature)
        p /= np.exp((row - row.max()) / temperature).sum()
        before = p.cumsum() - p
        kept = before < top_p * (p.sum() if top_k else 1)
        edges = p[kept].cumsum() / p[kept].sum()
        rank = int((edges <= uniform).sum())
        # Float32 rounds probabilities: at an edge of the drawn number or of the set, the neighbour is as right.
        near = np.abs(edges - uniform).min() < 1e-5 or np.abs(before - top_p * (p.sum() if top_k else 1)).min() < 1e-5
        assert token == order[rank] or near
        assert np.isfinite(row[token])


def test_greedy_and_drawn_rows_do_not_disturb_each_other():
    logits = torch.randn(5, 30)
    drawn, greedy = Sampling(1.5, 0.9, 7), Sampling()
    mixed = choose(logits, [greedy, drawn, greedy, drawn, drawn], [0, 0.3, 0, 0.99, 0.5])
    assert mixed[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()
    assert mixed[[1, 3, 4]].tolist() == choose(logits[[1, 3, 4]], [drawn] * 3, [0.3, 0.99, 0.5]).tolist()


def test_top_k_draws_from_exactly_the_k_most_likely():
    with torch.no_grad():
        order = MODEL(torch.tensor([4, 8])).select(0, -1).argsort(descending=True).tolist()
    engine = Engine(MODEL, max_batch=500)
    handles = [engine.submit(Request([4, 8], 1, (), 5.0, top_k=4, seed=seed)) for seed in range(1000)]
    run(engine, handles)
    assert {handle.ids[0] for handle in handles} == set(order[:4])


def test_a_seed_gives_the_same_tokens_whatever_else_runs():
    request = Request([3, 4, 5], 15, (), 1.5, 0.9, 20, seed=7)
    alone = Engine(MODEL).submit(request)
    engine = Engine(MODEL, prefill_chunk=3)
    others = [engine.submit(Request(random_prompt(20, i), 30, (), 1.0, seed=i)) for i in range(3)]
    for _ in range(9):
        engine.step()
    together = engine.submit(request)
    run(engine, [*others, together])
    lonely = Engine(MODEL)
    alone = lonely.submit(request)
    run(lonely, [alone])
    assert alone.ids == together.ids


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 3), "the prompt is empty"),
        (Request([[1, 2]], 3), "expected a list of token ids"),
        (Request([1.5], 3), "expected a list of token ids"),
        (Request([1] * 100, 3), "a prompt of 100 tokens leaves no room within max_length, 100"),
        (Request([1], 0), "max_new_tokens"),
        (Request([1], 3, top_k=-1), "top_k"),
        (Request([1], 3, temperature=float("nan")), "temperature"),
        (Request([1], 3, top_logprobs=VOCAB + 1), "top_logprobs"),
        (Request([1] * 50, 50), "need a cache of more than"),
    ],
)
def test_bad_requests_are_refused(request_, message):
    limit = cache_bytes(MODEL.config, 64, dtype=torch.float32)
    engine = Engine(MODEL, max_length=100, max_cache_bytes=limit)
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert engine.unfinished == 0


def test_bad_forks_and_engines_are_refused():
    engine = Engine(MODEL)
    handle = engine.submit(Request([1, 2], 3, constraint=Digits([1], 2)))
    with pytest.raises(ValueError, match="cannot fork at 3: the sequence has 2 tokens"):
        engine.fork(handle, 3)
    with pytest.raises(ValueError, match="a constraint of its own"):
        engine.fork(handle, 1)
    for options in ({"max_batch": 0}, {"prefill_chunk": 0}, {"max_length": -1}, {"prefix_bytes": -1}):
        with pytest.raises(ValueError, match="expected max_batch"):
            Engine(MODEL, **options)
    with pytest.raises(ValueError, match="unknown quantization 'int3'; expected 'int8' or 'float8'"):
        Engine(MODEL, quantize="int3")


def test_a_sequence_ends_at_the_engines_length():
    result = Engine(MODEL, max_length=10).generate([[1] * 7], 50, ())[0]
    assert len(result.ids) == 3 and result.finish_reason == "length"


def test_the_cache_of_the_large_model(monkeypatch):
    """10.2 GB at full length, of which the rings' margin is a 200th; 34.4 if every layer kept all."""
    monkeypatch.undo()
    config = preset("cwm-32b")
    assert cache_bytes(config, 131_072) == pytest.approx(10.2e9, rel=6e-3)
    everywhere = preset("cwm-32b", full_attention_interval=1)
    assert cache_bytes(everywhere, 131_072) == pytest.approx(34.4e9, rel=2e-3)
    meta = KeyValueCache(config, torch.bfloat16, torch.device("meta"))
    meta.resize(3, 131_072)
    assert sum(layer.nbytes for layer in meta.layers) == cache_bytes(config, 131_072, 3)


def test_the_cache_grows_no_larger_than_allowed():
    limit = cache_bytes(MODEL.config, 64, 2, torch.float32)
    engine = Engine(MODEL, max_cache_bytes=limit)
    handles = [engine.submit(Request(random_prompt(n, n), 10, ())) for n in (10, 10, 10, 50, 10)]
    while any(handle.finish_reason is None for handle in handles):
        engine.step()
        assert sum(layer.nbytes for layer in engine._cache.layers) <= limit
    assert all(handle.ids == plain_greedy(MODEL, handle.prompt, 10)[0] for handle in handles)


@pytest.mark.parametrize("splits", [1, 2, 3, 8])
@pytest.mark.parametrize("window", [None, 7, 40])
def test_attention_in_splits_equals_the_formula(splits, window):
    torch.manual_seed(0)
    slots, heads, group, length, size = 3, 2, 4, 64, 8
    positions = torch.tensor([0, 63, 31] if window is None else [5, 200, 63])
    q = torch.randn(slots * heads, group, size)
    cached = torch.randn(2, slots, heads, length, size)
    keys, values = cached.flatten(1, 2).unbind()
    mask = decode_mask(positions, length, length, window, torch.float32)
    out = split_attention(q, cached, mask.repeat_interleave(heads, 0)[:, None], splits)
    for slot, position in enumerate(positions.tolist()):
        # What a ring holds at each place: the latest position that falls there.
        held = [position - (position - place) % length for place in range(length)]
        seen = torch.tensor([p >= 0 and (window is None or position - p < window) for p in held])
        for row in range(slot * heads, (slot + 1) * heads):
            scores = (q[row] @ keys[row].T * size**-0.5).masked_fill(~seen, float("-inf"))
            torch.testing.assert_close(out[row], scores.softmax(-1) @ values[row], atol=1e-5, rtol=1e-4)


def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, enable_gqa, seqused_k):
    """Compute what PyTorch documents for its own kernel, which runs only on CUDA."""
    assert enable_gqa and max_q == 1 and {x.dtype for x in (cu_seq_q, cu_seq_k, seqused_k)} == {torch.int32}
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1 and cu_seq_q[-1] == len(q) and cu_seq_k[-1] == len(k)
    out = torch.empty_like(q)
    for row, first, used in zip(cu_seq_q.tolist(), cu_seq_k.tolist(), seqused_k.tolist(), strict=False):
        assert 0 < used <= max_k
        keys, values = k[first : first + used, 0], v[first : first + used, 0]
        out[row] = (q[row] @ keys.T * q.shape[-1] ** -0.5).softmax(-1) @ values
    return out


def test_a_kernel_that_counts_keys_attends_where_places_are_filled_in_order():
    spans = []
    engine = Engine(MODEL)
    engine._runner.kernel = lambda *args, **options: (spans.append(args[6]), varlen_attn(*args, **options))[1]
    prompts = [random_prompt(n, n) for n in (3, 20, 1)]
    for prompt, result in zip(prompts, engine.generate(prompts, 12, ()), strict=True):
        assert result.ids.tolist() == plain_greedy(MODEL, prompt, 12)[0]
    assert len(spans) == 2 * 12 and max(spans) == 32  # two layers of the three are global


def test_joined_weights_are_the_models_own(tmp_path):
    model = make_model(seed=3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    Engine(model)
    attention = model.layers[0].self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    again = joined(*parts)
    assert again.weight.data_ptr() == parts[0].weight.data_ptr()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    save(model, tmp_path)
    # An engine follows what becomes of the model's weights: trained further in place, or replaced.
    engine = Engine(model)
    with torch.no_grad():
        parts[1].weight.mul_(-2)
    assert engine.generate([[1, 2, 3]], 9)[0].ids.tolist() == plain_greedy(model, [1, 2, 3], 9)[0]
    parts[2].weight.data = torch.randn_like(parts[2].weight)
    assert engine.generate([[1, 2, 3]], 9)[0].ids.tolist() == plain_greedy(model, [1, 2, 3], 9)[0]
    model.double()
    model.float()
    assert engine.generate([[1, 2, 3]], 9)[0].ids.tolist() == plain_greedy(model, [1, 2, 3], 9)[0]


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.06), ("float8", 0.25)])
def test_quantized_weights(kind, error):
    pytest.importorskip("torchao")
    config = preset("tiny", vocab_size=64, hidden_size=128, intermediate_size=256)
    exact, model = random_model(config, seed=1), random_model(config, seed=1)
    engine = Engine(model, device="cpu", quantize=kind)
    handle = engine.submit(Request(list(range(50)), 1, (), top_logprobs=64))
    event = run(engine, [handle])[handle][0]
    expected = exact(torch.arange(50))[-1].log_softmax(-1).detach().numpy()
    actual = np.array([logprob for _, logprob in sorted(event.top)])
    distance = np.linalg.norm(actual - expected) / np.linalg.norm(expected - expected.mean())
    assert 0 < distance < error
    layers = weight_bytes(exact.layers)
    assert weight_bytes(model.layers) < 0.27 * layers
    assert weight_bytes(exact) - weight_bytes(model) > 0.73 * layers
    assert Transformer(config).lm_head.weight.shape == model.lm_head.weight.shape
