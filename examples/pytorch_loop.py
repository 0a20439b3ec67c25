"""Train a small model in a plain PyTorch loop on packed rows, and resume exactly where a run stopped.

python examples/pytorch_loop.py SHARDS VOCABULARY --steps 20 --checkpoint state.pt
"""

import argparse
from pathlib import Path

import cwm_core as cwm
import torch
from cwm_core.model import Transformer, initialize, preset


def main() -> None:
    """Train, or resume from the checkpoint if it exists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="folder of token shards")
    parser.add_argument("vocabulary", help="vocabulary that the shards were made with")
    parser.add_argument("--steps", type=int, default=20, help="steps of this run")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=Path("state.pt"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    tokenizer = cwm.Tokenizer.load(args.vocabulary)
    config = preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.stop_tokens,
        bos_token_id=tokenizer.bos_token,
        num_hidden_layers=2,
        hidden_size=64,
    )
    model = Transformer(config)
    initialize(model, seed=0)
    model.to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = cwm.PackedLoader(args.shards, args.seq_len, vocab_size=tokenizer, batch_size=args.batch_size)
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    for _, arrays in zip(range(args.steps), loader, strict=False):
        batch = arrays.to_torch(args.device)
        loss = model.loss(batch.tokens, batch.targets, batch.loss_mask, batch.cu_seqlens, batch.position_ids)
        mean = loss.total / batch.loss_mask.sum().clamp(min=1)  # a batch may hold no token with loss
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {loader.stats().steps}  loss {mean.item():.4f}")

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    torch.save(state, args.checkpoint)


if __name__ == "__main__":
    main()
