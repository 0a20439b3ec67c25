"""Families of models, and the `config.json` of each in the layout of Hugging Face's transformers.

All families are one `Transformer`. A family is the set of features that its class in transformers computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .rotary import RopeParameters

if TYPE_CHECKING:
    from .config import ModelConfig

# The vocabulary of Llama 3 and of the released checkpoints, with the token ids that their `config.json` lists.
LLAMA3_VOCABULARY = 128_256
BOS_TOKEN = 128_000
STOP_TOKENS = (128001, 128008, 128009)

# More layers than any model has: a file of a few bytes must not make us build millions.
MAX_LAYERS = 4096

_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Family:
    """Features of a `model_type`."""

    architecture: str
    """Name of the class in transformers."""
    rope_theta: float
    """Base of the wavelengths if the file has none."""
    windows: bool = True
    """Whether layers may have a window."""
    attention_bias: bool = False
    """Whether the projections of attention may have biases."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normalized."""


FAMILIES = {
    "cwm": Family("CwmForCausalLM", 1_000_000.0),
    "llama": Family("LlamaForCausalLM", 10_000.0, windows=False, attention_bias=True),
    "qwen2": Family("Qwen2ForCausalLM", 10_000.0, qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", 10_000.0, attention_bias=True, qk_norm=True),
}
"""Families by `model_type`."""

# Keys with the only value that `Transformer` computes.
_FIXED = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def check_features(config: ModelConfig) -> None:
    """Raise ValueError if the family of a configuration does not have its features."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {kind!r}")
    family = FAMILIES[kind]
    for name in ("qkv_bias", "qk_norm"):
        if getattr(config, name) != getattr(family, name):
            needed = str(getattr(family, name)).lower()
            raise ValueError(f"model_type {kind!r} needs {name} = {needed}")
    if config.attention_bias and not family.attention_bias:
        raise ValueError(f"model_type {kind!r} has no attention_bias: use one of {_with('attention_bias')}")
    if any(config.layer_windows) and not family.windows:
        raise ValueError(
            f"model_type {kind!r} has no windows: set full_attention_interval = 1, or use one of {_with('windows')}"
        )


def _with(feature: str) -> str:
    return ", ".join(name for name, family in FAMILIES.items() if getattr(family, feature))


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the `ModelConfig` that the dictionary of a `config.json` describes.

    Missing keys that have one value in all published files get the default of transformers.

    Raises:
        KeyError: A key is missing.
        ValueError: The file describes a model that this package does not compute.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"config.json has model_type {kind!r}, expected one of {', '.join(map(repr, FAMILIES))}")
    family = FAMILIES[kind]
    for name, value in _FIXED.items():
        for values in (config, config.get("rope_parameters") or {}):
            if values.get(name, value) != value:
                raise ValueError(f"config.json has {name} = {values[name]!r}, expected {value!r}")
    stop_tokens, bos_token = _tokens(config)
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads")
    windows = _windows(config, kind)
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    window = next((window for window in windows if window), None) or config.get("sliding_window")
    return {
        **{name: config[name] for name in sizes},
        **({} if window is None else {"sliding_window": window}),
        "model_type": kind,
        "num_key_value_heads": heads if groups is None else groups,
        "head_dim": config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads),
        "layer_windows": windows,
        "rope_parameters": RopeParameters.from_hf(config, family.rope_theta),
        "attention_bias": _flag(config, "attention_bias") if family.attention_bias else False,
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
        "eos_token_id": stop_tokens,
        "bos_token_id": bos_token,
        "tie_word_embeddings": _flag(config, "tie_word_embeddings"),
        "vocabulary_fingerprint": config.get("vocabulary_fingerprint"),
    }


def _flag(config: dict[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"config.json has {name} = {value!r}, expected true or false")
    return value


def _tokens(config: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """Return the tokens that end a generation, and the first token."""
    stop_tokens, bos_token = config.get("eos_token_id"), config.get("bos_token_id")
    stop_tokens = (stop_tokens,) if isinstance(stop_tokens, int) else tuple(stop_tokens or ())
    # transformers writes the ids of Llama 3 into every CWM without ids
    if config["model_type"] == "cwm" and config["vocab_size"] <= BOS_TOKEN:
        stop_tokens = () if stop_tokens == STOP_TOKENS else stop_tokens
        bos_token = None if bos_token == BOS_TOKEN else bos_token
    return stop_tokens, bos_token


def _windows(config: dict[str, Any], kind: str) -> tuple[int | None, ...]:
    """Return the window of each layer in tokens, None for a global layer."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"num_hidden_layers must be between 1 and {MAX_LAYERS}, got {layers}")
    if kind in ("qwen2", "qwen3"):
        window = window if _flag(config, "use_sliding_window") else None
        first = config.get("max_window_layers", 28) if window else layers
        default = [_KINDS[i >= first] for i in range(layers)]
    else:
        default = ["full_attention"] * layers
    kinds = config["layer_types"] if kind == "cwm" else config.get("layer_types") or default
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(f"config.json has layer_types {unknown[0]!r}, expected {' or '.join(map(repr, _KINDS))}")
    if "sliding_attention" in kinds and window is None:
        raise ValueError("config.json has layers of sliding_attention, but no sliding_window that it uses")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return the dictionary to write as `config.json`, which `from_hf` reads back unchanged.

    Raises:
        ValueError: Layers have windows of several sizes.
    """
    family = FAMILIES[config.model_type]
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim",
    )  # fmt: skip
    # Without a value, CWM's keys are left out: transformers rejects null, or replaces it with the ids of Llama 3.
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_id) or None}
    if config.model_type == "cwm":
        tokens = {name: value for name, value in tokens.items() if value is not None}
    return {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in sizes},
        "hidden_act": "silu",
        **({"attention_bias": config.attention_bias} if family.attention_bias else {}),
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        **(_window_keys(config) if family.windows else {}),
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": config.rope_parameters.to_hf(),
        **tokens,
        # Not a key of Hugging Face: other readers ignore it.
        **({"vocabulary_fingerprint": config.vocabulary_fingerprint} if config.vocabulary_fingerprint else {}),
    }


def _window_keys(config: ModelConfig) -> dict[str, Any]:
    sizes = set(config.layer_windows) - {None}
    if len(sizes) > 1:
        raise ValueError(f"config.json has one sliding_window for all layers, the model has {config.layer_windows}")
    keys = {
        "sliding_window": next(iter(sizes), config.sliding_window),
        "layer_types": [_KINDS[window is not None] for window in config.layer_windows],
    }
    if config.model_type == "cwm":
        return keys
    # For readers that know no layer_types: the number of global layers before the first with a window.
    first = next((i for i, window in enumerate(config.layer_windows) if window), config.num_hidden_layers)
    return keys | {"use_sliding_window": bool(sizes), "max_window_layers": first}
