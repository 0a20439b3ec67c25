"""Measure how much of real packages the exploration of functions reaches, and how fast.

```
python benches/corpus_functions.py --paths FOLDER toolz boltons networkx
```

For each package, print the functions that can be called, the share of them with chosen calls and with a call that
returns, the mean shares of lines and branches (as coverage.py defines them) that all tried calls reach, and the calls
per second of wall clock. Needs `coverage`.
"""

import argparse
import json
import time
from collections import Counter

from coverage.exceptions import CoverageException
from coverage.parser import PythonParser
from cwm_core.corpus.functions.coverage import RETURNED
from cwm_core.corpus.functions.discovery import find_functions
from cwm_core.corpus.functions.explore import explore_all


class Possible:
    """The lines and branches of each function of a module, as coverage.py counts them."""

    def __init__(self, code):
        self.parser = PythonParser(text=code)
        self.parser.parse_source()
        self.lines = self.parser.statements
        exits = self.parser.exit_counts()
        self.branches = {(a, max(b, RETURNED)) for a, b in self.parser.arcs() if exits.get(a, 0) > 1}

    def shares(self, function, steps):
        """Return (lines reached, lines, branches reached, branches) of a function."""
        inside = range(function.lineno + 1, function.end_lineno + 1)
        lines = {n for n in self.lines if n in inside}
        branches = {arc for arc in self.branches if arc[0] in inside}
        first = self.parser.first_line
        taken = {(first(a), first(b) if b > 0 else b) for a, b in steps if a > 0}
        return (
            len(lines & {n for arc in taken for n in arc} | (lines & {first(b) for _, b in steps if b > 0})),
            len(lines),
            len(branches & taken),
            len(branches),
        )


def mean(pairs):
    shares = [reached / whole for reached, whole in pairs if whole]
    return sum(shares) / len(shares) if shares else 1.0


def measure(name, arguments):
    found = find_functions(name, paths=arguments.paths or None)
    functions = (
        found.functions[:: max(1, len(found.functions) // arguments.sample)] if arguments.sample else found.functions
    )
    possible, lines, branches = {}, [], []
    outcomes, kept, returning, none = Counter(), 0, 0, []
    started = time.monotonic()
    for one in explore_all(functions, seed=arguments.seed, budget=arguments.budget):
        outcomes += one.outcomes
        kept += one.unit is not None
        returns = any(not reached.raised for reached in one.chosen.values())
        returning += returns
        if not returns:
            none.append((one.function.id, dict(one.outcomes), list(one.chosen)))
        code = one.function.code
        if code not in possible:
            try:
                possible[code] = Possible(code)
            except CoverageException:
                possible[code] = None
        if possible[code] is not None:
            a, b, c, d = possible[code].shares(one.function, one.steps)
            lines.append((a, b))
            branches.append((c, d))
    seconds = time.monotonic() - started
    calls = sum(outcomes.values())
    if arguments.verbose:
        for row in none:
            print("   ", *row)
    return {
        "package": name,
        "functions": len(functions),
        "kept": kept,
        "returning": returning,
        "lines": mean(lines),
        "branches": mean(branches),
        "calls": calls,
        "seconds": seconds,
        "outcomes": dict(outcomes.most_common()),
        "skipped": dict(found.skipped.most_common()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--paths", action="append", default=[], help="folder with installed packages")
    parser.add_argument(
        "--sample", type=int, default=0, help="about this many functions of each package, evenly spread"
    )
    parser.add_argument("--budget", type=int, default=100, help="calls of each function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to append a line for each package to")
    parser.add_argument("--verbose", action="store_true", help="list the functions without a call that returned")
    arguments = parser.parse_args()
    print(f"{'package':18}{'functions':>10}{'kept':>7}{'return':>8}{'lines':>7}{'branches':>10}{'calls/s':>9}{'s':>7}")
    for name in arguments.packages:
        row = measure(name, arguments)
        n = max(1, row["functions"])
        print(
            f"{name:18}{row['functions']:10}{row['kept'] / n:7.0%}{row['returning'] / n:8.0%}{row['lines']:7.0%}"
            f"{row['branches']:10.0%}{row['calls'] / max(row['seconds'], 1e-9):9.0f}{row['seconds']:7.0f}",
            flush=True,
        )
        if arguments.json:
            with open(arguments.json, "a") as file:
                print(json.dumps(row), file=file)


if __name__ == "__main__":
    main()
