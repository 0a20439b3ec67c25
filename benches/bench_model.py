"""A training step of a small model, compared to transformers' CwmForCausalLM with the same weights.

Both train on the same documents. Ours reads the offsets of packed documents. For transformers, the documents are sorted
by length and padded into `MICRO_BATCHES` batches, its cheaper way to keep documents apart (the other, one packed row
whose positions start over, is measured too). Tokens are counted without padding.
"""

import numpy as np
import pytest
import torch
from cwm_core.model import Transformer, preset, save

transformers = pytest.importorskip("transformers")

ROWS, SEQ_LEN, MEAN_DOCUMENT, MICRO_BATCHES = 8, 1024, 200, 8
QUICK_ROWS = 2  # in runs that are not measured


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    ours = Transformer(preset("tiny"))
    folder = tmp_path_factory.mktemp("model")
    save(ours, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return ours, theirs.train()


@pytest.fixture(scope="module")
def documents(quick):
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(QUICK_ROWS if quick else ROWS):
        room = SEQ_LEN
        while room:
            lengths.append(min(room, 8 + int(rng.exponential(MEAN_DOCUMENT))))
            room -= lengths[-1]
    return [torch.from_numpy(rng.integers(4096, size=n)) for n in lengths]


def measure(benchmark, group, implementation, tokens, function):
    benchmark.group = group
    benchmark.extra_info = {"implementation": implementation, "tokens": tokens}
    return benchmark.pedantic(function, rounds=3, warmup_rounds=1)


def next_token_targets(documents):
    """Return the targets within each document; the last token of a document has none."""
    targets = torch.cat([torch.cat((document[1:], document[:1])) for document in documents])
    ends = torch.tensor([len(document) for document in documents]).cumsum(0) - 1
    mask = torch.ones(len(targets), dtype=torch.bool)
    mask[ends] = False
    return targets, mask


def test_training_step_cwm_core(benchmark, models, documents):
    model, _ = models
    tokens = torch.cat(documents)
    targets, mask = next_token_targets(documents)
    offsets = torch.tensor([0] + [len(d) for d in documents]).cumsum(0)

    def step():
        model.zero_grad()
        loss = model.loss(tokens, targets, mask, offsets).total / mask.sum()
        loss.backward()
        return loss.item()

    benchmark.extra_info["loss"] = measure(benchmark, "training step", "cwm_core", len(tokens), step)


def test_training_step_transformers_padded(benchmark, models, documents):
    _, model = models
    _, mask = next_token_targets(documents)
    by_length = sorted(documents, key=len)
    size = -(-len(by_length) // MICRO_BATCHES)
    groups = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    batches = [(pad(group, 0), pad([torch.ones_like(d) for d in group], 0), pad(group, -100)) for group in groups]

    def step():
        model.zero_grad()
        total = 0.0
        for tokens, attention_mask, labels in batches:
            out = model(
                tokens, attention_mask=attention_mask, labels=labels, num_items_in_batch=mask.sum(), use_cache=False
            )
            out.loss.backward()
            total += out.loss.item()
        return total

    tokens = sum(len(d) for d in documents)
    benchmark.extra_info["loss"] = measure(benchmark, "training step", "transformers", tokens, step)


def test_training_step_transformers_packed(benchmark, models, documents):
    _, model = models
    targets, mask = next_token_targets(documents)
    tokens = torch.cat(documents).view(-1, SEQ_LEN)
    positions = torch.cat([torch.arange(len(d)) for d in documents]).view(-1, SEQ_LEN)
    labels = targets.masked_fill(~mask, -100).view(-1, SEQ_LEN)

    def step():
        model.zero_grad()
        total = 0.0
        for row in range(len(tokens)):  # it finds documents by their positions in batches of one row only
            one = slice(row, row + 1)
            out = model(
                tokens[one],
                position_ids=positions[one],
                shift_labels=labels[one],
                labels=labels[one],
                num_items_in_batch=mask.sum(),
                use_cache=False,
            )
            out.loss.backward()
            total += out.loss.item()
        return total

    benchmark.extra_info["loss"] = measure(benchmark, "training step", "transformers", tokens.numel(), step)


def pad(documents, value):
    return torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=value)


def test_training_steps_agree(models, documents):
    """Check that the three benchmarks compute the same loss and the same gradient."""

    class Once:
        def pedantic(self, function, **_):
            return function()

    losses, gradients = [], []
    for step in (
        test_training_step_cwm_core,
        test_training_step_transformers_padded,
        test_training_step_transformers_packed,
    ):
        once = Once()
        once.extra_info = {}
        step(once, models, documents)
        losses.append(once.extra_info["loss"])
        model = models[0] if once.extra_info["implementation"] == "cwm_core" else models[1]
        gradients.append(model.lm_head.weight.grad.clone())
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-4)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-3)
