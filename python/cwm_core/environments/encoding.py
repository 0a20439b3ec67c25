"""Encode trajectories as training data: tokens and a loss mask."""

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import ShardWriter
from .trajectories import Trajectory

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


class EncodedTrajectory(NamedTuple):
    """An encoded trajectory, in the form that `ShardWriter.add` takes."""

    ids: NDArray[np.int32]
    """Tokens, of shape [n]."""
    loss_mask: NDArray[np.bool_]
    """Tokens that count in the loss, of shape [n]."""
    spans: dict[str, NDArray[np.int32]]
    """Spans of each `action` and `observation`, of shape [k, 2]: the first token, and the token after the last."""


def encode_trajectory(
    tokenizer: "Tokenizer", trajectory: Trajectory, *, seed: int = 0, observations: float = 0.5
) -> EncodedTrajectory:
    """Encode a trajectory as a chat whose loss covers all actions and a random part of the observations.

    The tokens equal those of `tokenizer.encode_chat(trajectory.conversation())`. The `<|eot_id|>` that ends a message
    belongs to it.

    Args:
        tokenizer: The tokenizer.
        trajectory: The trajectory.
        seed: Seed of the choice of observations. Whether the n-th one counts depends only on the seed, the name of the
            trajectory, and n.
        observations: Probability that an observation counts in the loss. Half is the value of the Code World Model
            (arXiv 2510.02387).

    Raises:
        ValueError: `observations` is not between 0 and 1, or the chat cannot be encoded; see `encode_chat`.
    """
    if not 0 <= observations <= 1:
        raise ValueError(f"observations must be between 0 and 1, got {observations}")
    start, _ = tokenizer.encode_chat([])
    parts, at, drawn = [start], len(start), 0
    masks: list[NDArray[np.bool_]] = [np.zeros(len(start), np.bool_)]
    spans: dict[str, list[tuple[int, int]]] = {"action": [], "observation": []}
    for number, message in enumerate(trajectory.conversation()):
        # The texts of a chat are encoded separately, so the tokens of the messages are those of the chat.
        chat_ids, chat_mask = tokenizer.encode_chat([message])
        ids, mask = chat_ids[len(start) :], chat_mask[len(start) :]
        if number >= len(trajectory.messages):
            if message["role"] == "assistant":
                content = len(ids) - int(mask.sum())
                spans["action"].append((at + content, at + len(ids)))
            else:
                content = len(tokenizer.encode_chat([message | {"content": ""}])[0]) - len(start) - 1
                mask[content:] = _lot(seed, trajectory.name, drawn) < observations
                spans["observation"].append((at + content, at + len(ids)))
                drawn += 1
        parts.append(ids)
        masks.append(mask)
        at += len(ids)
    labelled = {label: np.array(ranges, np.int32).reshape(-1, 2) for label, ranges in spans.items()}
    return EncodedTrajectory(np.concatenate(parts), np.concatenate(masks), labelled)


def write_shards(
    folder: str | os.PathLike[str],
    tokenizer: "Tokenizer",
    trajectories: Iterable[Trajectory],
    *,
    seed: int = 0,
    observations: float = 0.5,
    source: str = "agent",
) -> int:
    """Write trajectories, except failed ones, to a new folder of token shards.

    Args:
        folder: The new folder.
        tokenizer: The tokenizer.
        trajectories: The trajectories.
        seed: See `encode_trajectory`.
        observations: See `encode_trajectory`.
        source: Name of the source in the shards.

    Returns:
        The number of trajectories written.
    """
    with ShardWriter(folder, tokenizer) as writer:
        for trajectory in trajectories:
            if trajectory.failure is None:
                ids, mask, spans = encode_trajectory(tokenizer, trajectory, seed=seed, observations=observations)
                writer.add(ids, mask, source, spans)
        return writer.documents


def _lot(seed: int, name: str, number: int) -> float:
    """Return a pseudo-random number in [0, 1), the same on every machine and in every version."""
    digest = hashlib.sha256(f"{seed} {number} {name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
