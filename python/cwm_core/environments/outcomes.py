"""Running a repository's tests in a machine, and the outcome of each."""

import json
import secrets
import shlex
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import machines
from ..machines import Machine
from . import _report

Outcome = Literal["passed", "xfailed", "skipped", "failed", "error", "missing"]
PASSED = ("passed", "xfailed")

PLUGIN = Path(_report.__file__).read_bytes()
CHUNK = 32 << 10  # bytes read at a time: less than any backend keeps of a command's output
MAX_REPORT_BYTES = 64 << 20
READ_SECONDS = 60.0

# The tests' own output goes to stderr, so that stdout is the report's alone.
SCRIPT = """
box=$(mktemp -d) && cat > "$box/{plugin}.py" || exit 125
export PYTHONPATH="$box${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONHASHSEED={hash_seed} PYTHONDONTWRITEBYTECODE=1
export PYTEST_ADDOPTS="${{PYTEST_ADDOPTS:-}} -p {plugin} --continue-on-collection-errors"
( {command}
) </dev/null >&2
code=$?
mv "$box/report" {kept} 2>/dev/null && head -c {chunk} {kept} && [ "$(wc -c < {kept})" -ge {chunk} ] || rm -f {kept}
rm -rf "$box"
exit $code
"""


@dataclass(frozen=True)
class TestRun:
    """Outcomes by pytest's names of the tests (node ids); `problem` says why there are none."""

    __test__ = False  # for pytest, which would collect it

    outcomes: dict[str, Outcome]
    problem: str | None
    completed: machines.Completed


def run_tests(
    machine: Machine, command: str, *, files: Iterable[str] = (), seconds: float, hash_seed: int = 0
) -> TestRun:
    """Run pytest by `command`, to which `files` are appended, and tell each test's outcome.

    Needs a shell, mktemp and pytest in the machine. The report is made by a plugin that lies outside of the
    repository under a random name: nothing that a diff contains can refer to it. Code under test that seeks it out in
    its own process, or replaces parts of pytest there, can forge it.

    Hash randomization is fixed by `hash_seed`, so that equal repositories have equal outcomes.
    """
    plugin, kept = f"cwm_{secrets.token_hex(8)}", f".cwm-{secrets.token_hex(8)}"
    whole = " ".join([command, *map(shlex.quote, files)])
    script = SCRIPT.format(plugin=plugin, command=whole, kept=kept, chunk=CHUNK, hash_seed=hash_seed)
    completed = machine.run(script, stdin=PLUGIN, seconds=seconds)
    if completed.exceeded:
        return TestRun({}, f"the tests did not end: limit {completed.exceeded}", completed)
    data = completed.stdout
    if len(data) >= CHUNK:
        data += _read(machine, kept, CHUNK)
        machine.run(f"rm -f {kept}", seconds=READ_SECONDS)
    if not data:
        return TestRun({}, f"pytest made no report (exit code {completed.exit_code})", completed)
    try:
        unpacked = zlib.decompressobj().decompress(data, MAX_REPORT_BYTES)
        outcomes = {str(name): outcome for name, outcome in json.loads(unpacked).items() if outcome in _report.RANK}
    except (zlib.error, ValueError, AttributeError, RecursionError):
        return TestRun({}, "the report of the tests was damaged", completed)
    return TestRun(outcomes, None, completed)


def read_file(machine: Machine, path: str) -> bytes:
    """The content of a file of a machine, of any size; empty where there is none."""
    return _read(machine, path, 0)


def _read(machine: Machine, path: str, start: int) -> bytes:
    data = bytearray()
    while start + len(data) < MAX_REPORT_BYTES:
        command = f"tail -c +{start + len(data) + 1} -- {shlex.quote(path)} | head -c {CHUNK}"
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
