"""Trajectories as training data: tokens, and which of them are learned."""

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
    """What `ShardWriter.add` takes.

    `ids`: int32 [n]. `loss_mask`: bool [n]. `spans`: int32 [k, 2], first token and token after the last, of each
    `action` and `observation`, whether it is learned or not.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    spans: dict[str, NDArray[np.int32]]


def encode_trajectory(
    tokenizer: "Tokenizer", trajectory: Trajectory, *, seed: int = 0, observations: float = 0.5
) -> EncodedTrajectory:
    """A trajectory as a chat, of which the agent learns its actions and some of what they lead to.

    The ids are those of ``tokenizer.encode_chat(trajectory.conversation())``. In the loss are all actions and a part
    `observations` of the observations, each with the `<|eot_id|>` that ends it. Which ones are drawn at random, each by
    itself: the n-th one's lot depends on `seed`, the trajectory's name and n alone. (The half is that of the Code World
    Model's data.)

    Raises ValueError for a part that is not between 0 and 1, and as `encode_chat`.
    """
    if not 0 <= observations <= 1:
        raise ValueError(f"the part of observations to learn must be between 0 and 1, not {observations}")
    start, _ = tokenizer.encode_chat([])
    parts, at, drawn = [start], len(start), 0
    masks: list[NDArray[np.bool_]] = [np.zeros(len(start), np.bool_)]
    spans: dict[str, list[tuple[int, int]]] = {"action": [], "observation": []}
    for number, message in enumerate(trajectory.conversation()):
        # Every text of a chat is encoded by itself, so that the messages' tokens are the chat's.
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
    """Put trajectories, those that failed left out, into a new folder of token shards; how many they were.

    Raises as `encode_trajectory` and `ShardWriter`.
    """
    with ShardWriter(folder, tokenizer) as writer:
        for trajectory in trajectories:
            if trajectory.failure is None:
                ids, mask, spans = encode_trajectory(tokenizer, trajectory, seed=seed, observations=observations)
                writer.add(ids, mask, source, spans)
        return writer.documents


def _lot(seed: int, name: str, number: int) -> float:
    """A number in [0, 1) that looks random; the same on every machine, for ever."""
    digest = hashlib.sha256(f"{seed} {number} {name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
