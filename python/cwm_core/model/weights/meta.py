"""Folders of Meta: `params.json`, and a distributed checkpoint, as CWM was released, or consolidated files.

Meta's code rotates adjacent pairs (x[2i], x[2i + 1]) of each head, `Transformer` and Hugging Face rotate (x[i], x[i +
head_dim / 2]). The rows of the query and key projections are therefore in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._native import DamagedFileError
from ..config import ModelConfig
from ..families import BOS_TOKEN, MAX_LAYERS, STOP_TOKENS
from ..rotary import RopeParameters
from .layout import Layout
from .stored import Part, Stored, fill, pth_file, safetensors_file

# Meta's names of parameters by ours.
NAMES = {
    "embed_tokens.weight": "tok_embeddings.weight",
    "norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
}

# Parameters with the only value that `Transformer` implements.
FIXED = {"qkv_biases": False, "qk_norm": False, "q_lora_rank": 0, "kv_lora_rank": 0}


class Meta(Layout):
    """Layout with the names, row order and parameters of Meta's code."""

    config_file = "params.json"
    ignored = frozenset({"rope.freqs"})

    def config_from(self, values: dict[str, Any]) -> ModelConfig:
        """Return the configuration for the `TransformerArgs` of Meta's code, under `model` or at the top level.

        Missing keys have Meta's defaults. The file has no stop tokens: the configuration gets those of Llama 3 if the
        vocabulary contains them.
        """
        values = values.get("model", values)
        for name, value in FIXED.items():
            if values.get(name, value) != value:
                raise ValueError(f"{name} = {values[name]!r}, expected {value!r}")
        if not 1 <= values["n_layers"] <= MAX_LAYERS:
            raise ValueError(f"n_layers must be between 1 and {MAX_LAYERS}, got {values['n_layers']}")
        heads, max_length = values["n_heads"], values["max_seq_len"]
        is_llama3 = values["vocab_size"] > max(STOP_TOKENS)
        windows = _layer_windows(values["n_layers"], max_length, **(values.get("window_attn") or {}))
        return ModelConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["dim"],
            intermediate_size=_intermediate_size(values),
            num_hidden_layers=values["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=values.get("n_kv_heads") or heads,
            head_dim=values.get("head_dim") or values["dim"] // heads,
            sliding_window=next((window for window in reversed(windows) if window), max_length),
            layer_windows=windows,
            max_position_embeddings=max_length,
            rms_norm_eps=values.get("norm_eps", 1e-5),
            rope_parameters=_rope(values),
            eos_token_id=STOP_TOKENS if is_llama3 else (),
            bos_token_id=BOS_TOKEN if is_llama3 else None,
            tie_word_embeddings=values.get("weight_tying", False),
        )

    def config_values(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
        """Return parameters that Meta's code reads; raise ValueError for a model that they cannot express."""
        if config.model_type != "cwm":
            raise ValueError(f"Meta's parameters express models of model_type 'cwm', got {config.model_type!r}")
        return {
            "model": {
                "dim": config.hidden_size,
                "n_layers": config.num_hidden_layers,
                "n_heads": config.num_attention_heads,
                "n_kv_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "max_seq_len": config.max_position_embeddings,
                "vocab_size": config.vocab_size,
                # Half a unit more than the size, which Meta's code truncates: exact for any size.
                "ffn_dim_multiplier": (config.intermediate_size + 0.5) / int(2 * 4 * config.hidden_size / 3),
                "ffn_exp": 4,
                "multiple_of": 1,
                "norm_eps": config.rms_norm_eps,
                "rope_theta": config.rope_parameters.rope_theta,
                **_scaling_values(config.rope_parameters),
                "window_attn": _window_values(config),
                "weight_tying": config.tie_word_embeddings,
            }
        }

    def stored_name(self, name: str) -> str:
        """Return Meta's name of a parameter. Layers are named `layers.N`, as in this package."""
        if not name.startswith("layers."):
            return NAMES[name]
        _, index, rest = name.split(".", 2)
        return f"layers.{index}.{NAMES[rest]}"

    def in_order(self, name: str) -> bool:
        """Return whether the tensor's rows need no reordering: false for query and key projections."""
        return not name.endswith(("q_proj.weight", "k_proj.weight"))

    def from_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Reorder query and key rows from adjacent pairs to halves."""
        if self.in_order(name):
            return tensor
        return torch.unflatten(tensor, 0, (-1, config.head_dim // 2, 2)).transpose(1, 2).reshape(tensor.shape)

    def to_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Reorder query and key rows from halves to adjacent pairs."""
        if self.in_order(name):
            return tensor
        return torch.unflatten(tensor, 0, (-1, 2, config.head_dim // 2)).transpose(1, 2).reshape(tensor.shape)


def consolidated_files(folder: Path) -> list[Path]:
    """Return the consolidated weight files of a folder, in the order of their numbers."""
    return sorted(file for pattern in ("*.pth", "*.safetensors") for file in folder.glob(f"consolidated{pattern}"))


def tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Stored]:
    """Return the tensors of consolidated files by name.

    Each file holds whole tensors, or one slice of every tensor (model parallelism). Slices are along the dimension in
    which they are smaller than the whole tensor.

    Args:
        folder: Folder with the files.
        shapes: Shapes of the whole tensors by stored name.

    Raises:
        OSError: A file cannot be read.
        DamagedFileError: A file is damaged, or slices do not fit together.
        ValueError: The folder has both .pth and .safetensors files.
    """
    files = consolidated_files(folder)
    if len({file.suffix for file in files}) > 1:
        raise ValueError(f"{folder} has consolidated files of both .pth and .safetensors: keep one kind")
    found: dict[str, list[Stored]] = {}
    for file in files:
        for name, tensor in (pth_file(file) if file.suffix == ".pth" else safetensors_file(file)).items():
            found.setdefault(name, []).append(tensor)
    return {name: _join(name, slices, shapes.get(name), len(files)) for name, slices in found.items()}


def _join(name: str, slices: list[Stored], shape: tuple[int, ...] | None, files: int) -> Stored:
    """Return one tensor from its slices in several files; `shape` is None for a tensor that the model lacks."""
    first = slices[0]
    if len(slices) == 1 or shape is None or shape == first.shape:  # norms are whole in each file
        return first
    if len(slices) != files:
        raise DamagedFileError(f"{first.parts[0].file} and {len(slices) - 1} of {files - 1} others hold {name}")
    parts, start = [], 0
    axis = next((i for i, (a, b) in enumerate(zip(first.shape, shape, strict=False)) if a != b), 0)
    for piece in slices:
        (part,) = piece.parts
        offsets = tuple(start if i == axis else 0 for i in range(len(piece.shape)))
        parts.append(Part(offsets, part.shape, part.file, part.read))
        start += piece.shape[axis] if piece.shape else 0
    if not fill(shape, [(part.offsets, part.shape) for part in parts]):
        sizes = ", ".join(str(list(piece.shape)) for piece in slices)
        raise DamagedFileError(f"{first.parts[0].file} and others: slices {sizes} of {name} do not make {list(shape)}")
    return Stored(shape, first.dtype, tuple(parts))


def _intermediate_size(values: dict[str, Any]) -> int:
    width = int(2 * (values.get("ffn_exp", 4) * values["dim"]) / 3)
    if values.get("ffn_dim_multiplier") is not None:
        width = int(values["ffn_dim_multiplier"] * width)
    multiple: int = values.get("multiple_of", 256)
    return -(-width // multiple) * multiple


def _layer_windows(
    layers: int,
    max_length: int,
    *,
    window_pattern: int = 6,
    global_window: int | None = None,
    local_window: int | None = None,
    global_last_layer: bool = True,
    **unknown: Any,
) -> tuple[int | None, ...]:
    """Return the window of each layer; the defaults are those of Meta's `window_attn`."""
    if unknown:
        raise ValueError(f"unknown window_attn.{next(iter(unknown))}")
    if global_window is not None and global_window >= max_length:
        global_window = None
    is_global = [i % window_pattern == 0 or (global_last_layer and i == layers - 1) for i in range(layers)]
    return tuple(global_window if it else local_window for it in is_global)


def _window_values(config: ModelConfig) -> dict[str, Any] | None:
    windows = config.layer_windows
    if not any(windows):
        return None
    local = next((window for window in windows if window != windows[0]), None)
    values: dict[str, Any] = {"global_window": windows[0], "local_window": local}
    for pattern in range(1, config.num_hidden_layers + 1):
        for last in (False, True):
            trial: dict[str, Any] = {"window_pattern": pattern, **values, "global_last_layer": last}
            if _layer_windows(config.num_hidden_layers, config.max_position_embeddings, **trial) == windows:
                return trial
    raise ValueError(f"Meta's parameters cannot express these layer_windows: {windows}")


def _rope(values: dict[str, Any]) -> RopeParameters:
    kind, theta = values.get("pos_embed_impl", "rope"), values.get("rope_theta", 10_000.0)
    if kind == "rope":
        return RopeParameters(rope_theta=theta, factor=1.0)
    scaled = values.get("scaled_rope") or {}
    if kind != "scaled_rope" or scaled.get("use_attn_scale"):
        raise ValueError(f"pos_embed_impl {kind!r} with {scaled}: expected rope or scaled_rope without use_attn_scale")
    return RopeParameters(
        rope_theta=theta,
        factor=scaled.get("scale_factor", 8),
        low_freq_factor=scaled.get("low_freq_factor", 1),
        high_freq_factor=scaled.get("high_freq_factor", 4),
        original_max_position_embeddings=scaled.get("old_context_len", 8192),
    )


def _scaling_values(rope: RopeParameters) -> dict[str, Any]:
    if rope.factor == 1:
        return {"pos_embed_impl": "rope"}
    if rope.rope_type != "llama3":
        raise ValueError(f"Meta's parameters express scaling of rope_type 'llama3', got {rope.rope_type!r}")
    scaled = {
        "scale_factor": rope.factor,
        "old_context_len": rope.original_max_position_embeddings,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
    }
    # Integers in Meta's code.
    whole = {name: int(value) if value == int(value) else value for name, value in scaled.items()}
    return {"pos_embed_impl": "scaled_rope", "scaled_rope": whole | {"use_attn_scale": False}}
