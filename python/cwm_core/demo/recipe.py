"""Sizes and settings of the demo: four to nine minutes of training on two cores, or a shorter run of the same code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..tokenizer.special_tokens import PAD, TRACE_TOKENS

# Splits the parts of a trace where the model copies: names and values apart from the JSON around them, the beginning of
# a statement as one piece, capital letters alone.
PATTERN = (
    r"""(?:\{")?[a-z_]+": "(?:\.\.(?:", "|"\})?)?"""
    r"""|['\]})]*(?:", "|"\})"""
    r"""|(?:\):)?  # << START_OF_TRACE\n"""
    r"""|def [a-z]+\(| {4,}(?:for [a-z]+ in |[a-z_]+(?: [-+*/%]?= |\.[a-z]+\(| )?)"""
    r"""| (?:[-+*/%<>=!]+|in|not in|and|or) """
    r"""|[A-Z]?[a-z_]+\(?|[A-Z]|[0-9]{1,2}|[^\sA-Za-z0-9]*\n|[^\sA-Za-z0-9]+ ?|\s+"""
)

SPECIAL_TOKENS = (*TRACE_TOKENS, PAD)


@dataclass(frozen=True)
class Recipe:
    """Settings of a run of the demo. On one kind of machine they determine the result.

    The number of steps does not depend on the speed of the machine. Two processes train on 7,500 to 15,000 tokens a
    second, so training takes four to nine minutes.
    """

    programs: int = 12_000
    """Generated programs to train on."""
    algorithm_calls: int = 30
    """Calls of each classic algorithm to train on."""
    held_out: int = 200
    """Generated programs to predict, which the model is not trained on."""
    vocabulary: int = 1024
    """Size of the vocabulary."""
    seq_len: int = 512
    """Tokens in a row."""
    batch_size: int = 6
    """Rows in a batch. The processes that train share them equally."""
    steps: int = 1250
    """Training steps."""
    seed: int = 0
    """Seed of all random choices."""
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "preset": "tiny",
            "sliding_window": 64,
            "full_attention_interval": 2,
            "max_position_embeddings": 2048,
        }
    )
    """The table `[model]` of a run of training."""
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "optimizer": "muon",
            "muon_learning_rate": 0.01,
            "learning_rate": 0.004,
            "initialization": "unit",
            "schedule": "linear",
            "warmup_steps": 30,
            "weight_decay": 0.0,
            "dtype": "auto",
        }
    )
    """Keys of `TrainConfig`."""


FULL = Recipe()
SHORT = Recipe(programs=1500, algorithm_calls=4, held_out=24, steps=120)
