"""What is kept of a step whose loss or gradient is not finite, so that someone can find out why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# Documents that a message names; the report has them all.
_NAMED = 8

_ARRAYS = ("tokens", "targets", "loss_mask", "position_ids", "cu_seqlens", "source_ids", "document_ids")


def documents(batches: Sequence[Any], losses: Sequence[Tensor], sources: Sequence[str]) -> list[dict[str, Any]]:
    """Documents of a step's `batches` with their mean loss, those whose loss is not finite first.

    `losses`: the loss of each position, of the shape of each batch's tokens. A batch that does not know its documents
    gives the numbers of its segments. The mean loss of one without loss is None.
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
            found.append({"source": name, "document": number, "tokens": end - begin, "loss": loss})
    return sorted(found, key=lambda entry: entry["loss"] is None or bool(np.isfinite(entry["loss"])))


def message(found: Sequence[dict[str, Any]]) -> str:
    """Name documents, those at fault if there are any."""
    at_fault = [entry for entry in found if entry["loss"] is not None and not np.isfinite(entry["loss"])]
    named = at_fault or found
    text = ", ".join(f"{entry['source']} {entry['document']}".strip() for entry in named[:_NAMED])
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"documents {'whose loss is not finite' if at_fault else 'in the batch'}: {text}{more}"


def bad_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient on this rank is not finite."""
    bad = []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.to_local()
        if gradient is not None and not torch.isfinite(gradient).all():
            bad.append(name)
    return bad


def write(folder: Path, rank: int, report: dict[str, Any], batches: Sequence[Any], losses: Sequence[Tensor]) -> None:
    """Write this rank's part: report-RANK.json, and batches-RANK.npz with arrays named N.tokens, ..., N.losses."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for number, (batch, values) in enumerate(zip(batches, losses, strict=True)):
        present = {name: getattr(batch, name) for name in _ARRAYS if getattr(batch, name, None) is not None}
        for name, value in {**present, "losses": values}.items():
            arrays[f"{number}.{name}"] = value.cpu().numpy()
    np.savez_compressed(folder / f"batches-{rank}.npz", **arrays)
    (folder / f"report-{rank}.json").write_text(json.dumps(report, indent=2) + "\n")
