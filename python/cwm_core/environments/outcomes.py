"""Running a repository's tests in a machine, and the outcome of each."""

import json
import re
import secrets
import shlex
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import machines
from ..machines import Machine
from . import _report

Outcome = Literal["passed", "xfailed", "skipped", "failed", "error", "missing"]
PASSED = ("passed", "xfailed")

PLUGIN = Path(_report.__file__).read_bytes()
IMPORTS_PLUGIN = Path(_report.__file__).with_name("_imports.py").read_bytes()
CHUNK = 32 << 10  # bytes read at a time: less than any backend keeps of a command's output
MAX_REPORT_BYTES = 64 << 20
READ_SECONDS = 60.0

# Another command reads the report, after every process of this one has ended: code under test can write to the output
# of its parents.
SCRIPT = """
box=$(mktemp -d) && cat > "$box/{plugin}.py" || exit 125
export CWM_PYTEST_ADDOPTS="${{PYTEST_ADDOPTS:-}}" CWM_PYTHONPATH="${{PYTHONPATH:-}}"
export PYTHONPATH="$box${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONHASHSEED={hash_seed} PYTHONDONTWRITEBYTECODE=1
export CWM_ROOT="$(pwd -P)"{names}
export PYTEST_ADDOPTS="${{PYTEST_ADDOPTS:-}} -p {plugin} --continue-on-collection-errors"
( {command}
) </dev/null >&2
code=$?
rm -rf {kept}
mv "$box/report" {kept} 2>/dev/null
rm -rf "$box"
exit $code
"""


@dataclass(frozen=True)
class TestRun:
    """Outcomes by pytest's names of the tests (node ids); `problem` says why there are none.

    `files` are the files that the tests are in, by their paths in the repository, which names of tests need not begin
    with. `errors` are the names of what could not be collected.
    """

    __test__ = False  # for pytest, which would collect it

    outcomes: dict[str, Outcome]
    problem: str | None
    completed: machines.Completed
    files: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def is_pytest(command: str) -> bool:
    """Return whether a command says that it runs pytest."""
    return re.search(r"\bpy\.?test\b", command) is not None


def run_tests(
    machine: Machine, command: str, *, files: Iterable[str] = (), seconds: float, hash_seed: int = 0
) -> TestRun:
    """Run pytest by `command`, to which `files` are appended, and return each test's outcome.

    Needs a shell, mktemp and pytest in the machine. The report is made by a plugin that lies outside of the
    repository under a random name: nothing that a diff contains can refer to it. The plugin adds a test that must fail;
    where that one passes, the outcomes are worth nothing and are dropped. Code under test that seeks the plugin out in
    its own process, or makes tests pass by their names, can forge outcomes.

    Hash randomization is fixed by `hash_seed`, so that equal repositories have equal outcomes.
    """
    whole = " ".join([command, *map(shlex.quote, files)])
    completed, report = _reported(machine, whole, PLUGIN, seconds=seconds, hash_seed=hash_seed)
    if completed.exceeded:
        return TestRun({}, f"the tests did not end: limit {completed.exceeded}", completed)
    if report is None:
        return TestRun({}, f"pytest made no report (exit code {completed.exit_code})", completed)
    try:
        outcomes = {str(name): outcome for name, outcome in report["outcomes"].items() if outcome in _report.RANK}
        found, errors, control = tuple(report["files"]), tuple(report["errors"]), report["control"]
    except (AttributeError, LookupError, TypeError):
        return TestRun({}, "the report of the tests was damaged", completed)
    if control in PASSED:
        return TestRun({}, "a test passed that cannot pass, so the outcomes are forged", completed)
    return TestRun(outcomes, None, completed, found, errors)


def hidden_names(machine: Machine, command: str, names: Iterable[str], *, seconds: float) -> set[str] | None:
    """Return those of the names that a module in the repository would hide from the pytest that `command` runs.

    None where pytest does not say.
    """
    _, report = _reported(machine, command, IMPORTS_PLUGIN, seconds=seconds, names=",".join(names))
    taken = (report or {}).get("taken")
    return set(map(str, taken)) if isinstance(taken, list) else None


def _reported(
    machine: Machine, command: str, source: bytes, *, seconds: float, hash_seed: int = 0, names: str = ""
) -> tuple[machines.Completed, dict[str, Any] | None]:
    """Run pytest with a plugin that writes a report; None where there is none, {} for a damaged one."""
    plugin, kept = f"cwm_{secrets.token_hex(8)}", f".cwm-{secrets.token_hex(8)}"
    script = SCRIPT.format(
        plugin=plugin,
        command=command,
        kept=kept,
        hash_seed=hash_seed,
        names=f" CWM_NAMES={shlex.quote(names)}" if names else "",
    )
    completed = machine.run(script, stdin=source, seconds=seconds)
    data = b"" if completed.exceeded else read_file(machine, kept)
    machine.run(f"rm -rf {kept}", seconds=READ_SECONDS)
    if not data:
        return completed, None
    try:
        report = json.loads(zlib.decompressobj().decompress(data, MAX_REPORT_BYTES))
    except (zlib.error, ValueError, RecursionError):
        return completed, {}
    return completed, report if isinstance(report, dict) else {}


def read_file(machine: Machine, path: str) -> bytes:
    """The content of a file of a machine, of any size; empty where there is none."""
    data = bytearray()
    while len(data) < MAX_REPORT_BYTES:
        command = f"tail -c +{len(data) + 1} -- {shlex.quote(path)} | head -c {CHUNK}"
        chunk = machine.run(command, seconds=READ_SECONDS).stdout
        data += chunk
        if len(chunk) < CHUNK:
            break
    return bytes(data)


def outcome_of(name: str, outcomes: dict[str, Outcome]) -> Outcome:
    """The outcome of a test, "missing" where it did not run.

    Names that were cut within their parameters, as several hundred of SWE-bench Verified's are, stand for all tests
    that begin so, if those agree on having passed.
    """
    if name in outcomes:
        return outcomes[name]
    if name.count("[") > name.count("]"):
        found = [outcome for whole, outcome in outcomes.items() if whole.startswith(name)]
        if found and len({outcome in PASSED for outcome in found}) == 1:
            return found[0]
    return "missing"
