"""Decide whether a solution passes a test, in a process of its own with real descriptors rather than from the
recording.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from .. import machines
from ..machines.programs import evaluate_call
from ..trace import Trace
from .contests import accepts_output, accepts_value, ended_well
from .failures import CLOCK, CPU_CLOCK
from .reasons import DropReason
from .sample import Drop
from .sandbox import ONE_THREAD
from .unit import Unit

_PROGRAM = "main.py"
_UNRECORDED = "run without the recorder"
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([^']{1,100})'\s*$")


@dataclass(frozen=True)
class Judge:
    """Runs solutions without the recorder.

    A program runs as `python main.py`, with real descriptors for its input and output and with the installed packages.
    A function is called in such a process. A recording that printed something else or ended differently is dropped: the
    recorder cannot follow output below `sys.stdout`, for example.
    """

    limits: machines.Limits
    """Limits of a run."""
    sandbox: machines.Sandbox = "bubblewrap"
    """Kind of isolation."""

    def __call__(self, unit: Unit, number: int, trace: Trace) -> bool | Drop:
        """Return whether a run passes its test, or why its recording is dropped.

        The reasons are `CLOCK`, `NOT_INSTALLED`, `RECORDER_DISAGREES`, `NOT_COMPARABLE`, and `ended by NAME` for
        another limit.

        Args:
            unit: The solution.
            number: Number of the run in the unit.
            trace: Recording of the run.
        """
        return (self._judge_call if unit.calls else self._judge_program)(unit, number, trace)

    def _judge_program(self, unit: Unit, number: int, trace: Trace) -> bool | Drop:
        done = run_program(unit.code, unit.inputs[number], self.limits, self.sandbox)
        if done.timed_out or done.signal == signal.SIGXCPU:
            return Drop(DropReason.CLOCK, _UNRECORDED)
        if done.exceeded is not None or done.truncated:
            return Drop(f"ended by {done.exceeded or 'output_bytes'}", _UNRECORDED)
        printed, error = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        well = done.exit_code == 0
        if not well and (missing := _MISSING.search(error)):
            return Drop(DropReason.NOT_INSTALLED, missing[1])
        if well != ended_well(trace):
            return Drop(DropReason.RECORDER_DISAGREES, f"{trace.exception or 'no exception'} | {_ending(done)}")
        if (recorded := (trace.output or "").split()) != printed.split():
            return Drop(DropReason.RECORDER_DISAGREES, f"printed {len(recorded)} words | {len(printed.split())}")
        return well and accepts_output(printed, unit.outputs[number], unit.tolerance)

    def _judge_call(self, unit: Unit, number: int, trace: Trace) -> bool | Drop:
        outcome = evaluate_call(unit.code, unit.calls[number], limits=self.limits, sandbox=self.sandbox)
        if outcome.reason in (str(CLOCK), str(CPU_CLOCK)):
            return Drop(DropReason.CLOCK, _UNRECORDED)
        raised = outcome.reason == "raised"
        if (outcome.value is None and not raised) or raised != (trace.exception is not None):
            how = (trace.exception or "returned", outcome.reason or "returned")
            return Drop(DropReason.RECORDER_DISAGREES, " | ".join(how))
        if outcome.value is None:
            missing = (trace.exception or "").startswith("ModuleNotFoundError(")
            return Drop(DropReason.NOT_INSTALLED, str(trace.exception)) if missing else False
        accepted = accepts_value(outcome.value, unit.outputs[number], unit.tolerance)
        return Drop(DropReason.NOT_COMPARABLE, outcome.value[:100]) if accepted is None else accepted


def run_program(code: str, stdin: str, limits: machines.Limits, sandbox: machines.Sandbox) -> machines.Completed:
    """Run a program as `python main.py` in a sandbox, with the installed packages and real descriptors.

    Args:
        code: Text of the program.
        stdin: Its standard input.
        limits: Limits of the run. Up to `output_bytes` of its output are complete.
        sandbox: Kind of isolation.
    """
    folder = tempfile.mkdtemp(prefix="cwm-")
    try:
        Path(folder, _PROGRAM).write_bytes(code.encode("utf-8", "surrogatepass"))
        return machines.run(
            [sys.executable, "-s", "-B", _PROGRAM],
            stdin=stdin.encode("utf-8", "surrogatepass"),
            limits=replace(limits, output_bytes=2 * limits.output_bytes),  # half of it keeps the beginning
            folder=folder,
            sandbox=sandbox,
            env={"PYTHONHASHSEED": "0", **ONE_THREAD},
        )
    finally:
        machines.remove_tree(folder)


def _ending(done: machines.Completed) -> str:
    return f"exit code {done.exit_code}" if done.signal is None else f"signal {done.signal}"
