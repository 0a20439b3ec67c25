"""Weights on disk: every format against transformers, PyTorch's own reader, and a model that turns adjacent pairs."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import readme
import torch
import torch.nn.functional as F
from cwm_core import Tokenizer
from cwm_core.model import ModelConfig, RopeParameters, Transformer, load, preset, save
from cwm_core.model.attention import attention
from cwm_core.model.rotary import rotary_frequencies
from cwm_core.model.weights import dcp, huggingface, meta
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import assert_same, consolidated, edit_json, random_model, read_dcp
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

FORMATS = ("huggingface", "meta", "dcp")


@st.composite
def configs(draw):
    """Shapes of every class: grouped heads, head sizes that are not width / heads, windows, one layer or several."""
    layers = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    window = draw(st.integers(1, 12))
    return ModelConfig(
        vocab_size=draw(st.integers(5, 40)),
        hidden_size=heads * draw(st.integers(8, 12)),  # transformers wants a multiple
        intermediate_size=draw(st.integers(1, 30)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 6)),
        sliding_window=window,
        layer_windows=draw(patterns(layers, window)),
        rope_parameters=draw(
            st.sampled_from(
                [RopeParameters(), RopeParameters(rope_theta=500.0, factor=4.0, original_max_position_embeddings=32)]
            )
        ),
        eos_token_id=(),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def patterns(draw, layers, window):
    """Windows that Meta's parameters can express: all, each nth, or each nth and the last layer global."""
    every, last = draw(st.integers(1, 4)), draw(st.booleans())
    return tuple(None if i % every == 0 or (last and i == layers - 1) else window for i in range(layers))


