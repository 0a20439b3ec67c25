"""Report which benchmarks became slower or faster between a commit and the working tree; exit with 1 if any is slower.

    python benches/compare.py BASE [--rounds 10] [-k EXPRESSION]

Times of different runs do not compare: the machine's load and clock drift more than most changes matter. So both sides
are built, and each round runs this tree's benchmarks on one and at once on the other, the order alternating. A round
gives one ratio a benchmark, current / base; drift that is slower than a round cancels in it.

A benchmark became slower when a one-sided sign test over the rounds rejects "the median ratio is at most 1 + margin" at
5 %, Bonferroni-corrected for the number of benchmarks in both directions; faster likewise with base / current. The sign
test assumes nothing about the noise, and the margin (3 %) absorbs what is real but not the code's: where the linker put
a loop. Rivals are left out: no change here can make them slower.

Both sides run with this environment's packages. A benchmark that fails on BASE is new and not judged; one that fails on
the working tree is an error.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median

from report import by_group, is_ours, load

ROOT = Path(__file__).parents[1]
ALPHA = 0.05
MARGIN = 0.03

Times = dict[str, float]  # benchmark → median seconds of one run


@dataclass(frozen=True)
class Verdict:
    """Verdict on one benchmark: the median over rounds of current / base, and `slower`, `faster`, or `same`."""

    name: str
    ratio: float
    word: str


def sign_test(successes: int, trials: int) -> float:
    """Return the probability of at least `successes` heads in `trials` tosses of a fair coin."""
    return sum(comb(trials, k) for k in range(successes, trials + 1)) / 2**trials


def judge(rounds: list[tuple[Times, Times]], margin: float = MARGIN, alpha: float = ALPHA) -> list[Verdict]:
    """Return verdicts on the benchmarks that every round timed on both sides, given (base, current) of each round.

    Raises ValueError when there are too few rounds for any verdict but `same`.
    """
    names = [n for n in rounds[0][0] if all(n in times for pair in rounds for times in pair)]
    limit = alpha / (2 * max(len(names), 1))
    if sign_test(len(rounds), len(rounds)) > limit:
        raise ValueError(f"{len(rounds)} rounds cannot tell {len(names)} benchmarks from chance: run more")
    verdicts = []
    for name in names:
        ratios = [current[name] / base[name] for base, current in rounds]
        slower = sum(ratio > 1 + margin for ratio in ratios)
        faster = sum(1 / ratio > 1 + margin for ratio in ratios)
        word = "same"
        if sign_test(slower, len(ratios)) <= limit:
            word = "slower"
        elif sign_test(faster, len(ratios)) <= limit:
            word = "faster"
        verdicts.append(Verdict(name, median(ratios), word))
    return verdicts


def rounds_needed(benchmarks: int, alpha: float = ALPHA) -> int:
    """Return the fewest rounds for which a verdict is possible despite one dissenting round."""
    return next(n for n in range(2, 100) if sign_test(n - 1, n) <= alpha / (2 * benchmarks))


def install(source: Path, site: Path) -> None:
    """Build the package of `source` in release mode and unpack it into the folder `site`."""
    wheels = site.with_suffix(".wheels")
    build = ["maturin", "build", "--release", "--locked", "--out", wheels, "-i", sys.executable]
    subprocess.run([sys.executable, "-m", *build], cwd=source, check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )


def python(site: Path, seed: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with the package of `site`. Each round has one hash seed for both sides."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def check_installed(site: Path) -> None:
    found = python(site, 0, "-P", "-c", "import cwm_core; print(cwm_core.__file__)").stdout.strip()
    if not Path(found).is_relative_to(site):
        raise SystemExit(f"the benchmarks would measure {found or 'nothing'}, not {site}")


def time_once(site: Path, seed: int, selection: str) -> tuple[Times, str]:
    """Return the median seconds of each benchmark of ours in one run, and pytest's output if a part failed."""
    out = site.with_suffix(".json")
    out.unlink(missing_ok=True)
    options = ["--benchmark-quiet", "--benchmark-max-time=0.3", "--benchmark-min-rounds=3", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors", f"--benchmark-json={out}", "-k", selection]
    run = python(site, seed, "-P", "-m", "pytest", ROOT / "benches", *options)
    groups = by_group(load(out)).values() if out.exists() else []
    times = {b["fullname"]: b["stats"]["median"] for group in groups for b in group if is_ours(b, group)}
    return times, run.stdout + run.stderr if run.returncode else ""


def measure(base: Path, current: Path, rounds: int, selection: str) -> list[tuple[Times, Times]]:
    """Return the times (base, current) of each round. If `rounds` is 0, it depends on the number of benchmarks."""
    measured: list[tuple[Times, Times]] = []
    wanted = rounds or 2
    while len(measured) < wanted:
        sides = [base, current] if len(measured) % 2 == 0 else [current, base]
        times = {site: time_once(site, len(measured), selection) for site in sides}
        if times[current][1]:
            raise SystemExit(f"a benchmark fails on the working tree:\n{times[current][1]}")
        if not times[base][0]:
            raise SystemExit(f"no benchmark of the working tree runs on the base:\n{times[base][1]}")
        measured.append((times[base][0], times[current][0]))
        wanted = rounds or rounds_needed(len(measured[0][0].keys() & measured[0][1].keys()))
        print(f"round {len(measured)} of {wanted}", file=sys.stderr)
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit to compare the working tree with")
    parser.add_argument("--rounds", type=int, default=0, help="default: what the number of benchmarks asks for")
    parser.add_argument("-k", dest="selection", default="", help="pytest's expression that selects benchmarks")
    options = parser.parse_args()
    git = ["git", "-C", ROOT, "worktree"]
    with tempfile.TemporaryDirectory(prefix="cwm-compare-") as folder:
        source, base, current = (Path(folder, name) for name in ("source", "base", "current"))
        subprocess.run([*git, "add", "--quiet", "--detach", source, options.base], check=True)
        try:
            install(source, base)
        finally:
            subprocess.run([*git, "remove", "--force", source], check=True)
        install(ROOT, current)
        for site in (base, current):
            check_installed(site)
        rounds = measure(base, current, options.rounds, options.selection)
    verdicts = judge(rounds)
    for verdict in sorted(verdicts, key=lambda v: -v.ratio):
        print(f"{verdict.word:<7} {verdict.ratio:6.3f}x  {verdict.name}")
    for name in sorted(rounds[0][1].keys() - rounds[0][0].keys()):
        print(f"new              {name}")
    return any(verdict.word == "slower" for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
