"""Generate greedily with small models, alone and in batches, compared with `generate` of transformers."""

import numpy as np
import pytest
import torch
from cwm_core.inference import Engine
from cwm_core.model import Transformer, preset, save

transformers = pytest.importorskip("transformers")

PROMPT, NEW_TOKENS = 128, 256
QUICK = 8  # new tokens in runs that are not measured


@pytest.fixture(scope="module", params=["tiny", "small"])
def models(request, tmp_path_factory):
    """Return models of 1.8 and 8.4 million parameters."""
    torch.manual_seed(0)
    ours = Transformer(preset(request.param))
    folder = tmp_path_factory.mktemp("model")
    save(ours, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return request.param, ours, theirs.eval()


def measure(benchmark, name, implementation, batch, generate):
    """Call `generate` with the number of tokens to generate per prompt; return that number and the results."""
    new_tokens = QUICK if benchmark.disabled else NEW_TOKENS
    benchmark.group = f"generate, {name}, batch {batch}"
    benchmark.extra_info = {"implementation": implementation, "tokens": batch * new_tokens}
    return new_tokens, benchmark.pedantic(generate, [new_tokens], rounds=3, warmup_rounds=1)


def prompts_of(batch):
    return np.random.default_rng(0).integers(4096, size=(batch, PROMPT))


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_generate_cwm_core(benchmark, models, batch):
    name, model, _ = models
    engine, prompts = Engine(model), list(prompts_of(batch))
    new_tokens, results = measure(
        benchmark, name, "cwm_core", batch, lambda n: engine.generate(prompts, n, stop_ids=())
    )
    assert all(len(result.ids) == new_tokens for result in results)


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_generate_transformers(benchmark, models, batch):
    name, _, model = models
    prompts = torch.from_numpy(prompts_of(batch))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(prompts)

    def generate(new_tokens):
        return model.generate(prompts, attention_mask=mask, max_new_tokens=new_tokens, **options)

    new_tokens, out = measure(benchmark, name, "transformers", batch, generate)
    assert out.shape == (batch, PROMPT + new_tokens)
