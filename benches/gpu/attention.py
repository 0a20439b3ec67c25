"""Attention of every backend, forward and with backward pass, at the shape of a layer of the 32 B model.

    python benches/gpu/attention.py [--tiny] [--json FILE]

Rows are packed with documents (`measure.documents`). Columns:

- mask_s: building the mask, once per forward pass and window
- forward_s, both_s: forward pass, forward and backward pass
- floor_s: lower bound of both_s, three times the FLOPs of unmasked pairs at the measured speed of a large product
- both_bytes: peak memory beyond q, k, v and the gradient of the output
- differs: largest relative distance of output and gradients from those of the first backend that ran
"""

import torch
from cwm_core.model.attention import BACKENDS, choose_backend
from cwm_core.model.attention.documents import Documents
from cwm_core.planning.plan import unmasked
from measure import arguments, attempt, distance, documents, peak_flops, peak_memory, report, time_of

# The formula holds all scores: past this many tokens, tens of gigabytes of them.
REFERENCE_TOKENS = 8192


def measure(backend, lengths, window, shape, device, dtype, peak, baseline):
    """Return one row of the table; the first backend to run stores its results in `baseline`."""
    heads, kv_heads, head_dim = shape
    tokens = sum(lengths)
    if backend == "reference" and tokens > REFERENCE_TOKENS:
        return {"skipped": f"the scores of all pairs: for at most {REFERENCE_TOKENS:,} tokens"}
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    make = choose_backend(backend, device)
    packed = Documents.from_offsets(offsets, tokens, device)
    mask = make(packed, window)
    torch.manual_seed(0)
    q, k, v, upstream = (
        torch.randn(1, n, tokens, head_dim, device=device, dtype=dtype) for n in (heads, kv_heads, kv_heads, heads)
    )
    inputs = [t.requires_grad_() for t in (q, k, v)]

    def forward():
        with torch.no_grad():
            return mask.attend(q, k, v)

    def both():
        out = mask.attend(q, k, v)
        return out, *torch.autograd.grad(out, inputs, upstream)

    flops = 4 * heads * head_dim * sum(unmasked(length, window) for length in lengths)
    row = {
        "mask_s": time_of(lambda: make(packed, window), device),
        "forward_s": time_of(forward, device),
        "both_s": time_of(both, device),
        "floor_s": 3 * flops / peak,
        "both_bytes": peak_memory(both, device),
    }
    return row | {"differs": distance(both(), baseline)}


def main():
    args = arguments(__doc__)
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    shape = (4, 2, 16) if args.tiny else (48, 8, 128)
    sizes = (300, 900) if args.tiny else (8192, 32_768, 131_072)
    local = 64 if args.tiny else 8192
    peak = peak_flops(device, dtype)
    rows = []
    for tokens in sizes:
        lengths = documents(tokens)
        for window in (None, local):
            baseline = []
            for backend in ("sdpa", *(name for name in BACKENDS if name != "sdpa")):
                what = {"tokens": tokens, "documents": len(lengths), "window": window or "all", "backend": backend}
                rows.append(
                    what
                    | attempt(
                        lambda: measure(backend, lengths, window, shape, device, dtype, peak, baseline)  # noqa: B023
                    )
                )
    report("attention", device, peak, rows, args.json)


if __name__ == "__main__":
    main()
