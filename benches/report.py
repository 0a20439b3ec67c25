"""Print a benchmark run by hot path: our figure, that of each alternative, and the ratio.

    python benches/report.py build/bench.json

Figures come from the median call, ± half the distance between the quartiles. A ratio is between two benchmarks of one
run on one machine; it means nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Any

Benchmark = dict[str, Any]  # one entry of "benchmarks" in pytest-benchmark's JSON


def load(path: Path) -> list[Benchmark]:
    """Return the benchmarks of a pytest-benchmark JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))["benchmarks"]


def by_group(benchmarks: list[Benchmark]) -> dict[str, list[Benchmark]]:
    """Return the benchmarks by hot path. A benchmark without a group is a hot path of its own."""
    groups: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        groups.setdefault(benchmark["group"] or benchmark["fullname"], []).append(benchmark)
    return groups


def is_ours(benchmark: Benchmark, group: list[Benchmark]) -> bool:
    """Return whether a benchmark measures this project: named "cwm_core", "cwm_core, how", or alone in its group."""
    return len(group) == 1 or str(benchmark["extra_info"].get("implementation")).split(",")[0] == "cwm_core"


def label(benchmark: Benchmark, group: list[Benchmark]) -> str:
    """Return the implementation if that distinguishes the benchmarks of the group, else the name."""
    implementations = {b["extra_info"].get("implementation") for b in group} - {None}
    return benchmark["extra_info"]["implementation"] if len(implementations) == len(group) else benchmark["name"]


def duration(seconds: float) -> str:
    scale, unit = next((u for u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= u[0]), (1e-9, "ns"))
    return f"{seconds / scale:.4g} {unit}"


def rates(benchmark: Benchmark) -> str:
    """Return the rates of the median call per second, from the counts in extra_info."""
    seconds, counts = benchmark["stats"]["median"], benchmark["extra_info"]
    parts = [f"{counts[unit] / seconds:,.0f} {unit}/s" for unit in ("tokens", "events") if counts.get(unit)]
    if counts.get("bytes"):
        parts.insert(0, f"{counts['bytes'] / seconds / 1e6:,.2f} MB/s")
    if counts.get("events"):
        parts.append(f"{seconds / counts['events'] * 1e9:,.1f} ns/event")
    if counts.get("stored_bytes"):
        parts.append(f"{counts['stored_bytes']:,} stored bytes")
    return ", ".join(parts)


def seconds_for_the_same(benchmark: Benchmark, as_much_as: Benchmark) -> float:
    """Return the median, scaled to the work of another benchmark if both count work in the same unit."""
    for unit in ("bytes", "tokens", "events"):
        counts = (as_much_as["extra_info"].get(unit), benchmark["extra_info"].get(unit))
        if all(counts):
            return benchmark["stats"]["median"] * counts[0] / counts[1]
    return benchmark["stats"]["median"]


def comparison(rival: Benchmark, ours: Benchmark) -> str:
    ratio = seconds_for_the_same(rival, ours) / ours["stats"]["median"]
    return f"ours {ratio:.2f}x faster" if ratio >= 1 else f"ours {1 / ratio:.2f}x slower"


def report(benchmarks: list[Benchmark]) -> str:
    """Return the table of a run. Raise ValueError if a hot path with alternatives has no benchmark of ours."""
    lines = []
    for name, group in by_group(benchmarks).items():
        ours = next((b for b in group if is_ours(b, group)), None)
        if ours is None:
            raise ValueError(f"group {name!r}: no implementation is cwm_core: {[b['name'] for b in group]}")
        lines.append(name)
        for b in sorted(group, key=lambda b: not is_ours(b, group)):
            stats = b["stats"]
            spread = f"±{stats['iqr'] / stats['median'] / 2:.0%}"
            versus = "" if is_ours(b, group) else comparison(b, ours)
            row = f"  {label(b, group):<40} {duration(stats['median']):>9} {spread:>6}  {versus:<20}  {rates(b)}"
            lines.append(row.rstrip())
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(load(Path(sys.argv[1]))))
