"""Compare the coverage of explored calls with that of tests that Pynguin writes for the same module in the same time.

```
PYNGUIN_DANGER_AWARE=1 python benches/corpus_pynguin.py --paths FOLDER --pynguin VENV/bin/pynguin inflection ...
```

Prints, as means over the explored functions, the lines and branches (as coverage.py defines them) that the chosen
calls, all tried calls, and Pynguin's tests reach. Pynguin searches for as long as the exploration took. It runs the
code of the module without a sandbox. Its environment needs `coverage` and `pytest`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from corpus_functions import Possible, mean
from cwm_core.corpus.functions.discovery import find_functions
from cwm_core.corpus.functions.explore import explore_all


def explored(functions, arguments):
    started = time.monotonic()
    found = list(explore_all(functions, seed=arguments.seed, budget=arguments.budget))
    return found, time.monotonic() - started


def pynguin_steps(module, path, root, seconds, arguments):
    """Return the lines and branches that Pynguin's tests reach, as pairs (line, next line)."""
    python = str(Path(arguments.pynguin).parent / "python")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--project-path", root, "--module-name", module, "--output-path", f"{folder}/tests"]
        options += ["--maximum_search_time", str(max(1, round(seconds))), "--seed", str(arguments.seed)]
        options += ["--assertion_generation", "NONE", "--report-dir", f"{folder}/report"]
        run = {"cwd": folder, "capture_output": True, "env": {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "0"}}
        subprocess.run([arguments.pynguin, *options], check=False, timeout=10 * seconds + 300, **run)
        tests = sorted(Path(folder, "tests").glob("test_*.py"))
        if not tests:
            return None
        cover = [
            python,
            "-m",
            "coverage",
            "run",
            "--branch",
            f"--include={path}",
            "-m",
            "pytest",
            "-q",
            *map(str, tests),
        ]
        subprocess.run(cover, check=False, timeout=600, **run)
        subprocess.run([python, "-m", "coverage", "json", "-q", "-o", "c.json"], check=False, timeout=60, **run)
        if not Path(folder, "c.json").exists():
            return None
        [file] = json.loads(Path(folder, "c.json").read_text())["files"].values()
        return {(a, max(b, -1)) for a, b in file["executed_branches"]} | {(0, line) for line in file["executed_lines"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="module of one file, or package.module")
    parser.add_argument("--paths", required=True, help="folder with installed packages")
    parser.add_argument(
        "--pynguin", default=shutil.which("pynguin"), help="command of Pynguin, in an environment of its own"
    )
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.pynguin:
        sys.exit("Pynguin is not installed: run pip install pynguin in an environment of its own")
    print(f"{'module':28}{'functions':>10}{'s':>5}  {'chosen':>12}{'tried':>12}{'Pynguin':>12}   lines/branches")
    for module in arguments.modules:
        found = find_functions(module.split(".")[0], paths=[arguments.paths])
        functions = [f for f in found.functions if f.module == module]
        if not functions:
            sys.exit(f"no functions in {module}")
        everything, seconds = explored(functions, arguments)
        possible = Possible(functions[0].code)
        path = str(Path(arguments.paths, functions[0].provenance["path"]).resolve())
        theirs = pynguin_steps(module, path, arguments.paths, seconds, arguments)
        chosen = [{step for reached in one.chosen.values() for step in reached.steps} for one in everything]
        columns = []
        for steps in (chosen, [one.steps for one in everything], [theirs] * len(everything)):
            if steps[0] is None:
                columns.append("no tests")
                continue
            shares = [possible.shares(one.function, s) for one, s in zip(everything, steps, strict=True)]
            lines, branches = mean([s[:2] for s in shares]), mean([s[2:] for s in shares])
            columns.append(f"{lines:.0%}/{branches:.0%}")
        print(
            f"{module:28}{len(functions):10}{seconds:5.0f}  {columns[0]:>12}{columns[1]:>12}{columns[2]:>12}",
            flush=True,
        )


if __name__ == "__main__":
    main()
