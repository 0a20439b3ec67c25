"""Pack the rollouts of a step into batches for the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .algorithm import Weights
from .records import Rollout


@dataclass
class RolloutBatch:
    """Rows of packed rollouts, in the form that `Trainer` and `PolicyLoss` take. A position belongs to its target."""

    tokens: Tensor
    """Token ids, int64 [rows, seq_len]; 0 in padding."""
    targets: Tensor
    """Next token of the rollout, int64 [rows, seq_len]; 0 if there is none."""
    loss_mask: Tensor
    """Targets that the trainer computes, bool [rows, seq_len]."""
    position_ids: Tensor
    """Offsets in the rollout, int64 [rows, seq_len]."""
    weights: Tensor
    """Weights of the targets, float32 [rows, seq_len]; 0 outside actions and observations with loss."""
    behavior: Tensor
    """Behavior log probabilities of the targets, float32 [rows, seq_len]; NaN if they are no actions."""
    fresh: Tensor
    """Actions of rollouts that the present weights alone generated, bool [rows, seq_len]."""
    cu_seqlens: Tensor
    """Offsets of the rollouts and of the padding in the flattened rows, int32 [segments + 1]."""
    source_ids: Tensor
    """Number of the task of each segment, int32 [segments]; -1 for padding."""


def place(room: list[int], length: int) -> int | None:
    """Take `length` from the first entry of `room` that has it, and return the entry's number; None if none has it."""
    row = next((number for number, left in enumerate(room) if left >= length), None)
    if row is not None:
        room[row] -= length
    return row


def make_batch(
    rows: Sequence[Sequence[tuple[Rollout, Weights]]],
    seq_len: int,
    version: int,
    tasks: Sequence[str],
    whole_rows: bool = False,
) -> RolloutBatch:
    """Return a batch of rows of rollouts with the weights of their tokens.

    Args:
        rows: Rollouts of each row.
        seq_len: Tokens of a row.
        version: Version of the present weights.
        tasks: Names of the tasks by number.
        whole_rows: Make each row one segment and compute all its targets, so that shapes do not depend on lengths. A
            row then has at most one rollout.
    """
    shape = (len(rows), seq_len)
    arrays = {
        "tokens": np.zeros(shape, np.int64),
        "targets": np.zeros(shape, np.int64),
        "loss_mask": np.full(shape, whole_rows),
        "position_ids": np.zeros(shape, np.int64),
        "weights": np.zeros(shape, np.float32),
        "behavior": np.full(shape, np.nan, np.float32),
        "fresh": np.zeros(shape, np.bool_),
    }
    segments: list[tuple[int, int]] = []  # length and number of the task
    for number, row in enumerate(rows):
        begin = 0
        for rollout, weights in row:
            end = begin + len(rollout.tokens)
            arrays["tokens"][number, begin:end] = rollout.tokens
            arrays["position_ids"][number, begin:end] = np.arange(end - begin)
            of_targets = {
                "targets": rollout.tokens,
                "weights": weights,
                "behavior": rollout.logprobs,
                "fresh": rollout.actions & (rollout.oldest == version),
                "loss_mask": rollout.actions | (weights != 0) | whole_rows,
            }
            for name, values in of_targets.items():
                arrays[name][number, begin : end - 1] = values[1:]
            segments.append((end - begin, tasks.index(rollout.task)))
            begin = end
        padding = seq_len - begin
        if whole_rows:
            arrays["position_ids"][number] = np.arange(seq_len)
            segments[len(segments) - len(row) :] = [(seq_len, segments[-1][1] if row else -1)]
        elif padding:
            arrays["position_ids"][number, begin:] = np.arange(padding)
            segments.append((padding, -1))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    lengths, sources = zip(*segments, strict=True)
    return RolloutBatch(
        **tensors,
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        source_ids=torch.tensor(sources, dtype=torch.int32),
    )
