"""The shape of a model, and its translation to and from Hugging Face's `config.json` of `model_type: cwm`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

# The vocabulary of Llama-3 and of the released checkpoints, with the ids that their `config.json` lists.
LLAMA3_VOCABULARY = 128_256
BOS_TOKEN = 128_000
STOP_TOKENS = (128001, 128008, 128009)


_SIZES = ("vocab_size", "width", "ffn_width", "layers", "heads", "kv_heads", "head_size", "window")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions with Llama-3 scaling (arXiv 2407.21783, the released configuration's `rope_parameters`).

    Wavelengths shorter than `original_length / high_freq_factor` tokens are kept, those longer than
    `original_length / low_freq_factor` are stretched by `factor`, and those between are interpolated.
    """

    theta: float = 1_000_000.0
    factor: float = 16.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no positions follow from."""
        for name in ("theta", "factor", "low_freq_factor", "high_freq_factor", "original_length"):
            _check_positive(f"rope.{name}", getattr(self, name))
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rope.low_freq_factor ({self.low_freq_factor}) must be below rope.high_freq_factor "
                f"({self.high_freq_factor})"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a decoder-only transformer whose layers attend globally or within a window.

    `layer_windows` is the window of each layer, in tokens with the token itself, None where the layer is global. Left
    empty, it is made from `global_every` and `window`: with 4, layers 0, 4, 8, ... are global.

    `stop_tokens` and `bos_token` belong to a vocabulary: take them from the tokenizer's properties of the same names.
    Left out, they are Llama-3's for a vocabulary of its size, and none for any other.

    Raises ValueError when sizes contradict each other, and for a stop token or `bos_token` outside the vocabulary.
    """

    vocab_size: int = LLAMA3_VOCABULARY
    width: int = 6144
    ffn_width: int = 21_504
    layers: int = 64
    heads: int = 48
    kv_heads: int = 8
    head_size: int = 128
    window: int = 8192
    global_every: int = field(default=4, compare=False)
    layer_windows: tuple[int | None, ...] = ()
    max_length: int = 131_072
    norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    stop_tokens: tuple[int, ...] = None  # type: ignore[assignment]  # `__post_init__` fills it in
    bos_token: int | None = None
    tied: bool = False
    """Whether the output layer is the embedding."""
    vocabulary: str | None = field(default=None, compare=False)
    """`Tokenizer.fingerprint` of the vocabulary that the model is trained on; None if it is not known."""

    def __post_init__(self) -> None:
        """Fill in what was left out, and check the values."""
        for name in (*_SIZES, "global_every", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _check_positive("norm_eps", self.norm_eps)
        if self.stop_tokens is None:
            is_llama3 = self.vocab_size == LLAMA3_VOCABULARY
            object.__setattr__(self, "stop_tokens", STOP_TOKENS if is_llama3 else ())
            if self.bos_token is None and is_llama3:
                object.__setattr__(self, "bos_token", BOS_TOKEN)
        if not self.layer_windows:
            windows = tuple(None if i % self.global_every == 0 else self.window for i in range(self.layers))
            object.__setattr__(self, "layer_windows", windows)
        self._check_sizes()
        self._check_tokens()

    def _check_sizes(self) -> None:
        if len(self.layer_windows) != self.layers:
            raise ValueError(f"layer_windows has {len(self.layer_windows)} entries for {self.layers} layers")
        for window in self.layer_windows:
            if window is not None and window < 1:
                raise ValueError(f"a window of layer_windows must be at least 1 or None, got {window}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even for rotary positions, got {self.head_size}")

    def _check_tokens(self) -> None:
        for token in (*self.stop_tokens, *(() if self.bos_token is None else (self.bos_token,))):
            name = "a stop token" if token in self.stop_tokens else "bos_token"
            if type(token) is not int:
                raise ValueError(f"{name} must be a token id, got {token!r}")
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name} {token} is outside the vocabulary of {self.vocab_size}: use those of the model's tokenizer"
                )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError if the tokenizer has ids that the model has no embedding for."""
        if tokenizer.vocab_size > self.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {self.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> ModelConfig:
        """Read the dictionary in a `config.json` of Hugging Face; raises ValueError where this model computes less."""
        if config.get("model_type") != "cwm":
            raise ValueError(f"config.json has model_type {config.get('model_type')!r}, expected 'cwm'")
        # Before version 5, transformers wrote the scaling by itself.
        rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **config["rope_scaling"]}
        stop_tokens = config.get("eos_token_id") or ()
        stop_tokens = (stop_tokens,) if isinstance(stop_tokens, int) else tuple(stop_tokens)
        bos_token = config.get("bos_token_id")
        if config["vocab_size"] <= BOS_TOKEN:  # transformers writes Llama-3's into every model that names none
            stop_tokens = () if stop_tokens == STOP_TOKENS else stop_tokens
            bos_token = None if bos_token == BOS_TOKEN else bos_token
        expected = {"hidden_act": "silu", "mlp_bias": False, "attention_dropout": 0.0}
        for name, value in expected.items():
            if config.get(name, value) != value:
                raise ValueError(f"config.json has {name} = {config[name]!r}, this model computes only {value!r}")
        if rope.get("rope_type") != "llama3":
            raise ValueError(f"config.json has rope_type {rope.get('rope_type')!r}, this model computes only 'llama3'")
        kinds = {"full_attention": None, "sliding_attention": config["sliding_window"]}
        return cls(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            ffn_width=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_size=config["head_dim"],
            window=config["sliding_window"],
            layer_windows=tuple(kinds[kind] for kind in config["layer_types"]),
            max_length=config["max_position_embeddings"],
            norm_eps=config["rms_norm_eps"],
            rope=RopeConfig(
                theta=rope["rope_theta"],
                factor=rope["factor"],
                low_freq_factor=rope["low_freq_factor"],
                high_freq_factor=rope["high_freq_factor"],
                original_length=rope["original_max_position_embeddings"],
            ),
            stop_tokens=stop_tokens,
            bos_token=bos_token,
            tied=config.get("tie_word_embeddings", False),
            vocabulary=config.get("vocabulary_fingerprint"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary to write as Hugging Face's `config.json`; `from_hf` reads it back unchanged."""
        return {
            "architectures": ["CwmForCausalLM"],
            "model_type": "cwm",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffn_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.tied,
            "sliding_window": self.window,
            "layer_types": ["full_attention" if w is None else "sliding_attention" for w in self.layer_windows],
            "max_position_embeddings": self.max_length,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": self.rope.theta,
                "factor": self.rope.factor,
                "low_freq_factor": self.rope.low_freq_factor,
                "high_freq_factor": self.rope.high_freq_factor,
                "original_max_position_embeddings": self.rope.original_length,
            },
            # Left out where there is none: transformers refuses a null, or takes it for the ids of Llama-3.
            **({} if self.bos_token is None else {"bos_token_id": self.bos_token}),
            **({"eos_token_id": list(self.stop_tokens)} if self.stop_tokens else {}),
            # A key of ours, which other readers ignore.
            **({"vocabulary_fingerprint": self.vocabulary} if self.vocabulary else {}),
        }


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


PRESETS: dict[str, dict[str, Any]] = {
    "cwm-32b": {},
    # 1.4 billion parameters: with AdamW 23 GB, so that one GPU of 80 GB trains it.
    "cwm-1b": {"width": 2048, "ffn_width": 7168, "layers": 16, "heads": 16, "kv_heads": 4},
    "tiny": {
        "vocab_size": 4096, "width": 128, "ffn_width": 384, "layers": 4, "heads": 4, "kv_heads": 2, "head_size": 32,
        "window": 512, "max_length": 16_384, "stop_tokens": (),
    },
    "small": {
        "vocab_size": 4096, "width": 256, "ffn_width": 768, "layers": 8, "heads": 8, "kv_heads": 4, "head_size": 32,
        "window": 512, "max_length": 16_384, "stop_tokens": (),
    },
}  # fmt: skip


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration ("cwm-32b", "cwm-1b", "small", "tiny") with `changes` applied; ValueError for another."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return ModelConfig(**(PRESETS[name] | changes))
