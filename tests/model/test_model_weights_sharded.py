"""Weights of models that are cut over ranks, against the same model whole."""

import pytest
import torch
from cwm_core.model import Transformer, initialize, load, load_into, preset, save
from cwm_core.training import TrainConfig
from cwm_core.training.parallel import parallelize
from cwm_core.training.world import World
from random_models import assert_same, consolidated, random_model
from ranks import run_ranks

# Sizes that ranks do not divide where they need not: rows of norms and of the embedding's width are cut unevenly.
CONFIG = preset(
    "tiny", vocab_size=52, hidden_size=36, intermediate_size=52, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=6, sliding_window=6, full_attention_interval=2, eos_token_id=(),
)  # fmt: skip
TIED = preset(
    "tiny",
    vocab_size=52,
    hidden_size=36,
    intermediate_size=52,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    tie_word_embeddings=True,
)
FORMATS = ("huggingface", "meta", "dcp")
CUTS = {
    2: [{}, {"tensor_parallel": 2}],
    4: [{"tensor_parallel": 2}, {"data_parallel_replicas": 2, "context_parallel": 2}],
}


def cut_model(config, settings):
    settings = TrainConfig(max_steps=1, **settings)
    with torch.device("meta"):
        model = Transformer(config)
    parallelize(model, settings, World.create(settings))
    return model


def whole_state(model):
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def same_weights(model, state):
    assert model.state_dict().keys() == state.keys()
    for name, tensor in whole_state(model).items():
        assert torch.equal(tensor, state[name]), name
    assert (model.lm_head.weight is model.embed_tokens.weight) == model.config.tie_word_embeddings


def initialize_load_and_save(folder, cuts):
    for config in (CONFIG, TIED):
        expected = Transformer(config)
        initialize(expected, seed=3)
        for number, settings in enumerate(cuts):
            model = cut_model(config, settings)
            initialize(model, seed=3)
            same_weights(model, expected.state_dict())
            source = folder / f"random-{config.num_hidden_layers}"
            state = load(source / "dcp").state_dict()
            for form in FORMATS if config is CONFIG else ("huggingface", "dcp"):
                fresh = cut_model(config, settings)
                load_into(fresh, source / form)
                same_weights(fresh, state)
                load_into(model, source / form)  # over weights that are there
                same_weights(model, state)
                saved = folder / f"saved-{config.num_hidden_layers}-{number}-{form}"
                save(fresh, saved, format=form, max_shard_bytes=5000)
                initialize(model, seed=4)
                load_into(model, saved)  # now from parts, if each rank wrote some
                same_weights(model, state)
    model = cut_model(CONFIG, {"tensor_parallel": 2})
    load_into(model, folder / "consolidated")
    same_weights(model, load(folder / "random-2" / "dcp").state_dict())


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_models_have_the_weights_of_whole_ones(tmp_path, ranks):
    models = {config.num_hidden_layers: random_model(config) for config in (CONFIG, TIED)}
    for layers, model in models.items():
        for form in FORMATS:
            save(model, tmp_path / f"random-{layers}" / form, format=form)
    consolidated(tmp_path, models[2], 2, "pth")
    run_ranks(initialize_load_and_save, ranks, tmp_path, CUTS[ranks])
    saved = sorted(tmp_path.glob("saved-*"))
    assert len(saved) == len(CUTS[ranks]) * 5
    for folder in saved:
        assert_same(load(folder), models[int(folder.name.split("-")[1])])
        if folder.name.endswith("huggingface"):
            assert len(list(folder.glob("*.safetensors"))) > 2
        else:
            assert len(list(folder.glob("*.distcp"))) >= 2  # every rank wrote


def test_a_scheme_scales_the_same_draws():
    small, unit = (Transformer(CONFIG) for _ in range(2))
    initialize(small, seed=3)
    initialize(unit, seed=3, scheme="unit")
    factors = {"embed_tokens.weight": 25.0, "lm_head.weight": 0.0}
    for (name, a), (_, b) in zip(small.named_parameters(), unit.named_parameters(), strict=True):
        is_left = a.dim() < 2 or name.endswith(("o_proj.weight", "down_proj.weight"))
        factor = 1.0 if is_left else factors.get(name, 50 * CONFIG.hidden_size**-0.5)
        torch.testing.assert_close(b, a * factor)


def failing_saves(folder):
    model = cut_model(CONFIG, {})
    with pytest.raises(ValueError, match="meta device"):
        save(model, folder / "none")
    initialize(model, seed=3)
    with pytest.raises(FileExistsError, match="another format"):
        save(model, folder / "taken", format="dcp")
    with pytest.raises(FileExistsError, match="file"):
        save(model, folder / "file" / "model")
    with torch.no_grad():
        model(torch.zeros(2, 4, dtype=torch.long))  # leaves the output layer gathered
    save(model, folder / "taken")
    missing = cut_model(TIED, {})
    with pytest.raises(ValueError, match="the output layer differs from the embedding"):
        load_into(missing, folder / "taken")


def test_failures_reach_every_rank(tmp_path):
    save(random_model(CONFIG), tmp_path / "taken")
    (tmp_path / "file").write_text("")
    run_ranks(failing_saves, 2, tmp_path)
    model = Transformer(CONFIG)
    initialize(model, seed=3)
    assert_same(load(tmp_path / "taken"), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
