"""Arms and sizes of an ablation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FORMS: dict[str, dict[str, Any]] = {
    "outputs": {"calls_only": True, "max_depth": 1},
    "traces": {},
    "calls": {"calls_only": True},
    "changes": {"changes_only": True},
}
"""Documents of a program, as arguments of `Trace.coarsen`. "outputs" has two frames: the call of `main()`, and its
return. So a model that learned it answers directly."""

ARMS: dict[str, tuple[str, ...]] = {
    "outputs": ("outputs",),
    "traces": ("traces",),
    "mixed": ("traces", "outputs"),
    "calls": ("calls",),
    "changes": ("changes",),
    "untrained": (),
}
"""Forms that the models of an arm train on, in equal shares of tokens. "untrained" is the control of the transfers."""

SETS = ("familiar", "unseen", "longer")
"""Sets of held-out programs: of the training families, of unseen families, and with longer executions."""

TITLES = {"familiar": "training families", "unseen": "unseen families", "longer": "longer executions"}
"""Names of the sets in reports."""

REPAIR_SETS = SETS[:2]
"""Sets whose programs are also broken for repair."""

TRANSFERS = ("outputs", "repair")
"""Tasks of the short fine-tuning after the training of an arm."""


@dataclass(frozen=True)
class AblationRecipe:
    """Sizes and settings of an ablation. On one machine they determine the results."""

    arms: tuple[str, ...] = tuple(ARMS)
    """Arms to compare."""
    tokens: int = 6_000_000
    """Training tokens of each arm and seed."""
    seeds: int = 5
    """Models of each arm. A seed chooses the programs, their order, and the initial weights."""
    problems: int = 300
    """Programs in each held-out set of a seed."""
    checkpoints: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """Fractions of the training after which models predict outputs."""
    transfer_steps: int = 200
    """Steps of fine-tuning on each transfer task."""
    max_frames: int = 16
    """Frames of the longest execution to train on."""
    vocabulary: int = 1024
    """Size of the vocabulary, which all arms share."""
    seq_len: int = 512
    """Tokens in a row."""
    batch_size: int = 3
    """Rows in a step."""
    model: dict[str, Any] = field(
        default_factory=lambda: {"sliding_window": 64, "full_attention_interval": 2, "max_position_embeddings": 4096}
    )
    """Changes of the preset "tiny"."""
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "optimizer": "muon",
            "muon_learning_rate": 0.02,
            "learning_rate": 0.004,
            "schedule": "linear",
            "warmup_steps": 30,
            "weight_decay": 0.0,
        }
    )
    """Keys of `TrainConfig`."""

    @property
    def steps(self) -> int:
        """Steps of the training of a model."""
        return max(self.tokens // (self.seq_len * self.batch_size), 1)

    @property
    def programs(self) -> int:
        """Programs to train on, before those are left out that are long or raise."""
        return max(self.tokens // 50, 100)

    @property
    def repairs(self) -> int:
        """Broken programs to fine-tune on: as many as the steps read, in documents of about 150 tokens."""
        return max(self.transfer_steps * self.seq_len * self.batch_size // 150, 10)


FULL = AblationRecipe()
SHORT = AblationRecipe(
    tokens=150_000,
    seeds=2,
    problems=60,
    checkpoints=(0.25, 0.5, 1.0),
    transfer_steps=60,
    batch_size=1,
    model={
        "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 64,
        "full_attention_interval": 2, "max_position_embeddings": 4096,
    },
)  # fmt: skip


def how_to_ask(arm: str) -> list[str]:
    """Return how the models of an arm can predict an output: "direct", "trace", or both.

    A model has a way to answer only if it was trained on documents of that form.
    """
    forms = ARMS[arm]
    return ["direct"] * ("outputs" in forms) + ["trace"] * any(form != "outputs" for form in forms)


def form_of(arm: str, how: str) -> str:
    """Return the form in which a model of an arm answers."""
    return "outputs" if how == "direct" else next(form for form in ARMS[arm] if form != "outputs")


def checkpoint_steps(recipe: AblationRecipe, arm: str) -> list[int]:
    """Return the steps after which models of an arm predict outputs."""
    return sorted({max(round(part * recipe.steps), 1) for part in recipe.checkpoints}) if ARMS[arm] else []


def last_step(recipe: AblationRecipe, arm: str) -> int:
    """Return the number of steps that models of an arm train for."""
    return recipe.steps if ARMS[arm] else 0
