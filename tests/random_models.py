"""Random models in which any wrong weight changes the logits, and files of them."""

import json
import re
import warnings

import torch
import torch.distributed.checkpoint as torch_dcp
from cwm_core.model import Transformer, save
from safetensors.torch import save_file


def randomize(model):
    """Weights large enough that a wrong mask, norm, rotation or order of rows shows in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
                if name.endswith(".bias"):
                    parameter.sub_(1.0)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def random_model(config, seed=0, dtype=torch.float32):
    """Return a model with this configuration. Equal seeds give equal weights."""
    torch.manual_seed(seed)
    return randomize(Transformer(config)).to(dtype)


def assert_same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y), name


def read_dcp(folder):
    """All under `model`, by PyTorch's own loader; the folder is our own."""
    metadata = torch_dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    with warnings.catch_warnings(action="ignore"):
        torch_dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def consolidated(tmp_path, model, files, suffix):
    """A folder of Meta's with consolidated files, the matrices cut as model parallelism cuts them."""
    save(model, tmp_path / "dcp", format="meta")
    state = read_dcp(tmp_path / "dcp")
    folder = tmp_path / "consolidated"
    folder.mkdir()
    (tmp_path / "dcp" / "params.json").rename(folder / "params.json")
    for rank in range(files):

        def cut(name, tensor, rank=rank):
            if tensor.dim() == 1:
                return tensor
            return tensor.chunk(files, 1 if re.search(r"\.(wo|w2)\.", name) else 0)[rank].contiguous()

        shard = {name: cut(name, tensor) for name, tensor in state.items()}
        if suffix == "pth":
            torch.save(shard | {"rope.freqs": torch.ones(4)}, folder / f"consolidated.{rank:02d}.pth")
        else:
            save_file(shard, folder / f"consolidated.{rank:02d}.safetensors")
    return folder


def edit_json(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
