"""Llama, Qwen2 and Qwen3 beside CWM, against the classes of transformers with random small configurations."""

import json
import random
from dataclasses import replace

import pytest
import torch
from cwm_core.inference import Engine
from cwm_core.model import ModelConfig, RopeParameters, Transformer, load, preset, save
from cwm_core.model.weights import read_config
from random_models import assert_same, edit_json, random_model, randomize

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

LENGTH = 60  # tokens past every window


def random_config(model_type, seed):
    """Return a random small configuration of transformers for a family, with keys as published files have them."""
    draw = random.Random(f"{model_type} {seed}")
    kv_heads = draw.choice([1, 2])
    heads = kv_heads * draw.choice([1, 3])
    layers = draw.randint(1, 3)
    values = {
        "vocab_size": draw.randint(20, 40),
        "hidden_size": heads * 2 * draw.randint(3, 6),
        "intermediate_size": draw.randint(5, 30),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": draw.choice([64, 131_072]),
        "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-2]),
        "rope_parameters": random_rope(draw),
        "tie_word_embeddings": draw.random() < 0.5,
        "bos_token_id": draw.choice([None, 1]) if model_type != "cwm" else 1,
        "eos_token_id": draw.choice([None, 2, [2, 3]]),
    }
    if model_type != "qwen2":
        values["head_dim"] = 2 * draw.randint(2, 8)
    if model_type in ("llama", "qwen3"):
        values["attention_bias"] = draw.random() < 0.5
    kinds = ("full_attention", "sliding_attention")
    if model_type != "llama":
        values["sliding_window"] = draw.randint(2, 20)  # with 1, the cache of transformers loses the token itself
    if model_type == "cwm":
        values["layer_types"] = draw.choices(kinds, k=layers)
    if model_type.startswith("qwen"):
        values["use_sliding_window"] = draw.random() < 0.7
        values["max_window_layers"] = draw.randint(0, layers)
        if values["use_sliding_window"] and draw.random() < 0.5:
            values["layer_types"] = draw.choices(kinds, k=layers)
    return getattr(transformers, NAMES[model_type] + "Config")(**values)


def random_rope(draw):
    """Return `rope_parameters` of a random kind, with and without optional keys."""
    theta = {"rope_theta": draw.choice([500.0, 10_000.0, 1e6])}
    factor, original = (
        {"factor": draw.choice([2.0, 8.0])},
        {"original_max_position_embeddings": draw.choice([16, 8192])},
    )
    turns = {"low_freq_factor": draw.choice([0.5, 1.0]), "high_freq_factor": 4.0}
    optional = [
        {"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False},
        {"mscale": 0.7, "mscale_all_dim": 0.3},
    ]  # fmt: skip
    yarn = {key: value for part in draw.sample(optional, draw.randint(0, 3)) for key, value in part.items()}
    kinds = {
        "default": {},
        "linear": factor,
        "llama3": factor | turns | original,
        "yarn": factor | original | yarn,
    }
    kind = draw.choice(list(kinds))
    return {"rope_type": kind, **theta, **kinds[kind]}


NAMES = {"cwm": "Cwm", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
KINDS = list(NAMES)


def random_oracle(model_type, seed):
    torch.manual_seed(seed)
    config = random_config(model_type, seed)
    model = getattr(transformers, NAMES[model_type] + "ForCausalLM")(config)
    model.set_attn_implementation("eager")
    return randomize(model).eval()


def assert_logits_equal(ours, expected):
    """Compare to 1e-5 of the largest value: rounding errors scale with the summands, not with the sum."""
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1, expected.abs().max().item()), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_logits_equal_transformers(tmp_path, model_type, seed):
    """Alone, in a batch, packed, and at the last positions of the context; then saved and read by transformers."""
    oracle = random_oracle(model_type, seed)
    oracle.save_pretrained(tmp_path / "theirs", max_shard_size=random.Random(seed).choice([1000, "5GB"]))
    model = load(tmp_path / "theirs")
    tokens = torch.randint(model.config.vocab_size, (2, LENGTH))
    assert_logits_equal(model(tokens), oracle(tokens).logits)
    offsets = torch.tensor([0, 1, 25, LENGTH])
    documents = [oracle(document[None]).logits[0] for document in tokens[0].tensor_split(offsets[1:-1])]
    assert_logits_equal(model(tokens[0], offsets), torch.cat(documents))
    positions = torch.arange(LENGTH)[None] + model.config.max_position_embeddings - LENGTH
    assert_logits_equal(model(tokens[:1], position_ids=positions), oracle(tokens[:1], position_ids=positions).logits)

    save(model, tmp_path / "ours", max_shard_bytes=2000)
    again = load(tmp_path / "ours")
    assert again.config == model.config
    assert_same(again, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(theirs) is type(oracle)
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert_logits_equal(theirs(tokens).logits, oracle(tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("seed", [11, 12])
def test_greedy_text_equals_generate(tmp_path, model_type, seed):
    oracle = random_oracle(model_type, seed)
    oracle.save_pretrained(tmp_path)
    model = load(tmp_path)
    prompts = torch.randint(model.config.vocab_size, (3, 9))
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    stop_ids = model.config.eos_token_id
    results = Engine(model).generate(prompts.tolist(), 40, stop_ids)
    for prompt, result in zip(prompts, results, strict=True):
        expected = oracle.generate(prompt[None], attention_mask=torch.ones(1, 9), **settings)[0, 9:].tolist()
        assert result.ids.tolist() == expected


def family_config(model_type, **changes):
    features = {
        "cwm": {},
        "llama": {"attention_bias": True, "layer_windows": (None, None)},
        "qwen2": {"qkv_bias": True, "tie_word_embeddings": True},
        "qwen3": {"qk_norm": True, "attention_bias": True},
    }[model_type]
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "full_attention_interval": 2, "sliding_window": 40}
    return preset("tiny", model_type=model_type, **sizes | features | changes)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gradients_are_equal_with_every_backend(monkeypatch, model_type):
    # PyTorch refuses gradients of flex_attention on a CPU; as an eager formula it has them.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    tokens, offsets = torch.randint(50, (150,)), torch.tensor([0, 120, 150])
    gradients = []
    for backend in ("reference", "sdpa", "flex"):
        model = random_model(family_config(model_type))
        model.attention_backend = backend
        model.loss(tokens, tokens, cu_seqlens=offsets).total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-4, rtol=1e-4)


def test_fresh_biases_are_zero_and_norms_one():
    model = Transformer(family_config("qwen3"))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0 if name.endswith(".bias") else 1)).all()


