"""Whether a submitted diff does what a task asked for, and how near it is to the known solution."""

import secrets
import shlex
from dataclasses import dataclass, field
from typing import Literal

from .. import machines
from ..machines import Backend, Machine
from .outcomes import PASSED, Outcome, TestRun, outcome_of, run_tests
from .patches import similarity
from .tasks import Task


@dataclass(frozen=True)
class Reward:
    """A number between 0 and 1, why it is that, and what else is known.

    `fail_to_pass` and `pass_to_pass` have the outcomes of the task's tests, empty where they were not run or none are
    named. `similarity` is that of the diff to the task's solution; None without a solution.
    """

    value: float
    reason: str
    fail_to_pass: dict[str, Outcome] = field(default_factory=dict)
    pass_to_pass: dict[str, Outcome] = field(default_factory=dict)
    similarity: float | None = None


def judge(
    task: Task, diff: bytes | None, backend: Backend, *, seconds: float, by: Literal["tests", "similarity"] = "tests"
) -> Reward:
    """Apply the diff in a fresh machine and run the task's tests: 1.0 if they pass, else 0.0.

    Protected paths are put back as they were before the diff, then the task's `test_patch` is applied. Tests to be
    passed must pass or fail as expected (xfail); of those that passed before, a skipped one is no regression, as in
    SWE-bench's own grading.

    With `by` "similarity" nothing is run, and the value is `patches.similarity` to the task's solution. Each command
    may take `seconds`. Raises as `Backend.open`, and ValueError for "similarity" without a solution.
    """
    if by == "similarity" and not task.solution:
        raise ValueError(f"task {task.name} has no solution to compare with")
    if diff is None:
        return Reward(0.0, "nothing was submitted", similarity=0.0 if task.solution else None)
    alike = similarity(diff.decode(errors="surrogateescape"), task.solution) if task.solution else None
    if by == "similarity":
        return Reward(alike or 0.0, "the similarity to the solution", similarity=alike)
    machine = backend.open(task)
    try:
        if problem := _apply(machine, task, diff, seconds):
            return Reward(0.0, problem, similarity=alike)
        if not task.fail_to_pass and not task.pass_to_pass:
            result = machine.run(task.test_command, seconds=seconds)
            passed = result.exit_code == 0
            return Reward(
                float(passed), "the tests passed" if passed else _failure("the tests failed", result), {}, {}, alike
            )
        names = (*task.fail_to_pass, *task.pass_to_pass)
        files = dict.fromkeys(name.partition("::")[0] for name in names)
        return _graded(task, run_tests(machine, task.test_command, files=files, seconds=seconds), alike)
    finally:
        machine.close()


def _apply(machine: Machine, task: Task, diff: bytes, seconds: float) -> str | None:
    """Bring the machine into the state in which tests run; why that is not possible, or None."""
    names = shlex.join(task.protected)
    kept = f".cwm-{secrets.token_hex(8)}.tar"  # a name that no diff can know
    keep = f"tar -cf {kept} --ignore-failed-read -- {names}"
    put_back = f"rm -rf -- {names} && tar -xf {kept} && rm {kept}"
    apply = "git apply --whitespace=nowarn -"
    steps = [
        ("the protected paths could not be kept", keep if names else "", b""),
        ("the diff does not apply", apply, diff),
        ("the protected paths could not be put back", put_back if names else "", b""),
        ("the task's own tests do not apply", apply, task.test_patch.encode(errors="surrogateescape")),
    ]
    for failure, command, stdin in steps:
        if not command or (command == apply and not stdin.strip() and stdin is not diff):
            continue
        result = machine.run(command, stdin=stdin, seconds=seconds)
        if result.exit_code != 0:
            return _failure(failure, result)
    return None


def _graded(task: Task, run: TestRun, alike: float | None) -> Reward:
    if run.problem:
        return Reward(0.0, _failure(f"the tests failed: {run.problem}", run.completed), similarity=alike)
    fail_to_pass = {name: outcome_of(name, run.outcomes) for name in task.fail_to_pass}
    pass_to_pass = {name: outcome_of(name, run.outcomes) for name in task.pass_to_pass}
    still = [name for name, outcome in fail_to_pass.items() if outcome not in PASSED]
    broken = [name for name, outcome in pass_to_pass.items() if outcome not in (*PASSED, "skipped")]
    if not still and not broken:
        return Reward(1.0, "the tests passed", fail_to_pass, pass_to_pass, alike)
    counts = [
        f"{len(names)} of {len(all_names)} tests that {what}"
        for names, all_names, what in (
            (still, fail_to_pass, "were to pass do not"),
            (broken, pass_to_pass, "passed before no longer do"),
        )
        if names
    ]
    reason = f"the tests failed: {' and '.join(counts)}, first {(still or broken)[0]}"
    return Reward(0.0, reason, fail_to_pass, pass_to_pass, alike)


def _failure(what: str, result: machines.Completed) -> str:
    end = f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code}"
    said = (result.stdout + result.stderr)[-2000:].decode(errors="backslashreplace")
    return f"{what} ({end}): {said}"
