"""Train in the style of torchtitan: a model on the meta device, Stateful parts, and distributed checkpoints.

torchrun --nproc-per-node 2 examples/torchtitan_loop.py SHARDS VOCABULARY --steps 20

The same command resumes from the newest checkpoint, also with another number of processes.
"""

import argparse
from pathlib import Path
from typing import Any

import cwm_core as cwm
import torch
import torch.distributed.checkpoint as dcp
from cwm_core.model import Transformer, initialize, preset
from cwm_core.training import TrainConfig, World, clip_grad_norm, parallelize
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful


class ModelAndOptimizer(Stateful):
    """The sharded weights and optimizer state."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save and load these two together."""
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return both states, with full names of parameters."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )


class Progress(Stateful):
    """The step of the run and the position of the loader, equal on all ranks."""

    def __init__(self, loader: cwm.PackedLoader) -> None:
        """Start at step 0."""
        self.step, self.loader = 0, loader

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the loader's state."""
        return {"step": torch.tensor(self.step), "loader": self.loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved step."""
        self.step = int(state_dict["step"])
        self.loader.load_state_dict(state_dict["loader"])


def main() -> None:
    """Train, with a checkpoint at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="folder of token shards")
    parser.add_argument("vocabulary", help="vocabulary that the shards were made with")
    parser.add_argument("--steps", type=int, default=20, help="steps of this run")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4, help="rows a step, over all ranks")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    tokenizer = cwm.Tokenizer.load(args.vocabulary)
    settings = TrainConfig(max_steps=args.steps, device=args.device)  # tensor_parallel=2 and so on go here
    world = World.create(settings)
    with torch.device("meta"):
        model = Transformer(
            preset(
                "tiny",
                vocab_size=tokenizer.vocab_size,
                eos_token_id=tokenizer.stop_tokens,
                bos_token_id=tokenizer.bos_token,
                num_hidden_layers=2,
                hidden_size=64,
            )
        )
    parallelize(model, settings, world)
    initialize(model, seed=0, device=world.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = cwm.PackedLoader(
        args.shards,
        args.seq_len,
        vocab_size=tokenizer,
        batch_size=args.batch_size,
        rank=world.data_rank,
        world_size=world.data_ranks,
    )
    progress = Progress(loader)
    parts: dict[str, Any] = {"app": ModelAndOptimizer(model, optimizer), "progress": progress}
    saved = sorted(args.checkpoints.glob("step-*"))
    if saved:
        dcp.load(parts, checkpoint_id=saved[-1])

    for _, arrays in zip(range(args.steps), loader, strict=False):
        batch = world.slice(arrays.to_torch(world.device))
        tokens = world.sum(batch.loss_mask.sum())
        loss = model.loss(batch.tokens, batch.targets, batch.loss_mask, batch.cu_seqlens, batch.position_ids)
        optimizer.zero_grad()
        (loss.total / tokens).backward()
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        progress.step += 1
        mean = world.sum(loss.total.detach()) / tokens
        if world.rank == 0:
            print(f"step {progress.step}  loss {mean.item():.4f}", flush=True)

    dcp.save(parts, checkpoint_id=args.checkpoints / f"step-{progress.step:08}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
