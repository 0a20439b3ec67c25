"""Read trajectories of agents as training documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.documents import DocumentKind, Row
from ..data.traces import TrainingDocument
from ..tokenizer import Tokenizer
from .encoding import encode_trajectory
from .trajectories import Trajectory, TrajectoryReader, is_trajectory_file


@dataclass(frozen=True)
class TrajectoryKind(DocumentKind[Trajectory]):
    """Trajectories, as `cwm agent` writes them. Failed rollouts are left out."""

    seed: int = 0
    """Seed of the choice of observations in the loss. See `encode_trajectory`."""
    observations: float = 0.5
    """Fraction of the observations in the loss, from 0 to 1."""

    def has_file(self, path: Path) -> bool:
        """Return whether the file begins as a file of trajectories does."""
        return path.suffix.lower() in (".jsonl", ".ndjson") and is_trajectory_file(path)

    def read_file(self, path: Path) -> Iterator[tuple[str, Trajectory]]:
        """Yield the trajectories of a file."""
        for trajectory in TrajectoryReader(path):
            if trajectory.failure is None:
                yield f"{path}, trajectory {trajectory.name}", trajectory

    def has_row(self, row: Row) -> bool:
        """Return whether the row is a line of a compressed file of trajectories."""
        return row.keys() == {"crc32", "trajectory"}

    def read_row(self, row: Row, where: str) -> Trajectory | None:
        """Return the trajectory of a line, or None if its rollout failed."""
        try:
            trajectory = Trajectory.from_json(json.dumps(row["trajectory"]).encode())
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return trajectory if trajectory.failure is None else None

    def encode(self, tokenizer: Tokenizer, content: Trajectory) -> TrainingDocument:
        """Encode the trajectory, as `encode_trajectory` does."""
        encoded = encode_trajectory(tokenizer, content, seed=self.seed, observations=self.observations)
        return TrainingDocument(*encoded)

    def texts(self, content: Trajectory) -> Iterable[str]:
        """Yield the content of every message."""
        return (message["content"] for message in content.conversation())
