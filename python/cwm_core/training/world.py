"""The ranks of a run and how they share its model and its tokens."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .config import TrainConfig

# Fields of a batch with one value for each token. Only batches with an objective have the last three.
_TOKENS = ("tokens", "targets", "loss_mask", "position_ids", "weights", "behavior", "fresh")


class World:
    """The ranks of a run: size = replicas x shards x context x tensor, with consecutive ranks in one tensor group.

    The model is sharded over the shard and context ranks and copied over the replicas. The ranks of one context and
    tensor group read the same rows.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        is_main: Whether this is rank 0.
        device: Device of this rank.
        tensor_parallel: Ranks that share each matrix product.
        context_parallel: Ranks that share each row of tokens.
        data_rank: Number of the share of rows that this rank reads.
        data_ranks: Number of shares of rows.
        context_rank: Number of the share of tokens in a row.
        context_group: Group of the ranks that share a row; None for one process without a process group.
    """

    mesh: DeviceMesh | None = None
    """Device mesh with the dimensions "replicate", "shard" (data ranks of a replica x context) and "tensor"; None for
    one process without a process group."""

    def __init__(self, device: torch.device, replicas: int, tensor_parallel: int, context_parallel: int) -> None:
        """Divide the default process group, if there is one; raise ValueError if its size is not divisible."""
        distributed = dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.size = dist.get_world_size() if distributed else 1
        self.is_main = self.rank == 0
        self.device, self.tensor_parallel, self.context_parallel = device, tensor_parallel, context_parallel
        self.data_ranks = _data_ranks(self.size, replicas, tensor_parallel, context_parallel)
        self.data_rank = self.rank // (context_parallel * tensor_parallel)
        self.context_rank = self.rank // tensor_parallel % context_parallel
        self.context_group: dist.ProcessGroup | None = None
        self._owns_group = False
        if distributed:
            shape = (replicas, self.size // (replicas * tensor_parallel), tensor_parallel)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
            ranks = torch.arange(self.size).view(self.data_ranks, context_parallel, tensor_parallel)
            self.context_group = _own_group(ranks.transpose(1, 2).reshape(-1, context_parallel))
            self._tokens_group = _own_group(ranks.view(-1, tensor_parallel).T)

    @classmethod
    def create(cls, config: TrainConfig) -> Self:
        """Return the world that torchrun's environment describes, or one process outside torchrun.

        Starts the default process group, with NCCL on GPUs and gloo on CPUs, and makes this rank's GPU the current one.
        A process group that the caller started is used and left open.

        Raises:
            ValueError: The number of ranks is not divisible by replicas x tensor x context, or several ranks are to use
                a device other than "cpu" and "cuda".
        """
        started = dist.is_initialized()
        size = dist.get_world_size() if started else int(os.environ.get("WORLD_SIZE", "1"))
        _data_ranks(
            size, config.data_parallel_replicas, config.tensor_parallel, config.context_parallel
        )  # before there are connections
        device = torch.device(config.device)
        launched = started or {"RANK", "WORLD_SIZE"} <= os.environ.keys()
        if launched and device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
        elif size > 1 and device.type != "cpu":
            raise ValueError(f"{size} ranks need device 'cuda' or 'cpu', got {config.device!r}")
        if launched and not started:
            gpu = device.type == "cuda"
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=device if gpu else None)
        world = cls(device, config.data_parallel_replicas, config.tensor_parallel, config.context_parallel)
        world._owns_group = launched and not started
        return world

    @property
    def is_first_reader(self) -> bool:
        """Return whether this is the first of the ranks that read the same rows."""
        return self.rank == self.data_rank * (self.size // self.data_ranks)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values`, on `device`, over ranks with different tokens, equal on all ranks.

        This is one collective.
        """
        total = values.clone()
        if self.size > 1:
            dist.all_reduce(total, group=self._tokens_group)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set on any rank."""
        flags = torch.tensor(int(flag), device=self.device)
        if self.size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def max(self, values: list[float]) -> list[float]:
        """Return the elementwise maximum of `values` over all ranks."""
        if self.size == 1:
            return values
        largest = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def slice_tokens(self, values: Tensor) -> Tensor:
        """Return this rank's share [1, tokens / context] of per-token values [rows, seq_len].

        Raises:
            ValueError: The context ranks do not divide the tokens.
        """
        if self.context_parallel == 1:
            return values
        if values.numel() % self.context_parallel:
            raise ValueError(
                f"{values.numel()} tokens of a batch cannot be shared by {self.context_parallel} context ranks"
            )
        return values.view(1, self.context_parallel, -1)[:, self.context_rank]

    def gather_tokens(self, share: Tensor) -> Tensor:
        """Invert `slice_tokens`: return the values of all context ranks, flattened."""
        if self.context_parallel == 1:
            return share.flatten()
        shares = [torch.empty_like(share) for _ in range(self.context_parallel)]
        dist.all_gather(shares, share.contiguous(), group=self.context_group)
        return torch.cat(shares, -1).flatten()

    def slice(self, batch: Any) -> Any:
        """Return the batch with this rank's share of the tokens, [1, tokens / context]; `cu_seqlens` stays whole.

        Args:
            batch: A dataclass or namespace with tokens, targets, loss_mask and position_ids [rows, seq_len].

        Raises:
            ValueError: The context ranks do not divide the tokens.
        """
        if self.context_parallel == 1:
            return batch
        shares = {name: self.slice_tokens(getattr(batch, name)) for name in _TOKENS if hasattr(batch, name)}
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            return dataclasses.replace(batch, **shares)
        return SimpleNamespace(**vars(batch) | shares)

    def close(self) -> None:
        """Destroy the process group if `create` started it."""
        if self._owns_group:
            dist.destroy_process_group()
            self._owns_group = False

    def __enter__(self) -> Self:
        """Return the world; the `with` statement closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the world."""
        self.close()


def _data_ranks(size: int, replicas: int, tensor: int, context: int) -> int:
    if size % (replicas * tensor * context):
        raise ValueError(
            f"{size} ranks cannot be divided into replicas ({replicas}) x tensor ({tensor}) x context ({context})"
        )
    return size // (tensor * context)


def _own_group(groups: Tensor) -> dist.ProcessGroup:
    """Return the group of `groups` [groups, ranks] that contains this rank; all ranks must call this function."""
    own: dist.ProcessGroup
    own, _ = dist.new_subgroups_by_enumeration(groups.tolist())  # type: ignore[no-untyped-call]  # PyTorch
    return own
