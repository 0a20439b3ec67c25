"""Weights on disk, in Hugging Face's folder layout: config.json and safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .config import ModelConfig
from .transformer import Transformer


def save(model: Transformer, folder: str | Path) -> None:
    """Write `folder`/config.json and model.safetensors, which transformers' CwmForCausalLM can load."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_hf() | {"dtype": str(model.lm_head.weight.dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {_hf_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Read a folder in Hugging Face's layout, of one or several safetensors files; `dtype` None keeps the stored one.

    Raises FileNotFoundError for a missing file and ValueError for tensors missing, unknown, or of a wrong shape.
    """
    folder = Path(folder)
    with torch.device("meta"):
        model = Transformer(ModelConfig.from_hf(json.loads((folder / "config.json").read_text())))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors file in {folder}")
    missing = {_hf_name(name): parameter for name, parameter in model.named_parameters()}
    names = {_hf_name(name): name for name in model.state_dict()}
    for file in files:
        tensors = load_file(file, device=str(device))
        for name, tensor in tensors.items():
            if name not in missing:
                raise ValueError(f"{file}: unknown or repeated tensor {name}")
            if tensor.shape != missing[name].shape:
                raise ValueError(f"{file}: {name} is {list(tensor.shape)}, expected {list(missing[name].shape)}")
            del missing[name]
        state = {names[name]: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
        model.load_state_dict(state, strict=False, assign=True)
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, such as {next(iter(missing))}")
    return model


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
