"""The output layer and its loss, in chunks of several sizes, compared to PyTorch's loss over all logits.

    python benches/gpu/loss.py [--tiny] [--json FILE]

Columns:

- chunk: positions whose logits are held at a time (all: `F.cross_entropy`)
- both_s: forward and backward pass
- floor_s: the three products of both at the measured speed of a large product
- both_bytes: peak memory beyond hidden states and weight
- differs: relative distance of loss and gradients from those of the first row that ran
"""

import torch
import torch.nn.functional as F
from cwm_core.model import cross_entropy, loss
from measure import arguments, attempt, distance, peak_flops, peak_memory, report, time_of


def plain(hidden, weight, targets):
    """Return the loss over all logits, in float32 like `cross_entropy`."""
    return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")


def measure(chunk, hidden, weight, targets, peak, baseline):
    """Return one row of the table; the first chunk size to run stores its results in `baseline`."""
    device = hidden.device

    def both():
        total = plain(hidden, weight, targets) if chunk is None else cross_entropy(hidden, weight, targets).total
        return total.detach(), *torch.autograd.grad(total, (hidden, weight))

    if chunk is not None:
        loss.GPU_CHUNK_ROWS, loss.CPU_CHUNK_LOGITS = chunk, chunk * len(weight)
    row = {
        "both_s": time_of(both, device),
        "floor_s": 6 * hidden.numel() * len(weight) / peak,
        "both_bytes": peak_memory(both, device),
    }
    return row | {"differs": distance(both(), baseline)}


def main():
    args = arguments(__doc__)
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    width, vocab = (32, 500) if args.tiny else (6144, 128_256)
    sizes = (100, 300) if args.tiny else (8192, 32_768, 131_072)
    chunks = (16, 64) if args.tiny else (256, 512, 1024, 2048, 4096, 8192)
    peak = peak_flops(device, dtype)
    torch.manual_seed(0)
    weight = (torch.randn(vocab, width, device=device, dtype=dtype) * width**-0.5).requires_grad_()
    rows = []
    for tokens in sizes:
        hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
        targets = torch.randint(vocab, (tokens,), device=device)
        baseline = []
        for chunk in (*chunks, None):
            rows.append(
                {"tokens": tokens, "chunk": chunk or "all"}
                | attempt(lambda: measure(chunk, hidden, weight, targets, peak, baseline))  # noqa: B023
            )
    report("loss", device, peak, rows, args.json)


if __name__ == "__main__":
    main()
