"""`cwm debug` as a prompt: its commands, what it shows, and what it says of mistakes."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading

import cwm_core as cwm
import pytest
from cwm_core.cli import debug, main
from debugging import TOKENIZER, debugger

pytestmark = pytest.mark.torch
SANDBOX = "" if cwm.machines.bubblewrap_refusal() is None else "process"


@pytest.fixture
def session(monkeypatch, capsys):
    """Run commands in a debugger whose model knows the program; return the lines that they print."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*commands, **options):
        subject, _ = debugger(**options)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in commands)))
        debug.Prompt(subject, "prog.py").run()
        return capsys.readouterr().out.splitlines()

    return run


def test_stepping(session):
    assert session("s", "n", "", "q", "s") == [
        "> prog.py:21 in main  frame 0 call  given",
        "-> def main():",
        "> prog.py:22 in main  frame 1 line  p=0.748",
        "-> return f([1, 0, 3])",
        "> prog.py:22 in main  frame 53 return  p=0.733",
        "-> return f([1, 0, 3])",
        "   returned 7",
        "> prog.py:22 in main  frame 53 return  p=0.733",
        "-> return f([1, 0, 3])",
        "   returned 7",
        "the predicted program has ended",
    ]


def test_the_commands_of_pdb(session):
    commands = ["b 4", "c", "w", "p n", "p", "u", "p total", "p xs[1]", "d", "r", "back 2", "cl 4", "c 15", "b 4", "rc"]
    assert session(*commands)[2:] == [
        "prog.py:4, reached 0 times",
        "> prog.py:4 in g  frame 9 line  p=0.733",
        "-> return n + 1",
        "  prog.py:22 in main",
        "  prog.py:10 in f",
        "> prog.py:4 in g",
        "1",
        "n = 1",
        "> prog.py:10 in f",
        "0",
        "0",
        "> prog.py:4 in g",
        "> prog.py:4 in g  frame 10 return  p=0.787",
        "-> return n + 1",
        "   returned 2",
        "> prog.py:2 in g  frame 8 line  p=0.748",
        "-> if n == 0:",
        "> prog.py:15 in f  frame 51 line  p=0.502",
        "-> return total",
        "prog.py:4, reached 0 times",
        "> prog.py:4 in g  frame 35 line  p=0.733",
        "-> return n + 1",
    ]


def test_the_program_is_listed(session):
    assert session("b 2", "c", "l", "l 21")[5:] == [
        " 1     def g(n):",
        " 2 B->     if n == 0:",
        " 3             raise ValueError(n)",
        " 4         return n + 1",
        " 5",
        " 6     def f(xs):",
        " 7         total = 0",
        "16",
        "17     def gen(n):",
        "18         yield n",
        "19         yield n + 1",
        "20",
        "21     def main():",
        "22         return f([1, 0, 3])",
    ]


def test_set_restart_and_verify(session):
    out = session("c 8", "set total = 41", "s", "p total", f"verify {SANDBOX}", "restart first 5 0", "restart", "pp xs")
    assert "> prog.py:8 in f  frame 4 line  set by hand" in out and "   total = 41" in out and "41" in out
    at = out.index("frame 4 differs from the real execution: total")
    assert out[at + 1] == "  total: predicted 41, actual 0"
    assert "sample 5 at temperature 0" in out and "sample 6 at temperature 1" in out
    assert out[-1] == "*** no variable 'xs' here; variables: none"


