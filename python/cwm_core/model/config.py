"""Shape of a model: sizes, windows, rotary positions, and the features of its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..support.arguments import check_positive, convert_fields
from . import families
from .families import BOS_TOKEN, LLAMA3_VOCABULARY, STOP_TOKENS
from .rotary import RopeParameters

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "sliding_window", "full_attention_interval", "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer whose layers attend globally or within a sliding window.

    Fields have the names of Hugging Face's `config.json`. The defaults are those of the released 32 B model.

    Raises:
        ValueError: Sizes contradict each other, a token id is outside the vocabulary, or the family lacks a feature.
    """

    vocab_size: int = LLAMA3_VOCABULARY
    """Rows of the embedding and of the output layer."""
    hidden_size: int = 6144
    """Width of the residual stream."""
    intermediate_size: int = 21_504
    """Width of the feed-forward blocks."""
    num_hidden_layers: int = 64
    """Number of layers."""
    num_attention_heads: int = 48
    """Number of query heads per layer."""
    num_key_value_heads: int = 8
    """Number of key and value heads per layer; must divide `num_attention_heads`."""
    head_dim: int = 128
    """Size of a head; must be even."""
    sliding_window: int = field(default=8192, compare=False)
    """Window in tokens of layers that do not attend globally, the token itself included. Ignored if `layer_windows` is
    set."""
    full_attention_interval: int = field(default=4, compare=False)
    """Distance between global layers: with 4, layers 0, 4, 8, ... are global. Ignored if `layer_windows` is set."""
    layer_windows: tuple[int | None, ...] = ()
    """Window of each layer in tokens, None for a global layer (`layer_types` of Hugging Face); empty: derived from
    `full_attention_interval` and `sliding_window`."""
    max_position_embeddings: int = 131_072
    """Longest context in tokens."""
    rms_norm_eps: float = 1e-5
    """Number added to the variance in RMSNorm."""
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    """Rotary positions."""
    eos_token_id: tuple[int, ...] = None  # type: ignore[assignment]  # `__post_init__` fills it in
    """Ids of all tokens that end a generation: take `Tokenizer.stop_tokens`. Defaults to those of Llama 3 for a
    vocabulary of its size, else to none."""
    bos_token_id: int | None = None
    """Id of the first token of a sequence: take `Tokenizer.bos_token`. Defaults as `eos_token_id`."""
    tie_word_embeddings: bool = False
    """Whether the output layer shares the weights of the embedding."""
    model_type: str = "cwm"
    """Family, which decides the form of `config.json`: "cwm", "llama", "qwen2" or "qwen3"."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases, as models of "llama" and "qwen3" may."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases, as in "qwen2"."""
    qk_norm: bool = False
    """Whether each head of queries and keys is normalized before the rotation, as in "qwen3"."""
    vocabulary_fingerprint: str | None = field(default=None, compare=False)
    """`Tokenizer.fingerprint` of the vocabulary that the model is trained on; None if unknown."""

    def __post_init__(self) -> None:
        """Fill in defaults and check the values."""
        convert_fields(self)
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_positive("rms_norm_eps", self.rms_norm_eps)
        if self.eos_token_id is None:
            is_llama3 = self.vocab_size == LLAMA3_VOCABULARY
            object.__setattr__(self, "eos_token_id", STOP_TOKENS if is_llama3 else ())
            if self.bos_token_id is None and is_llama3:
                object.__setattr__(self, "bos_token_id", BOS_TOKEN)
        else:
            tokens = (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)
            object.__setattr__(self, "eos_token_id", tokens)
        if not self.layer_windows:
            windows = tuple(
                None if i % self.full_attention_interval == 0 else self.sliding_window
                for i in range(self.num_hidden_layers)
            )
            object.__setattr__(self, "layer_windows", windows)
        self._check_sizes()
        self._check_tokens()
        families.check_features(self)

    def _check_sizes(self) -> None:
        if len(self.layer_windows) != self.num_hidden_layers:
            raise ValueError(
                f"layer_windows has {len(self.layer_windows)} entries for {self.num_hidden_layers} layers: "
                "expected one entry for each layer"
            )
        for window in self.layer_windows:
            if window is not None and window < 1:
                raise ValueError(f"a window of layer_windows must be at least 1 or None, got {window}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    def _check_tokens(self) -> None:
        for token in (*self.eos_token_id, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            name = "eos_token_id" if token in self.eos_token_id else "bos_token_id"
            if type(token) is not int:
                raise ValueError(f"{name} must be a token id, got {token!r}")
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name} {token} is outside the vocabulary of {self.vocab_size}: use the ids of the model's "
                    "tokenizer"
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
        """Return the configuration that the dictionary of a `config.json` describes.

        Raises:
            KeyError: A key is missing.
            ValueError: The file describes a model that this package does not compute.
        """
        return cls(**families.from_hf(config))

    def to_hf(self) -> dict[str, Any]:
        """Return the dictionary to write as Hugging Face's `config.json`, which `from_hf` reads back unchanged.

        Raises:
            ValueError: Layers have windows of several sizes.
        """
        return families.to_hf(self)


PRESETS: dict[str, dict[str, Any]] = {
    "cwm-32b": {},
    # 1.4 billion parameters: with AdamW 23 GB, so one GPU of 80 GB trains it.
    "cwm-1b": {
        "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "tiny": {
        "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 512,
        "max_position_embeddings": 16_384, "eos_token_id": (),
    },
    "small": {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "sliding_window": 512,
        "max_position_embeddings": 16_384, "eos_token_id": (),
    },
}  # fmt: skip
"""Fields that each preset changes."""


def preset(name: str, **changes: Any) -> ModelConfig:
    """Return the configuration "cwm-32b", "cwm-1b", "small" or "tiny" with `changes` to its fields.

    Raises:
        ValueError: `name` is unknown, or the changed sizes contradict each other.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    return ModelConfig(**(PRESETS[name] | changes))
