"""Weights on disk that are damaged, hostile, or not what they say: errors that name file and tensor, never code."""

import os
import pickle
import re
import sys

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from cwm_core.model import Transformer, load, preset, save
from cwm_core.model.weights import huggingface
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import assert_same, consolidated, edit_json, random_model
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(tmp_path):
    save(random_model(preset("tiny", num_hidden_layers=2)), tmp_path / "m", max_shard_bytes=10**6)
    return tmp_path / "m"


def test_a_missing_tensor_is_named(folder):
    edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=3, layer_types=["full_attention"] * 3))
    with pytest.raises(ValueError, match=r"lacks 9 tensors, such as model\.layers\.2\S* \[128\]"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder):
    edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=1, layer_types=["full_attention"]))
    with pytest.raises(ValueError, match=r"\.safetensors: model\.layers\.1\.\S+ \[\d+.* is unexpected"):
        load(folder)


def test_a_wrong_shape_is_named(folder):
    edit_json(folder / "config.json", lambda c: c.update(vocab_size=4095))
    with pytest.raises(ValueError, match=r"of-\d+\.safetensors: \S+ is \[4096, 128\], expected \[4095, 128\]"):
        load(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..", "", "a/b", "..\\other.safetensors"])
def test_an_index_cannot_name_files_elsewhere(folder, name):
    edit_json(folder / huggingface.INDEX, lambda i: i["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(ValueError, match="not a file directly in its folder"):
        load(folder)


def test_an_index_must_agree_with_its_files(folder):
    def move(index):
        files = sorted(set(index["weight_map"].values()))
        index["weight_map"]["model.norm.weight"] = files[0]

    edit_json(folder / huggingface.INDEX, move)
    with pytest.raises(ValueError, match=r"model\.norm\.weight, which model\.safetensors\.index\.json has"):
        load(folder)
    edit_json(folder / huggingface.INDEX, lambda i: i.pop("weight_map"))
    with pytest.raises(ValueError, match="has no weight_map"):
        load(folder)


def test_a_missing_shard_is_named(folder):
    file = next(folder.glob("model-00002*"))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        load(folder)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_safetensors_file_is_an_error_that_names_it(damaged, data):
    """Cut anywhere, or with any byte of its header changed: an error of ours, or the tensors as they were."""
    file, content = damaged / "model.safetensors", (damaged / "whole").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        broken = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, header - 1))
        broken = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]
    file.write_bytes(broken)
    try:
        load(damaged)
    except ValueError as error:
        assert str(damaged) in str(error)
    else:
        assert len(broken) == len(content)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "m"
    save(random_model(preset("tiny", num_hidden_layers=1, hidden_size=8, intermediate_size=4, vocab_size=9)), folder)
    (folder / "whole").write_bytes((folder / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "expected a JSON object, got a list"),
        ("{}", "model_type"),
        ('{"model_type": "cwm"}', "lacks"),
    ],
)
def test_a_damaged_configuration_is_an_error_that_names_it(folder, text, message):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        load(folder)


@pytest.mark.parametrize("change", [{"hidden_size": "128"}, {"hidden_size": 2**62}, {"num_hidden_layers": None}])
def test_sizes_that_are_none_are_refused(folder, change):
    edit_json(folder / "config.json", lambda c: c.update(change))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(folder)


def test_quantized_weights_are_refused(folder):
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match="is of type I8"):
        load(folder)


def test_a_folder_of_two_layouts_is_refused(folder):
    (folder / "params.json").write_text("{}")
    with pytest.raises(ValueError, match=r"both config\.json and params\.json"):
        load(folder)
    (folder / "params.json").unlink()
    (folder / ".metadata").touch()
    with pytest.raises(ValueError, match="other weights"):
        load(folder)
    (folder / ".metadata").unlink()
    (folder / "model.safetensors").touch()
    with pytest.raises(ValueError, match="delete the outdated one"):
        load(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model"):
        load(tmp_path)


def test_a_tied_model_takes_an_output_layer_only_if_it_is_the_embedding(tmp_path):
    model = random_model(preset("tiny", num_hidden_layers=1, tie_word_embeddings=True))
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert_same(load(tmp_path), model)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match="the output layer differs from the embedding"):
        load(tmp_path)


