"""Whether a submitted diff does what a task asked for: its tests in a fresh machine."""

import secrets
import shlex
from dataclasses import dataclass

from .. import sandbox
from .backends import Backend
from .tasks import Task


@dataclass(frozen=True)
class Reward:
    """A number between 0 and 1, and why it is that."""

    value: float
    reason: str


def judge(task: Task, diff: bytes | None, backend: Backend, *, seconds: float) -> Reward:
    """Apply the diff in a fresh machine, put protected paths back, and run the tests: 1.0 if they pass, else 0.0.

    Each command may take `seconds`. Raises as `Backend.open`.
    """
    if diff is None:
        return Reward(0.0, "nothing was submitted")
    names = shlex.join(task.protected)
    kept = f".cwm-{secrets.token_hex(8)}.tar"  # a name that no diff can know
    steps = [
        ("the protected paths could not be kept", f"tar -cf {kept} --ignore-failed-read -- {names}", b""),
        ("the diff does not apply", "git apply --whitespace=nowarn -", diff),
        ("the protected paths could not be put back", f"rm -rf -- {names} && tar -xf {kept} && rm {kept}", b""),
        ("the tests failed", task.test_command, b""),
    ]
    machine = backend.open(task)
    try:
        for failure, command, stdin in steps if names else steps[1::2]:
            result = machine.run(command, stdin=stdin, seconds=seconds)
            if result.exit_code != 0:
                return Reward(0.0, f"{failure} ({_end(result)}): {_tail(result)}")
        return Reward(1.0, "the tests passed")
    finally:
        machine.close()


def _end(result: sandbox.Completed) -> str:
    return f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code}"


def _tail(result: sandbox.Completed) -> str:
    return (result.stdout + result.stderr)[-2000:].decode(errors="backslashreplace")