def test_mistakes_are_reported_and_the_session_continues(session):
    for command, says in (
        ("frobnicate 3", "*** unknown command 'frobnicate'; type help for a list"),
        ("b 5", "*** no frame can be on line 5: it has no code inside a function"),
        ("b x", "*** expected a whole number of at least 0, got 'x'"),
        ("cl 3", "*** no breakpoint at line 3"),
        ("p n + 1", "*** 'n + 1': expected a variable or an element of one; expressions do not work"),
        ("set n", "*** expected set NAME = VALUE"),
        ("set n = 1", "*** no variable 'n' here; variables: none"),
        ("u", "*** there is no level 1 of the stack"),
        ("d", "*** there is no level -1 of the stack"),
        ("restart x", "*** expected a whole number of at least 0, got 'x'"),
        ("restart 1 nan", "*** expected a number of at least 0, got 'nan'"),
        ("verify really", "*** expected verify or verify process, which does not isolate the program"),
        ("help frobnicate", "*** unknown command 'frobnicate'"),
        ("*", "*** unknown command '*'; type help for a list"),
    ):
        assert session(command, "s")[2:] == [
            says,
            "> prog.py:22 in main  frame 1 line  p=0.748",
            "-> return f([1, 0, 3])",
        ]


def test_help(session):
    out = session("help", "help s")
    assert out[2].startswith("step, s") and out[-1].startswith("step, s") and len(out) == 2 + len(debug._COMMANDS) + 1
    for name in debug._COMMANDS:
        assert getattr(debug.Prompt, f"do_{name}").__doc__
    assert set(debug._SHORT.values()) <= set(debug._COMMANDS)


def test_output_is_bounded_and_harmless(session):
    code = "def f(n):\n    return n\n"
    out = session("c 2", "p n", "p", code=code, call="f('\\x1b[2J' + 'x' * 900)")
    assert "\x1b" not in "".join(out) and "\\x1b" in "".join(out)
    assert all(len(line) <= 100 for line in out if "n = " in line)


def test_a_limit_and_malformed_frames_are_said(session):
    out = session("c", "c 999", max_frames=3)
    assert "3 frames predicted; repeat the command to continue" in out


def test_interrupting(monkeypatch, capsys):
    from test_debugger import Endless

    subject = cwm.debugger.Debugger(Endless(), TOKENIZER, "def f():\n    x\n", "f()", max_frames=10**9)
    monkeypatch.setattr(sys, "stdin", io.StringIO("c\np\nq\n"))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    before = signal.getsignal(signal.SIGINT)
    debug.Prompt(subject, "prog.py").run()
    assert capsys.readouterr().out.endswith("interrupted; repeat the command to continue\n")
    assert signal.getsignal(signal.SIGINT) is before


# ---- the whole command


def test_the_command_with_a_model(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("s\nrestart 3\ns\nw\n"))
    # No frame has so few tokens.
    assert main(["debug", "model", "prog.py", "--call", "f([1])", "--max-frame-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    out = out.splitlines()
    assert err == "" and out[0] == "> prog.py:21 in main  frame 0 call  given" and out[-1] == "> prog.py:21 in main"
    said = ("the prediction for frame 1 is not a frame", "the predicted program has ended")
    assert sum(line.startswith(said) for line in out) == 2


def test_wrong_usage_of_the_command(model, capsys):
    for argv, says in (
        (["debug"], "FILE and --call are required"),
        (["debug", "model", "prog.py"], "FILE and --call are required"),
        (["debug", "model", "prog.py", "--call", "f(1)", "--port", "1"], "--port needs --dap"),
        (["debug", "model", "prog.py", "--call", "f(1)", "--temperature", "-1"], "expected a number of at least 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and says in capsys.readouterr().err
    for argv, says in (
        (["debug", "nowhere", "prog.py", "--call", "f(1)"], "nowhere"),
        (["debug", "model", "nowhere.py", "--call", "f(1)"], "nowhere.py"),
        (["debug", "model", "prog.py", "--call", "f("], "--call, line 1"),
        (
            ["debug", "m", "prog.py", "--call", "f(1)", "--endpoint", "http://localhost:1"],
            "--endpoint needs --tokenizer",
        ),
    ):
        assert main(argv) == 1
        out, err = capsys.readouterr()
        assert out == "" and says in err and err.count("\n") == 1
