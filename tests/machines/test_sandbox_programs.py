"""Programs that are not trusted, in a sandbox: recordings equal those made here, and hostile programs lose."""

import cwm_core as cwm
import pytest
from cwm_core import machines
from cwm_core.machines import Limits, programs
from cwm_core.machines.programs import Outcome, evaluate_call, evaluate_with_arguments, record_program
from evaluation_problems import HARMLESS, HOSTILE, PROBLEMS

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
LIMITS = Limits(seconds=2, cpu_seconds=2, processes=16, memory_bytes=1 << 28)


def recorded(code, call, max_frames=1000):
    return record_program(code, call, max_frames=max_frames, limits=LIMITS, sandbox=SANDBOX)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_recordings_are_those_made_here(problem, capsys):
    here = cwm.record_source(problem.code, problem.call)
    there = recorded(problem.code, problem.call)
    assert there == Outcome(here) and there.value.result == problem.output


@pytest.mark.parametrize("reason", HOSTILE)
def test_hostile_programs_are_left_out(reason):
    outcome = recorded(HOSTILE[reason], "f(1)")
    if reason == "limit: max_frames":
        assert outcome.value.truncated == "max_frames" and len(outcome.value) == 1000
    else:
        assert outcome == Outcome(None, reason)


@pytest.mark.parametrize("problem", HARMLESS, ids=lambda problem: problem.id)
def test_programs_that_misbehave_are_recorded(problem):
    assert recorded(problem.code, problem.call).value.result == "1"


def test_exceptions_of_programs_are_recorded():
    for what in ("ValueError(1)", "SystemExit(0)", "KeyboardInterrupt()"):
        assert recorded(f"def f(x):\n    raise {what}\n", "f(1)").value.exception == what


def test_programs_import_from_the_folders_given(tmp_path):
    (tmp_path / "beside.py").write_text("number = 7\n")
    code = "import beside\ndef f(x):\n    return beside.number\n"
    assert recorded(code, "f(1)") == Outcome(None, "raised before the call")
    outcome = record_program(code, "f(1)", max_frames=99, limits=LIMITS, sandbox=SANDBOX, paths=[str(tmp_path)])
    assert outcome.value.result == "7"


def test_another_trace_is_not_taken(monkeypatch):
    other = cwm.record_source("def f(x):\n    return 2\n", "f(1)").to_bytes()
    forge = f"import os\ndef f(x):\n    os.write(3, b'A' + {other!r})\n    os._exit(0)\n"
    assert recorded(forge, "f(1)") == Outcome(None, "no whole trace")


def test_a_trace_that_would_unpack_to_too_much_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(programs, "_MAX_TRACE_BYTES", 10)
    trace = cwm.record_source(PROBLEMS[0].code, PROBLEMS[0].call).to_bytes()
    forge = f"import os\ndef f(a, b):\n    os.write(3, b'A' + {trace!r})\n    os._exit(0)\n"
    assert recorded(forge, "f(1, 2)") == Outcome(None, "trace too large")


def value_of(code, arguments):
    return evaluate_with_arguments(code, arguments, limits=LIMITS, sandbox=SANDBOX)


@pytest.mark.parametrize("problem", PROBLEMS[:6], ids=lambda problem: problem.id)
def test_values_are_those_of_the_call(problem):
    assert evaluate_call(problem.code, problem.call, limits=LIMITS, sandbox=SANDBOX) == Outcome(problem.output)
    assert value_of(problem.code, problem.input) == Outcome(problem.output)


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        ("[1] * 3", Outcome("([1, 1, 1], 2)")),
        ("*[1], **{'b': 3}", Outcome("(1, 3)")),
        ("float('nan'), float('inf')", Outcome("(nan, inf)")),
        ("X, b=X + 1", Outcome("(7, 8)")),
        ("'(', b=')'", Outcome("('(', ')')")),
        ("", Outcome(None, "raised")),
        ("nothing", Outcome(None, "raised")),
        ("1) or f(2", Outcome(None, "not arguments")),
        ("1)(2", Outcome(None, "not arguments")),
        ("1)\nf(2", Outcome(None, "not arguments")),
        ("1) # ", Outcome(None, "not arguments")),
        ("lambda: 1", Outcome(None, "not literals")),
        ("type('Any', (), {'__eq__': lambda *_: True, '__repr__': lambda _: '(1, 2)'})()", Outcome("((1, 2), 2)")),
        ("type('Any', (), {'__repr__': lambda _: 'exit()'})()", Outcome(None, "not literals")),
        ("__import__('os')._exit(5)", Outcome(None, "ended by exit code 5")),
        ("__import__('os').write(3, b'A99') and __import__('os')._exit(0)", Outcome(None, "not literals")),
        ("__import__('time').sleep(60)", Outcome(None, "limit: seconds")),
        ("'x' * 10 ** 7", Outcome(None, "answer too large")),
    ],
)
def test_arguments_are_data_when_the_program_runs(arguments, outcome):
    assert value_of("X = 7\ndef f(a, b=2):\n    return a, b\n", arguments) == outcome


def test_a_refused_sandbox_ends_the_evaluation(monkeypatch):
    monkeypatch.setattr(machines.bubblewrap, "refusal", lambda: "bwrap is not on PATH")
    with pytest.raises(machines.SandboxError, match="not possible here"):
        programs.check_sandbox("bubblewrap")