QWEN25 = {  # Qwen2.5-Coder-1.5B as published, with fewer and narrower layers
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 12,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.44.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
LLAMA32 = {  # Llama-3.2-1B as published
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def test_reads_published_files():
    config = ModelConfig.from_hf(QWEN25)
    assert config.rope_parameters == RopeParameters(rope_type="default", rope_theta=1e6)
    assert (config.head_dim, config.layer_windows, config.eos_token_id) == (4, (None, None), (151643,))
    yarn = QWEN25 | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
    assert ModelConfig.from_hf(yarn).rope_parameters == RopeParameters(1e6, "yarn", 4.0, 1.0, 4.0, 32768)
    windows = QWEN25 | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}
    assert ModelConfig.from_hf(windows).layer_windows == (None, 4096)
    config = ModelConfig.from_hf(LLAMA32)
    assert config.rope_parameters == RopeParameters(500_000.0, factor=32.0)
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(config).parameters()) == 1_235_814_400  # as published


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        (
            QWEN25,
            {"model_type": "qwen2_moe"},
            "model_type 'qwen2_moe', expected one of 'cwm', 'llama', 'qwen2', 'qwen3'",
        ),
        (QWEN25, {"hidden_act": "gelu"}, "hidden_act = 'gelu', expected 'silu'"),
        (QWEN25, {"use_sliding_window": "yes"}, "use_sliding_window = 'yes', expected true or false"),
        (QWEN25, {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types 'chunked_attention'"),
        (QWEN25, {"layer_types": ["full_attention", "sliding_attention"]}, "no sliding_window that it uses"),
        (QWEN25, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic', expected one of default,"),
        (QWEN25, {"rope_parameters": {"full_attention": {}}}, "rope_parameters for each kind of layer"),
        (QWEN25, {"num_hidden_layers": 10**12}, "num_hidden_layers must be between 1 and"),
        (QWEN25, {"quantization_config": {"bits": 4}}, "quantization_config = "),
        (LLAMA32, {"mlp_bias": True}, "mlp_bias = True, expected False"),
        (LLAMA32, {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        (LLAMA32, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (LLAMA32, {"layer_types": ["sliding_attention"] * 16, "sliding_window": 8}, "'llama' has no windows"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, values, change, message):
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type must be one of cwm, llama, qwen2, qwen3, got 'gemma'"),
        ({"model_type": "qwen2"}, "model_type 'qwen2' needs qkv_bias = true"),
        ({"qk_norm": True}, "model_type 'cwm' needs qk_norm = false"),
        ({"attention_bias": True}, "model_type 'cwm' has no attention_bias: use one of llama, qwen3"),
        ({"model_type": "llama"}, "model_type 'llama' has no windows: set full_attention_interval = 1"),
    ],
)
def test_features_that_a_family_lacks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **change)


def test_layouts_that_cannot_hold_a_model_refuse_it(tmp_path):
    qwen = Transformer(family_config("qwen2"))
    with pytest.raises(ValueError, match="Meta's parameters express models of model_type 'cwm', got 'qwen2'"):
        save(qwen, tmp_path / "m", format="meta")
    config = family_config("cwm", rope_parameters=RopeParameters(rope_type="yarn"))
    with pytest.raises(ValueError, match="Meta's parameters express scaling of rope_type 'llama3', got 'yarn'"):
        save(Transformer(config), tmp_path / "m", format="meta")
    with pytest.raises(ValueError, match=r"one sliding_window for all layers, the model has \(3, 5\)"):
        save(Transformer(family_config("cwm", layer_windows=(3, 5))), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_distributed_checkpoints_hold_every_family(tmp_path):
    for model_type in ("llama", "qwen2", "qwen3"):
        model = random_model(family_config(model_type))
        save(model, tmp_path / model_type, format="dcp")
        loaded = load(tmp_path / model_type)
        assert_same(loaded, model)
        assert loaded.config == model.config


def test_stretched_positions_of_a_loaded_model(tmp_path):
    """An unused parameter is its default, so that changing the kind does not bring it back."""
    rope = RopeParameters(rope_type="default", factor=9.0, beta_fast=3.0)
    assert rope == RopeParameters(rope_type="default", factor=1.0)
    assert replace(rope, rope_type="yarn").factor == 1.0
    for changes in ({"rope_type": "dynamic"}, {"rope_type": "yarn", "attention_factor": -1.0}):
        with pytest.raises(ValueError, match=r"rope_type must be one of|attention_factor must be a positive number"):
            RopeParameters(**changes)


def test_a_key_that_is_missing_is_named(tmp_path):
    save(random_model(family_config("qwen3")), tmp_path / "m")
    edit_json(tmp_path / "m/config.json", lambda values: values.pop("intermediate_size"))
    with pytest.raises(ValueError, match=r"config\.json lacks 'intermediate_size'"):
        load(tmp_path / "m")
