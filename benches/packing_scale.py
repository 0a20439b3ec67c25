"""Measure how the loader scales with the size of a corpus: resuming in the middle, and memory.

    python benches/packing_scale.py [--tokens 10_000_000 100_000_000 1_000_000_000] [--folder FOLDER]

For each size, write a corpus (4 bytes per token; kept if a folder is given) and read it in a process of its own. Each
line has the milliseconds to open the shards, to load a state from the middle, and then to get the first batch (rows of
8,192, files warm), and the resident memory after the first batch and after `--read` tokens, in MB: that of the process
alone, and that of mapped files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEQ_LEN, BATCH_SIZE, VOCAB_SIZE = 8192, 32, 128_256


def write(folder: Path, tokens: int) -> None:
    """Write documents of log-normal length (median 1,100 tokens, sigma 1.6)."""
    import cwm_core as cwm

    rng = np.random.default_rng(0)
    noise = rng.integers(0, VOCAB_SIZE, 20_000_000, dtype=np.int32)
    with cwm.ShardWriter(folder, VOCAB_SIZE) as writer:
        while writer.tokens < tokens:
            length = min(max(1, int(rng.lognormal(np.log(1100), 1.6))), len(noise))
            start = int(rng.integers(0, len(noise) - length + 1))
            writer.add(noise[start : start + length])


def resident() -> dict[str, float]:
    """Return the resident memory in MB: anonymous, and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[f"Rss{name}"].split()[0]) / 1e3 for name in ("Anon", "File")}


def measure(folder: str, read: int) -> dict[str, object]:
    """Return the figures of one corpus; times are the best of five."""
    import cwm_core as cwm

    def timed(function):
        began = time.perf_counter()
        result = function()
        return (time.perf_counter() - began) * 1e3, result

    def open_loader():
        return cwm.PackedLoader(folder, SEQ_LEN, batch_size=BATCH_SIZE, prefetch=0)

    loader = open_loader()
    loader.skip(cwm.Shards(folder).tokens // 2 // (SEQ_LEN * BATCH_SIZE))
    state = json.loads(json.dumps(loader.state_dict()))
    times = []
    for _ in range(5):
        opening, loader = timed(open_loader)
        loading, _ = timed(lambda loader=loader: loader.load_state_dict(state))
        first, _ = timed(lambda loader=loader: next(loader))
        times.append((opening, loading, first))
    before = resident()
    for _ in range(read // (SEQ_LEN * BATCH_SIZE)):
        next(loader)
    best = np.min(times, axis=0)
    return {"times": best.tolist(), "before": before, "after": resident()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000_000, 100_000_000, 1_000_000_000])
    parser.add_argument("--read", type=int, default=1_000_000_000, help="tokens to read")
    parser.add_argument("--folder", type=Path, help="keep the corpora here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.read)))
        return
    print(f"{'tokens':>14} {'open':>8} {'state':>8} {'batch':>8} {'own memory':>18} {'mapped':>18}")
    with tempfile.TemporaryDirectory() as scratch:
        for tokens in args.tokens:
            folder = (args.folder or Path(scratch)) / str(tokens)
            if not folder.exists():
                write(folder, tokens)
            command = [sys.executable, __file__, "--measure", str(folder), "--read", str(args.read)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            times = " ".join(f"{time:>8.2f}" for time in found["times"])
            memory = [f"{found['before'][kind]:.0f} then {found['after'][kind]:.0f}" for kind in ("Anon", "File")]
            print(f"{tokens:>14,} {times} {memory[0]:>18} {memory[1]:>18}", flush=True)


if __name__ == "__main__":
    main()
