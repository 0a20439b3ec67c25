"""Diagnostics of a step whose loss or gradient is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# Documents that a message names; the report has all of them.
_NAMED = 8

_ARRAYS = ("tokens", "targets", "loss_mask", "position_ids", "cu_seqlens", "source_ids", "document_ids")


class DocumentLoss(NamedTuple):
    """Loss of one document of a step."""

    source: str
    """Name of the source; empty if the batch has no sources."""
    document: int
    """Number of the document in its source, or of the segment in the batch."""
    tokens: int
    """Length in tokens."""
    loss: float | None
    """Mean loss in nats over its loss tokens; None without loss tokens."""

    @property
    def finite(self) -> bool:
        """Whether the loss is finite."""
        return self.loss is None or math.isfinite(self.loss)


def documents(batches: Sequence[Any], losses: Sequence[Tensor], sources: Sequence[str]) -> list[DocumentLoss]:
    """Return the documents of the `batches` of a step with their mean loss, those with a non-finite loss first.

    A batch without document ids gives the numbers of its segments.

    Args:
        batches: Batches of the step.
        losses: Loss of each position, in the shape of each batch's tokens.
        sources: Names of the sources by number.
    """
    found = []
    for batch, values in zip(batches, losses, strict=True):
        offsets = batch.cu_seqlens.tolist()
        known = getattr(batch, "document_ids", None)
        ids = range(len(offsets) - 1) if known is None else known.tolist()
        of = getattr(batch, "source_ids", None)
        names = [""] * len(ids) if of is None else [sources[i] if i >= 0 else None for i in of.tolist()]
        flat, mask = values.flatten().cpu(), batch.loss_mask.flatten().cpu()
        for begin, end, number, name in zip(offsets, offsets[1:], ids, names, strict=False):
            if name is None:
                continue  # padding
            kept = flat[begin:end][mask[begin:end]]
            loss = kept.double().mean().item() if len(kept) else None
            found.append(DocumentLoss(name, number, end - begin, loss))
    return sorted(found, key=lambda entry: entry.finite)


def message(found: Sequence[DocumentLoss]) -> str:
    """Return a text that names the documents with a non-finite loss, or all documents if there are none."""
    at_fault = [entry for entry in found if not entry.finite]
    named = at_fault or found
    text = ", ".join(f"{entry.source} {entry.document}".strip() for entry in named[:_NAMED])
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"documents {'whose loss is not finite' if at_fault else 'in the batch'}: {text}{more}"


def bad_gradients(model: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradient on this rank is not finite."""
    bad = []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.to_local()
        if gradient is not None and not torch.isfinite(gradient).all():
            bad.append(name)
    return bad


def write(folder: Path, rank: int, report: dict[str, Any], batches: Sequence[Any], losses: Sequence[Tensor]) -> None:
    """Write this rank's report-RANK.json and batches-RANK.npz, with arrays named N.tokens, ..., N.losses."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for number, (batch, values) in enumerate(zip(batches, losses, strict=True)):
        present = {name: getattr(batch, name) for name in _ARRAYS if getattr(batch, name, None) is not None}
        for name, value in {**present, "losses": values}.items():
            arrays[f"{number}.{name}"] = value.cpu().numpy()
    np.savez_compressed(folder / f"batches-{rank}.npz", **arrays)
    (folder / f"report-{rank}.json").write_text(json.dumps(report, indent=2) + "\n")
