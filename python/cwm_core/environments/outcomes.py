"""Run a repository's tests on a machine and return the outcome of each."""

import json
import re
import secrets
import shlex
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .. import machines
from ..machines import Machine


class TestOutcome(StrEnum):
    """How a test ended. The plugin `_report` writes all but the last."""

    __test__ = False  # keeps pytest from collecting the class

    PASSED = "passed"
    XFAILED = "xfailed"
    """The test failed, as its mark `xfail` declares."""
    SKIPPED = "skipped"
    FAILED = "failed"
    ERROR = "error"
    """Its setup or teardown failed, or the session ended before it ran."""
    MISSING = "missing"
    """The test did not run."""


PASSED = (TestOutcome.PASSED, TestOutcome.XFAILED)
"""Outcomes of a test that passed."""

# Read, not imported: they need pytest, which the machine has and this process may lack.
PLUGIN = Path(__file__).with_name("_report.py").read_bytes()
IMPORTS_PLUGIN = Path(__file__).with_name("_imports.py").read_bytes()
REPORTED = frozenset(TestOutcome) - {TestOutcome.MISSING}
CHUNK = 32 << 10  # bytes to read at a time: fewer than any backend keeps of an output stream
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
    """Result of running tests."""

    __test__ = False  # keeps pytest from collecting the class

    outcomes: dict[str, TestOutcome]
    """Outcomes by names of tests (pytest's node ids)."""
    problem: str | None
    """Reason that there are no outcomes, or None."""
    completed: machines.Completed
    """Result of the command."""
    files: tuple[str, ...] = ()
    """Paths of the tests' files in the repository. Names of tests need not begin with them."""
    errors: tuple[str, ...] = ()
    """Names of files that could not be collected."""


def is_pytest(command: str) -> bool:
    """Return whether a command names pytest."""
    return re.search(r"\bpy\.?test\b", command) is not None


def run_tests(
    machine: Machine, command: str, *, files: Iterable[str] = (), seconds: float, hash_seed: int = 0
) -> TestRun:
    """Run pytest and return the outcome of each test.

    The machine needs a shell, mktemp, and pytest. A plugin outside of the repository writes the report. Its name is
    random, so that no diff can refer to it. The plugin adds a test that must fail; if that test passes, all outcomes
    are dropped. Code under test can still forge outcomes by searching its own process for the plugin, or by making
    tests pass by their names.

    Args:
        machine: The machine.
        command: Command that runs pytest.
        files: Arguments to append to the command.
        seconds: Time limit, in seconds.
        hash_seed: Seed of string hashes, so that equal repositories have equal outcomes.
    """
    whole = " ".join([command, *map(shlex.quote, files)])
    completed, report = _reported(machine, whole, PLUGIN, seconds=seconds, hash_seed=hash_seed)
    if completed.exceeded:
        return TestRun({}, f"the tests did not end: limit {completed.exceeded}", completed)
    if report is None:
        return TestRun({}, f"pytest made no report (exit code {completed.exit_code})", completed)
    try:
        outcomes = {
            str(name): TestOutcome(outcome) for name, outcome in report["outcomes"].items() if outcome in REPORTED
        }
        found, errors, control = tuple(report["files"]), tuple(report["errors"]), report["control"]
    except (AttributeError, LookupError, TypeError):
        return TestRun({}, "the report of the tests was damaged", completed)
    if control in PASSED:
        return TestRun({}, "a test that must fail passed, so the outcomes are forged", completed)
    return TestRun(outcomes, None, completed, found, errors)


def hidden_names(machine: Machine, command: str, names: Iterable[str], *, seconds: float) -> set[str] | None:
    """Return module names in use. A new module with such a name would hide another one from pytest; see `_imports`.

    None means that pytest made no report.
    """
    _, report = _reported(machine, command, IMPORTS_PLUGIN, seconds=seconds, names=",".join(names))
    taken = (report or {}).get("taken")
    return set(map(str, taken)) if isinstance(taken, list) else None


def _reported(
    machine: Machine, command: str, source: bytes, *, seconds: float, hash_seed: int = 0, names: str = ""
) -> tuple[machines.Completed, dict[str, Any] | None]:
    """Run pytest with a plugin and return its report: None if there is none, {} if it is damaged."""
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
    """Return the content of a file of a machine, of any size; empty if there is no such file."""
    data = bytearray()
    while len(data) < MAX_REPORT_BYTES:
        command = f"tail -c +{len(data) + 1} -- {shlex.quote(path)} | head -c {CHUNK}"
        chunk = machine.run(command, seconds=READ_SECONDS).stdout
        data += chunk
        if len(chunk) < CHUNK:
            break
    return bytes(data)


def outcome_of(name: str, outcomes: dict[str, TestOutcome]) -> TestOutcome:
    """Return the outcome of a test, or `MISSING` if it did not run.

    Several hundred names in SWE-bench Verified are truncated within their parameters. Such a name refers to all tests
    with that prefix, if they agree on whether they passed.
    """
    if name in outcomes:
        return outcomes[name]
    if name.count("[") > name.count("]"):
        found = [outcome for whole, outcome in outcomes.items() if whole.startswith(name)]
        if found and len({outcome in PASSED for outcome in found}) == 1:
            return found[0]
    return TestOutcome.MISSING
