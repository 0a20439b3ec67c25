"""Published figures of GPUs, for plans and for the model FLOP utilization of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Published figures of one GPU in its usual server. Rates are peaks, for dense products and in one direction.

    Raises:
        ValueError: A value is out of range; the message names the field.
    """

    name: str
    """Name of the product."""
    memory: float
    """Memory in bytes."""
    peak: dict[str, float]
    """FLOP/s of matrix products by dtype."""
    memory_bandwidth: float
    """Memory bandwidth in bytes/s."""
    intra_node: float
    """Bytes/s that one GPU receives from the other GPUs of its node."""
    inter_node: float
    """Bytes/s that the network adapter of one GPU receives."""
    price: float
    """US dollars per hour; see `GPUS` for the date."""
    per_node: int = 8
    """GPUs per node."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("memory", "memory_bandwidth", "intra_node", "inter_node", "per_node"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.price < float("inf"):
            raise ValueError(f"price must not be negative, got {self.price}")


_HOPPER = {"float32": 67e12, "bfloat16": 989e12, "float8": 1979e12}
_BLACKWELL = {"float32": 75e12, "bfloat16": 2250e12, "float8": 4500e12}

GPUS = {
    "h100": GPU("H100 SXM 80 GB", 80e9, _HOPPER, 3.35e12, 450e9, 50e9, 3.0),
    "h200": GPU("H200 SXM 141 GB", 141e9, _HOPPER, 4.8e12, 450e9, 50e9, 4.0),
    "b200": GPU("B200 HGX 180 GB", 180e9, _BLACKWELL, 8e12, 900e9, 50e9, 5.25),
}
"""GPUs by name, from NVIDIA's data sheets of H100, H200 and HGX B200, and of DGX servers with one 400 Gbit/s adapter
per GPU. The sheets give products with sparsity and links in both directions; the figures here are half of that. Prices
are rough: the middle of what specialized clouds asked per hour on demand in the spring of 2026 (H100 2.50 to 3.50, H200
3.50 to 4.50, B200 4.50 to 6.00). Pass your own with `--price`."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of the GPU whose `torch.cuda.get_device_name` contains a key of `GPUS`, else None."""
    for name, gpu in GPUS.items():
        if name in device_name.lower():
            return gpu.peak[dtype]
    return None