# No file runs code


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_do_not_run_code(tmp_path):
    trap = str(tmp_path / "trap")
    pickle.loads(pickle.dumps(Malicious(trap)))  # it works where it is let
    os.rmdir(trap)
    folder = consolidated(tmp_path, random_model(preset("tiny", num_hidden_layers=1)), 1, "pth")
    torch.save({"norm.weight": Malicious(trap)}, folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth is not a readable file of weights"):
        load(folder)
    for form in ("dcp", "meta"):
        save(random_model(preset("tiny", num_hidden_layers=1)), tmp_path / f"{form}-malicious", format=form)
        (tmp_path / f"{form}-malicious" / ".metadata").write_bytes(pickle.dumps(Malicious(trap)))
        with pytest.raises(ValueError, match=r"\.metadata is not readable metadata of a checkpoint"):
            load(tmp_path / f"{form}-malicious")
    assert not os.path.exists(trap)


def test_metadata_may_name_what_is_not_installed(tmp_path):
    """As that of checkpoints written through other libraries does; it stays a name."""
    model = random_model(preset("tiny", num_hidden_layers=1))
    save(model, tmp_path / "m", format="dcp")
    file, trap = tmp_path / "m" / ".metadata", str(tmp_path / "trap")
    metadata = torch_dcp.FileSystemReader(tmp_path / "m").read_metadata()
    metadata.storage_meta.checkpoint_id = Malicious(trap)
    metadata.planner_data = Gone.looked_up
    sys.modules["gone_later"] = module = type(sys)("gone_later")
    module.Gone, Gone.__module__ = Gone, "gone_later"
    try:
        file.write_bytes(pickle.dumps(metadata))
    finally:
        del sys.modules["gone_later"]
    assert b"gone_later" in file.read_bytes()
    assert_same(load(tmp_path / "m"), model)
    assert not os.path.exists(trap)


class Gone:
    @classmethod
    def looked_up(cls): ...


def test_tensors_of_a_checkpoint_do_not_run_code(tmp_path):
    trap = str(tmp_path / "trap")
    save(random_model(preset("tiny", num_hidden_layers=1)), tmp_path / "m", format="dcp")
    (file,) = (tmp_path / "m").glob("*.distcp")
    length = file.stat().st_size
    torch.save(Malicious(trap), file)
    with file.open("r+b") as opened:
        opened.truncate(length)
    with pytest.raises(ValueError, match=r"the tensor at byte \d+ is not readable"):
        load(tmp_path / "m")
    assert not os.path.exists(trap)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b"])
def test_a_checkpoint_cannot_name_files_elsewhere(tmp_path, name):
    save(random_model(preset("tiny", num_hidden_layers=1)), tmp_path / "m", format="dcp")
    metadata = torch_dcp.FileSystemReader(tmp_path / "m").read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = name
    (tmp_path / "m" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="not a file directly in the folder"):
        load(tmp_path / "m")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 255), st.none() | st.integers(0, 2**20))
def test_damaged_metadata_is_an_error_that_names_the_folder(checkpoint, place, value, end):
    folder, content = checkpoint
    place %= len(content)
    broken = content[:place] + bytes([value]) + content[place + 1 :]
    if end is not None:
        broken = broken[: end % len(content)]
    (folder / ".metadata").write_bytes(broken)
    try:
        model = load(folder)
    except (ValueError, OSError) as error:
        assert str(folder) in str(error)
    else:
        assert isinstance(model, Transformer)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "m"
    save(
        random_model(preset("tiny", num_hidden_layers=1, hidden_size=8, intermediate_size=4, vocab_size=9)),
        folder,
        format="dcp",
    )
    return folder, (folder / ".metadata").read_bytes()


def test_a_cut_checkpoint_is_an_error_that_names_its_file(tmp_path):
    save(random_model(preset("tiny", num_hidden_layers=1)), tmp_path / "m", format="dcp")
    (file,) = (tmp_path / "m").glob("*.distcp")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        load(tmp_path / "m")


# Saving
