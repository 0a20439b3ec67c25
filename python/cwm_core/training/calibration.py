"""Choose the dtype of matrix products: `dtype = "auto"`.

Which one is fast on a CPU depends on its instructions. With AVX512-BF16 or AMX, bfloat16 is up to twice as fast as
float32; without them, it is up to thirty times as slow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..model import ModelConfig, Transformer, initialize
from .batches import to_device
from .checkpoint import stored_settings
from .config import TrainConfig

if TYPE_CHECKING:
    from ..data import PackedLoader
    from ..data.loader import TensorBatch
    from .world import World

CPU_DTYPES = ("float32", "bfloat16")

# Of each dtype: processor time to spend at least, and tokens at most.
SECONDS = 1.0
TOKENS = 1024


def settle_dtype(
    config: TrainConfig, shape: ModelConfig, loader: PackedLoader, world: World, on_note: Callable[[str], None]
) -> TrainConfig:
    """Return `config` with a dtype in place of "auto": the same one on all ranks.

    A run that resumes keeps the dtype of its checkpoint. On a GPU the dtype is bfloat16. On a CPU, rank 0 times a
    forward and a backward pass of a model of this shape on the first tokens of the loader, and takes the faster dtype.

    Args:
        config: Settings of the run.
        shape: Shape of the model.
        loader: Data of the run. It stays where it is.
        world: Ranks of the run.
        on_note: Function called with one line that says what was chosen and why, in the main process only.
    """
    if config.dtype != "auto":
        return config
    chosen: list[Any] = [_choose(config, shape, loader) if world.is_main else None]
    if world.size > 1:
        dist.broadcast_object_list(chosen, 0)
    dtype, reason = chosen[0]
    if world.is_main:
        on_note(f"dtype {dtype}: {reason}")
    return replace(config, dtype=dtype)


def _choose(config: TrainConfig, shape: ModelConfig, loader: PackedLoader) -> tuple[str, str]:
    """Return a dtype and the reason for it."""
    if stored := stored_settings(config.checkpoint_folder):
        return stored["dtype"], "as in the checkpoint to resume"
    if torch.device(config.device).type != "cpu":
        return "bfloat16", f"the device is {config.device}"
    speeds = measure(config, shape, loader)
    fast, slow = sorted(speeds, key=lambda dtype: speeds[dtype], reverse=True)
    return fast, f"{speeds[fast]:,.0f} tokens/s on one thread, against {speeds[slow]:,.0f} in {slow}"


def measure(config: TrainConfig, shape: ModelConfig, loader: PackedLoader) -> dict[str, float]:
    """Return by dtype the tokens per second of processor time that one thread trains on."""
    with torch.device("meta"):
        model = Transformer(shape)
    initialize(model, config.seed)
    if config.attention != "default":
        model.attention_backend = config.attention
    start = loader.state_dict()
    batch = to_device(next(loader), torch.device("cpu"))
    loader.load_state_dict(start)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {dtype: tokens_per_second(model, batch, dtype) for dtype in CPU_DTYPES}
    finally:
        torch.set_num_threads(threads)


def tokens_per_second(model: Transformer, batch: TensorBatch, dtype: str) -> float:
    """Return the tokens per second of this thread's time in the fastest of several passes over the first tokens."""
    tokens, targets, mask, positions = (
        values.reshape(1, -1)[:, :TOKENS]
        for values in (batch.tokens, batch.targets, batch.loss_mask, batch.position_ids)
    )
    count = tokens.numel()
    offsets = torch.cat((batch.cu_seqlens[batch.cu_seqlens < count], batch.cu_seqlens.new_tensor([count])))
    passes: list[float] = []
    while len(passes) < 2 or sum(passes) < SECONDS:  # the first one also prepares the products
        began = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32"):
            total, _ = model.loss(tokens, targets, mask, offsets, positions, global_window=batch.global_window)
        torch.autograd.backward(total)
        model.zero_grad()
        passes.append(time.thread_time() - began)
    return count / max(min(passes), math.ulp(1.0))