def logits_of(model, seed=1):
    tokens = torch.randint(model.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return tokens, model(tokens)


def meta_logits(state, config, tokens):
    """The transformer with Meta's names, turning adjacent pairs as complex numbers, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    frequencies = rotary_frequencies(config.rope_parameters, config.head_dim, torch.device("cpu")).double()
    turns = torch.polar(torch.ones(()).double(), torch.arange(tokens.shape[1])[:, None] * frequencies)

    def heads(x, name):
        return F.linear(x, state[name]).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], state[name], config.rms_norm_eps)

    x = F.embedding(tokens, state["tok_embeddings.weight"])
    for i, window in enumerate(config.layer_windows):
        h = norm(x, f"layers.{i}.attention_norm.weight")
        q, k, v = (heads(h, f"layers.{i}.attention.{name}.weight") for name in ("wq", "wk", "wv"))
        out = attention(turned(q), turned(k), v, None, window, backend="reference").transpose(1, 2).flatten(2)
        x = x + F.linear(out, state[f"layers.{i}.attention.wo.weight"])
        h = norm(x, f"layers.{i}.ffn_norm.weight")
        w1, w2, w3 = (state[f"layers.{i}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3"))
        x = x + F.linear(F.silu(F.linear(h, w1)) * F.linear(h, w3), w2)
    output = state["tok_embeddings.weight" if config.tie_word_embeddings else "output.weight"]
    return F.linear(norm(x, "norm.weight"), output)


def fresh(tmp_path_factory):
    return tmp_path_factory.mktemp("model") / "model"


@settings(max_examples=12, deadline=None)
@given(
    configs(),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([1, 2000, 10**9]),
    st.permutations(FORMATS),
    st.integers(0, 2**31),
)
def test_round_trips_are_bit_equal(tmp_path_factory, config, dtype, max_shard_bytes, formats, seed):
    """From each format to the next, in any order, and back to what was there first."""
    model = loaded = random_model(config, seed, dtype)
    for form in formats:
        folder = fresh(tmp_path_factory)
        save(loaded, folder, format=form, max_shard_bytes=max_shard_bytes)
        loaded = load(folder)
        assert_same(loaded, model)
        assert loaded.config == replace(
            config,
            sliding_window=loaded.config.sliding_window,  # Meta's parameters say it only where a layer uses it
        )
        assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == config.tie_word_embeddings
    assert torch.equal(logits_of(loaded)[1], logits_of(model)[1])


@settings(max_examples=10, deadline=None)
@given(configs(), st.sampled_from([1, 2000, 10**9]), st.integers(0, 2**31))
def test_transformers_reads_what_we_write_and_we_what_it_writes(tmp_path_factory, config, max_shard_bytes, seed):
    model = random_model(config, seed)
    folder = fresh(tmp_path_factory)
    save(model, folder, max_shard_bytes=max_shard_bytes)
    theirs, problems = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert type(theirs).__name__ == "CwmForCausalLM"
    assert not any(problems.values()), problems
    tokens, expected = logits_of(model)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(folder / "theirs", max_shard_size=max_shard_bytes)
    assert_same(load(folder / "theirs"), model)


@settings(max_examples=15, deadline=None)
@given(configs(), st.integers(0, 2**31))
def test_meta_weights_give_the_same_logits_where_adjacent_pairs_turn(tmp_path_factory, config, seed):
    model = random_model(config, seed, torch.float64)
    folder = fresh(tmp_path_factory)
    save(model, folder, format="meta")
    tokens, logits = logits_of(model)
    torch.testing.assert_close(meta_logits(read_dcp(folder), config, tokens), logits, atol=1e-5, rtol=1e-5)


def test_the_pair_model_can_fail(tmp_path):
    """Its logits differ from ours by far if rows stay in our order."""
    model = random_model(preset("tiny", num_hidden_layers=1), dtype=torch.float64)
    save(model, tmp_path / "m", format="meta")
    state = read_dcp(tmp_path / "m")
    state["layers.0.attention.wq.weight"] = model.layers[0].self_attn.q_proj.weight.detach()
    tokens, logits = logits_of(model)
    assert (meta_logits(state, model.config, tokens) - logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["cwm-32b", "small", "tiny"])
def test_presets_have_the_names_and_shapes_of_others(name):
    config = preset(name)
    with torch.device("meta"):
        ours = Transformer(config)
        theirs = transformers.CwmForCausalLM(transformers.CwmConfig(**config.to_hf()))
    layout = huggingface.HuggingFace()
    shapes = {layout.stored_name(name): tensor.shape for name, tensor in ours.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.named_parameters()}
    values = json.loads(json.dumps(meta.Meta().config_values(config, torch.bfloat16)))
    assert replace(meta.Meta().config_from(values), eos_token_id=config.eos_token_id) == config


def test_reads_parameters_of_the_form_meta_released():
    """FFN width from its multiplier and multiple, windows from their pattern; unknown to the model is the rest."""
    window_attn = {"window_pattern": 4, "global_window": 131_072, "local_window": 8192, "global_last_layer": False}
    scaled_rope = {"scale_factor": 16, "old_context_len": 8192, "low_freq_factor": 1, "high_freq_factor": 4}
    values = {
        "dim": 6144, "n_layers": 64, "n_heads": 48, "n_kv_heads": 8, "head_dim": 128, "max_seq_len": 131_072,
        "vocab_size": 128_256, "ffn_dim_multiplier": 1.3, "ffn_exp": 4, "multiple_of": 256, "norm_eps": 1e-5,
        "pos_embed_impl": "scaled_rope", "rope_theta": 1_000_000.0, "scaled_rope": scaled_rope,
        "window_attn": window_attn, "attn_impl": "xformers", "qkv_biases": False,
    }  # fmt: skip
    assert meta.Meta().config_from({"model": values, "tokenizer": {}}) == preset("cwm-32b")
    assert meta.Meta().config_from(values) == preset("cwm-32b")
    last = meta.Meta().config_from(values | {"window_attn": window_attn | {"global_last_layer": True}})
    assert last.layer_windows[-2:] == (8192, None)
    with pytest.raises(ValueError, match="qk_norm"):
        meta.Meta().config_from(values | {"qk_norm": True})
    with pytest.raises(ValueError, match="n_layers must be"):
        meta.Meta().config_from(values | {"n_layers": 10**12})


def test_windows_that_meta_cannot_express_are_refused(tmp_path):
    model = Transformer(preset("tiny", layer_windows=(None, 5, 6, 7)))
    with pytest.raises(ValueError, match="cannot express"):
        save(model, tmp_path / "m", format="meta")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("files", [1, 2])
def test_loads_consolidated_files(tmp_path, files, suffix):
    model = random_model(preset("tiny", num_hidden_layers=2))
    folder = consolidated(tmp_path, model, files, suffix)
    assert_same(load(folder), model)
    assert_same(load(folder, dtype=torch.bfloat16), model.bfloat16())


def test_loads_consolidated_files_that_hold_different_tensors(tmp_path):
    model = random_model(preset("tiny", num_hidden_layers=2))
    folder = consolidated(tmp_path, model, 1, "safetensors")
    whole = load_file(folder / "consolidated.00.safetensors")
    save_file({k: v for k, v in whole.items() if "norm" in k}, folder / "consolidated.00.safetensors")
    save_file({k: v for k, v in whole.items() if "norm" not in k}, folder / "consolidated.01.safetensors")
    assert_same(load(folder), model)


def test_slices_that_do_not_fit_are_refused(tmp_path):
    folder = consolidated(tmp_path, random_model(preset("tiny", num_hidden_layers=1)), 2, "pth")
    file = folder / "consolidated.01.pth"
    state = torch.load(file)
    torch.save(state | {"output.weight": state["output.weight"][1:]}, file)
    with pytest.raises(ValueError, match=r"slices \[2048, 128\], \[2047, 128\] of output.weight .* \[4096, 128\]"):
        load(folder)


def test_pytorch_reads_our_checkpoint(tmp_path):
    model = random_model(preset("tiny", num_hidden_layers=2), dtype=torch.bfloat16)
    save(model, tmp_path / "m", format="dcp")
    state = read_dcp(tmp_path / "m")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


TWO_PROCESSES = """
    import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import distribute_tensor, Replicate, Shard
    from cwm_core.model import Transformer, preset
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    state = Transformer(preset("tiny", num_hidden_layers=1, vocab_size=301)).state_dict()
    placements = {"o_proj": Shard(1), "norm": Replicate()}
    for name, tensor in state.items():
        placement = next((p for key, p in placements.items() if key in name), Shard(0))
        state[name] = distribute_tensor(tensor, mesh, [placement])
    dcp.save({"model": state, "optimizer": {"steps": 3, "momentum": torch.ones(3)}}, checkpoint_id=folder)
    dist.destroy_process_group()
"""


def test_loads_the_checkpoint_of_two_processes(tmp_path):
    """Rows and columns cut unevenly between them, and an optimizer beside the model."""
    folder = tmp_path / "checkpoint"
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(TWO_PROCESSES)]
    ranks = [subprocess.Popen([*command, str(rank), str(folder)]) for rank in range(2)]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    assert len(list(folder.glob("*.distcp"))) == 2
    config = preset("tiny", num_hidden_layers=1, vocab_size=301)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    torch.manual_seed(0)
    assert_same(load(folder), Transformer(config))


MEMORY = """
    import json, pathlib, sys, torch
    from cwm_core.model import Transformer, load, preset, save

    def kilobytes(field):
        return int(pathlib.Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

    def peak(call, *args, **kwargs):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        result = call(*args, **kwargs)
        return (kilobytes("VmHWM") - before) * 1024, sum(p.nbytes for p in result.parameters()) if result else 0

    folder = pathlib.Path(sys.argv[1])
    small = Transformer(preset("tiny", num_hidden_layers=1))
    large = Transformer(preset("tiny", hidden_size=1024, intermediate_size=3072, num_hidden_layers=3, vocab_size=8192))
    result = {"tensor": max(p.nbytes for p in large.parameters()), "model": sum(p.nbytes for p in large.parameters())}
    for form in ("huggingface", "meta", "dcp"):
        save(small, folder / f"small-{form}", format=form)
        load(folder / f"small-{form}")  # what is imported on the way does not count
        result["save " + form] = peak(save, large, folder / form, format=form, max_shard_bytes=10**8)
    del large
    for form in ("huggingface", "meta", "dcp"):
        for dtype in (torch.float32, torch.bfloat16):
            result[f"load {form} {dtype}"] = peak(load, folder / form, dtype=dtype)
    print(json.dumps(result))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux does")
def test_in_memory_are_the_model_and_a_tensor(tmp_path):
    """Measure the peak of resident memory, mapped pages included. The allocator returns freed memory to the system."""
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result = json.loads(output)
    print(output)
    tensor, model = result.pop("tensor"), result.pop("model")
    assert model > 150e6 > 4 * tensor
    for case, (peak, loaded) in result.items():
        assert loaded == (0 if "save" in case else model // 2 if "bfloat16" in case else model)
        assert peak < loaded + tensor + 8e6, case


def test_weights_do_not_change_with_their_file(tmp_path):
    model = random_model(preset("tiny", num_hidden_layers=1))
    save(model, tmp_path)
    loaded = load(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\1" * 1000)
    assert_same(loaded, model)


# What is wrong with a folder


@pytest.fixture
def folder(tmp_path):
    save(random_model(preset("tiny", num_hidden_layers=2)), tmp_path / "m", max_shard_bytes=10**6)
    return tmp_path / "m"


@pytest.mark.parametrize("form", FORMATS)
def test_saving_again_replaces_weights_and_leaves_other_files(tmp_path, form):
    save(random_model(preset("tiny", num_hidden_layers=2)), tmp_path, format=form, max_shard_bytes=10**6)
    (tmp_path / "notes.txt").write_text("kept")
    model = random_model(preset("tiny", num_hidden_layers=1), seed=1)
    for max_shard_bytes in (2 * 10**6, 10**9, 10**6, 10**9):
        save(model, tmp_path, format=form, max_shard_bytes=max_shard_bytes)
        assert_same(load(tmp_path), model)
    assert (tmp_path / "notes.txt").read_text() == "kept"
    names = {file.name for file in tmp_path.iterdir()}
    expected = {
        "huggingface": {"config.json", "model.safetensors"},
        "meta": {"params.json", ".metadata", "__0_0.distcp"},
        "dcp": {"config.json", ".metadata", "__0_0.distcp"},
    }
    assert names == expected[form] | {"notes.txt"}


@pytest.mark.parametrize("sizes", [(10**6, 10**6), (10**9, 10**9), (10**6, 10**9), (10**9, 10**6)])
@pytest.mark.parametrize("form", ["huggingface", "dcp"])
def test_a_save_that_is_cut_off_leaves_no_mixture(tmp_path, monkeypatch, form, sizes):
    """Cut at each change of the folder in turn: the old weights, the new, or an error."""
    old, new = (random_model(preset("tiny", num_hidden_layers=2), seed) for seed in (1, 2))
    steps, outcomes = 0, []
    originals = {name: getattr(Path, name) for name in ("replace", "unlink")}
    for cut in range(50):
        folder = tmp_path / str(cut)
        save(old, folder, format=form, max_shard_bytes=sizes[0])
        steps = 0

        def counted(name, cut=cut):
            def call(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps > cut:
                    raise KeyboardInterrupt
                return originals[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in originals:
                patch.setattr(Path, name, counted(name))
            try:
                save(new, folder, format=form, max_shard_bytes=sizes[1])
            except KeyboardInterrupt:
                finished = False
            else:
                finished = True
        assert not list(folder.glob("*.partial"))
        try:
            loaded = load(folder)
        except (ValueError, FileNotFoundError):
            outcomes.append("error")
        else:
            first = loaded.norm.weight
            outcomes.append("new" if torch.equal(first, new.norm.weight) else "old")
            assert_same(loaded, new if outcomes[-1] == "new" else old)
        if finished:
            break
    assert outcomes[0] == "old" and outcomes[-1] == "new" and finished
    if form == "huggingface" and sizes == (10**9, 10**9):
        assert "error" not in outcomes


@pytest.mark.parametrize("form", FORMATS)
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, form):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(huggingface, "write", fail)
    monkeypatch.setattr(dcp, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        save(Transformer(preset("tiny", num_hidden_layers=1)), tmp_path / "m", format=form)
    assert not list(tmp_path.iterdir())


def test_formats_are_not_mixed(tmp_path):
    model = Transformer(preset("tiny", num_hidden_layers=1))
    for form in FORMATS:
        save(model, tmp_path / form, format=form)
        for other in set(FORMATS) - {form}:
            with pytest.raises(FileExistsError, match=f"belongs to another format than {other}"):
                save(model, tmp_path / form, format=other)
        assert_same(load(tmp_path / form), model)


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    model = Transformer(preset("tiny", num_hidden_layers=1))
    with pytest.raises(ValueError, match="format is 'gguf'"):
        save(model, tmp_path, format="gguf")
    with pytest.raises(ValueError, match="max_shard_bytes"):
        save(model, tmp_path, max_shard_bytes=0)
    with pytest.raises(ValueError, match="meta device"):
        save(model.to("meta"), tmp_path)


def test_shards_and_index_are_of_the_form_that_others_expect(folder):
    """Check what vLLM relies on: the files in the index, one file per tensor, the total size, the class name."""
    index = json.loads((folder / huggingface.INDEX).read_text())
    shards = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert sorted(shards) == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in shards.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all(size <= 10**6 or len(tensors) == 1 for size, tensors in zip(sizes, shards.values(), strict=True))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CwmForCausalLM"] and config["dtype"] == "float32"


def test_reads_a_configuration_from_before_transformers_5(folder):
    def older(config):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        config["eos_token_id"] = 7

    before = load(folder)
    edit_json(folder / "config.json", older)
    assert load(folder).config == replace(before.config, eos_token_id=(7,))


# ---- the tokens that begin and end a text


SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def save_with_tokenizer(folder, config_changes=(), special_tokens=SPECIAL, form="huggingface"):
    tokenizer = Tokenizer.train(["some text"], 260, special_tokens=special_tokens)
    model = random_model(preset("tiny", num_hidden_layers=1, vocab_size=tokenizer.vocab_size, **dict(config_changes)))
    save(model, folder, tokenizer, format=form)
    return tokenizer, model


@pytest.mark.parametrize("form", ["huggingface", "dcp"])
def test_save_with_a_tokenizer_writes_its_files_and_tokens(tmp_path, form):
    tokenizer, model = save_with_tokenizer(tmp_path / "m", form=form)
    special = tokenizer.special_tokens
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["eos_token_id"] == [special["<|end_of_text|>"], special["<|eot_id|>"]]
    assert config["bos_token_id"] == special["<|begin_of_text|>"]
    assert Tokenizer.load(tmp_path / "m").special_tokens == special
    assert (tmp_path / "m/tokenizer_config.json").exists()
    loaded = load(tmp_path / "m")
    assert_same(loaded, model)
    assert (loaded.config.eos_token_id, loaded.config.bos_token_id) == (tokenizer.stop_tokens, tokenizer.bos_token)


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_with_tokenizer(tmp_path / "cwm")
    (example,) = readme.examples("docs/guides/weights.md")
    exec(example, {})
    for folder in ("mine", "mine-meta", "mine-dcp"):
        assert_same(load(tmp_path / folder), load(tmp_path / "cwm", dtype=torch.bfloat16))
    assert (tmp_path / "mine/tokenizer.json").exists()


def test_save_with_a_tokenizer_keeps_what_the_configuration_names(tmp_path):
    save_with_tokenizer(tmp_path / "m", {"eos_token_id": (7,), "bos_token_id": 3})
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == ([7], 3)


def test_save_with_a_tokenizer_without_special_tokens(tmp_path):
    save_with_tokenizer(tmp_path / "m", special_tokens=[])
    assert not {"eos_token_id", "bos_token_id"} & json.loads((tmp_path / "m/config.json").read_text()).keys()


def test_save_refuses_a_tokenizer_that_is_too_large(tmp_path):
    tokenizer = Tokenizer.train(["some text"], 260)
    model = random_model(preset("tiny", num_hidden_layers=1, vocab_size=tokenizer.vocab_size - 1))
    with pytest.raises(ValueError, match=f"tokenizer has {tokenizer.vocab_size} tokens, the model only"):
        save(model, tmp_path / "m", tokenizer)
    assert not (tmp_path / "m").exists()


def test_a_vocabulary_of_another_size_has_none_of_the_tokens_of_llama_3():
    config = ModelConfig(vocab_size=1035)
    assert (config.eos_token_id, config.bos_token_id) == ((), None)
    released = ModelConfig()
    assert (released.eos_token_id, released.bos_token_id) == ((128001, 128008, 128009), 128000)


def test_stop_tokens_may_be_a_number_or_a_list():
    for ids, kept in ((5, (5,)), ([5, 6], (5, 6)), ((), ())):
        assert ModelConfig(vocab_size=1035, eos_token_id=ids).eos_token_id == kept
    with pytest.raises(ValueError, match="must be a token id, got True"):
        ModelConfig(vocab_size=1035, eos_token_id=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": (128001,)}, "eos_token_id 128001 is outside the vocabulary of 1035"),
        ({"eos_token_id": (3, 1035)}, "eos_token_id 1035 is outside"),
        ({"eos_token_id": (-1,)}, "eos_token_id -1 is outside"),
        ({"eos_token_id": ("</s>",)}, "eos_token_id must be a token id, got '</s>'"),
        ({"bos_token_id": 1035}, "bos_token_id 1035 is outside"),
        ({"bos_token_id": True}, "bos_token_id must be a token id, got True"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=1035, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": [4096]}, "eos_token_id 4096 is outside"),
        ({"bos_token_id": 5000}, "bos_token_id 5000 is outside"),
    ],
)
def test_load_refuses_tokens_outside_the_vocabulary(folder, values, message):
    edit_json(folder / "config.json", lambda config: config.update(values))
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        load(folder)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("format", ["huggingface", "meta", "dcp"])
def test_saved_files_have_the_mode_that_the_umask_gives(tmp_path, umask, format):
    model = Transformer(preset("tiny", vocab_size=20, num_hidden_layers=1))
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new folder, and one whose weights are replaced
            save(model, tmp_path / "model", format=format)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes
