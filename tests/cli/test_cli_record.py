"""`cwm record` keeps what it recorded however the process ends, and writes wherever its output leads."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.cli import main

CWM = (sys.executable, "-m", "cwm_core")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recorded(code, *options, output="program.cwmtrace"):
    """The exit code and standard error of recording a program, which is written to `program.py`."""
    Path("program.py").write_text(code)
    command = [*CWM, "record", "program.py", "-o", output, *options]
    options = {"capture_output": True, "text": True, "timeout": 60}
    # Under nohup, children would ignore SIGHUP.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    done = subprocess.run(command, check=False, **options)
    return done.returncode, done.stderr


# ---- ends of the process

ENDS = {
    "os._exit": ("import os\nx = 1\nos._exit(7)\n", "os._exit", 7),
    "os._exit in a function": ("import os\ndef f():\n    os._exit(status=3)\nf()\n", "os._exit", 3),
    "os._exit by another name": ("from posix import _exit as leave\nleave(4)\n", "os._exit", 4),
    "os._exit in a thread": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(5,)).start()\ntime.sleep(30)\n",
        "os._exit",
        5,
    ),
    "os.abort": ("import os\nos.abort()\n", "os.abort", -signal.SIGABRT),
    "os.execv": ("import os\nos.execv('/bin/true', ['true'])\n", "os.execv", 0),
    "os.execvp": ("import os\nos.execvpe('true', ['true'], os.environ)\n", "os.execve", 0),
    **{
        name: (f"import os, signal\nos.kill(os.getpid(), signal.{name})\n", name, -getattr(signal, name))
        for name in ("SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGABRT", "SIGRTMIN")
    },
    "a real-time signal": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGRTMIN + 2)\n",
        "SIGRTMIN+2",
        -signal.SIGRTMIN - 2,
    ),
    "an alarm": ("import signal, time\nsignal.alarm(1)\ntime.sleep(30)\n", "SIGALRM", -signal.SIGALRM),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_trace_is_kept_when_the_process_ends(name, cwd):
    code, reason, status = ENDS[name]
    code_of_exit, said = recorded(code)
    assert code_of_exit == status
    trace = cwm.Trace.load("program.cwmtrace")
    assert trace.truncated == reason and trace.exception is None is trace.result
    assert f"recording ended by {reason}" in said
    assert trace.context.count("START_OF_TRACE") == 1
    assert trace.frames[-1].line in code.splitlines(keepends=True)[-2:]


def test_the_kept_trace_has_everything_before_the_end(cwd):
    before = "x = [1]\nfor i in range(3):\n    x.append(i)\n"
    recorded(before + "import os\nos._exit(0)\n")
    ended = cwm.Trace.load("program.cwmtrace")
    Path("program.py").write_text(before + "import os\nos.getpid()\n")
    frames = cwm.Recorder().record_file("program.py").frames
    assert [(f.event, f.locals) for f in ended.frames] == [(f.event, f.locals) for f in frames][: len(ended)]


def test_a_signal_from_outside(cwd):
    Path("program.py").write_text("import time\nprint('begun', flush=True)\nx = 1\ntime.sleep(30)\n")
    with subprocess.Popen([*CWM, "record", "program.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    trace = cwm.Trace.load("program.cwmtrace")
    assert trace.truncated == "SIGTERM" and trace.frames[-1].line == "time.sleep(30)\n"


def test_ctrl_c_from_outside(cwd):
    Path("program.py").write_text("import time\nprint('begun', flush=True)\nwhile True:\n    time.sleep(0.01)\n")
    with subprocess.Popen([*CWM, "record", "program.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert cwm.Trace.load("program.cwmtrace").exception == "KeyboardInterrupt()"


def test_programs_with_handlers_of_their_own_are_left_alone(cwd):
    code = (
        "import os, signal\nold = signal.getsignal(signal.SIGTERM)\nseen = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: seen.append(1))\nos.kill(os.getpid(), signal.SIGTERM)\nx = 1\n"
    )
    assert recorded(code)[0] == 0
    trace = cwm.Trace.load("program.cwmtrace")
    state = trace.state(len(trace) - 2)
    assert state["old"] == "<Handlers.SIG_DFL: 0>" and state["seen"] == "[1]" and trace.truncated is None


def test_an_ignored_signal_stays_ignored(cwd):
    Path("program.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nx = 1\n")
    shell = f"trap '' HUP; {shlex.quote(sys.executable)} -m cwm_core record program.py"
    assert subprocess.run(["sh", "-c", shell], check=False, capture_output=True, timeout=60).returncode == 0
    assert cwm.Trace.load("program.cwmtrace").truncated is None


def test_a_signal_while_a_repr_runs(cwd):
    code = (
        "import os, signal\nclass R:\n    def __repr__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return 'R'\nr = R()\nx = 1\n"
    )
    assert recorded(code)[0] == -signal.SIGTERM
    trace = cwm.Trace.load("program.cwmtrace")
    assert len(trace) > 3 and trace.frames[-1].event == "return"


def test_a_copy_of_the_process_keeps_nothing(cwd):
    code = (
        "import os\nfor end in (os._exit, exit):\n    child = os.fork()\n    if child == 0:\n        end(0)\n"
        "    os.waitpid(child, 0)\nx = 1\n"
    )
    status, said = recorded(code)
    assert status == 0 and said.count("program.cwmtrace: ") == 1
    assert cwm.Trace.load("program.cwmtrace").result == "None"


def test_options_and_stores_apply_to_kept_traces(cwd):
    code = "import os\ndef f():\n    os._exit(0)\nf()\n"
    recorded(code, "--calls-only", output="s.cwmtraces")
    (entry,) = cwm.TraceReader("s.cwmtraces").entries()
    assert entry.metadata["outcome"] == "truncated" and entry.metadata["source"] == "program.py"
    assert [frame.event for frame in entry.trace.frames] == ["call", "call"]


# ---- --call


def test_the_main_part_runs_unless_the_file_is_a_module(cwd, capsys):
    code = "import sys\ndef f():\n    return __name__\nif __name__ == '__main__':\n    sys.exit(f())\n"
    Path("program.py").write_text(code)
    assert main(["record", "program.py", "--call", "f()"]) == 1
    assert "raised SystemExit('__main__') before the call" in (said := capsys.readouterr().err)
    assert "--as-module" in said
    assert main(["record", "program.py", "--call", "f()", "--as-module"]) == 0
    assert cwm.Trace.load("program.cwmtrace").result == "'program'"
    with pytest.raises(SystemExit):
        main(["record", "program.py", "--as-module"])
    assert "--as-module requires --call" in capsys.readouterr().err


def test_lines_of_a_call_are_numbered_as_in_the_file(cwd, capsys):
    Path("program.py").write_text("import sys\n\ndef f():\n    return __file__\n")
    assert main(["record", "program.py", "--call", "f()"]) == 0
    trace = cwm.Trace.load("program.cwmtrace")
    assert [frame.lineno for frame in trace.frames] == [6, 7, 3, 4, 4, 7]
    assert trace.result == repr(str(cwd / "program.py"))
    capsys.readouterr()
    assert main(["view", "program.cwmtrace", "--start", "2", "--limit", "1"]) == 0
    assert " 3  def f():" in capsys.readouterr().out


# ---- outputs


@pytest.fixture
def stored(cwd):
    """Return what `cwm record` writes for the program in `program.py`."""
    Path("program.py").write_text("x = 1\n")
    assert main(["record", "program.py", "-o", "expected.cwmtrace"]) == 0
    return Path("expected.cwmtrace").read_bytes()


def through(fifo, work):
    """Return what a reader receives from a FIFO while `work` runs."""
    os.mkfifo(fifo)
    got = []
    reader = threading.Thread(target=lambda: got.append(Path(fifo).read_bytes()), daemon=True)
    reader.start()
    work()
    reader.join(10)
    assert stat.S_ISFIFO(os.stat(fifo).st_mode)
    return got[0]


def test_a_trace_is_written_through_devices_and_fifos(stored):
    assert through("pipe", lambda: main(["record", "program.py", "-o", "pipe"])) == stored
    device = os.stat(os.devnull)
    assert main(["record", "program.py", "-o", os.devnull]) == 0
    cwm.Trace.load("expected.cwmtrace").save(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and os.stat(os.devnull).st_rdev == device.st_rdev
    done = subprocess.run(
        [*CWM, "record", "program.py", "-o", "/dev/stdout"], check=False, capture_output=True, timeout=60
    )
    assert done.stdout == stored


def test_a_trace_follows_links_and_permissions(stored):
    Path("folder").mkdir()
    Path("link").symlink_to("folder/new")
    old = os.umask(0o027)
    try:
        for _ in range(2):  # a link to nothing, and to a file
            assert main(["record", "program.py", "-o", "link"]) == 0
            assert Path("link").is_symlink() and Path("folder/new").read_bytes() == stored
            assert stat.S_IMODE(Path("folder/new").stat().st_mode) == 0o640
    finally:
        os.umask(old)
    Path("folder/new").chmod(0o600)
    cwm.Trace.load("link").save("link")
    assert stat.S_IMODE(Path("folder/new").stat().st_mode) == 0o600
    assert os.listdir("folder") == ["new"]


def test_a_folder_as_output_is_refused_before_the_program_runs(stored, capsys):
    Path("folder").mkdir()
    Path("program.py").write_text("open('ran', 'w')\n")
    assert main(["record", "program.py", "-o", "folder"]) == 1
    assert "folder" in capsys.readouterr().err and not Path("ran").exists()


def test_a_page_goes_through_links_and_fifos(stored):
    assert main(["view", "expected.cwmtrace", "--html", "page.html"]) == 0
    Path("link.html").symlink_to("other.html")
    assert main(["view", "expected.cwmtrace", "--html", "link.html"]) == 0
    assert Path("link.html").is_symlink() and Path("other.html").read_bytes() == Path("page.html").read_bytes()
    piped = through("pipe", lambda: main(["view", "expected.cwmtrace", "--html", "pipe"]))
    assert piped == Path("page.html").read_bytes()


def test_stores_and_exports_follow_links(stored, capsys):
    Path("link.cwmtraces").symlink_to("store.cwmtraces")
    assert main(["import", "expected.cwmtrace", "-o", "link.cwmtraces"]) == 0
    assert Path("link.cwmtraces").is_symlink() and len(cwm.TraceReader("store.cwmtraces")) == 1
    assert main(["record", "program.py", "-o", "link.cwmtraces"]) == 0
    assert Path("link.cwmtraces").is_symlink() and len(cwm.TraceReader("store.cwmtraces")) == 2
    Path("link.jsonl").symlink_to("rows.jsonl")
    assert main(["export", "store.cwmtraces", "-o", "link.jsonl"]) == 0
    assert Path("link.jsonl").is_symlink() and Path("rows.jsonl").read_text().count("\n") == 2
    piped = through("pipe.jsonl", lambda: main(["export", "store.cwmtraces", "-o", "pipe.jsonl"]))
    assert piped == Path("rows.jsonl").read_bytes()
    for target in ("link.jsonl", "rows.jsonl"):
        assert main(["export", "store.cwmtraces", "-o", target]) == 1
        assert "never overwritten" in capsys.readouterr().err


def test_devices_and_fifos_hold_no_store(stored, capsys):
    os.mkfifo("fifo.cwmtraces")
    Path("null.cwmtraces").symlink_to(os.devnull)
    for name in ("fifo.cwmtraces", "null.cwmtraces"):
        for argv in (["record", "program.py", "-o", name], ["import", "expected.cwmtrace", "-o", name]):
            assert main(argv) == 1
            assert "expected a regular file" in capsys.readouterr().err
    assert stat.S_ISFIFO(os.stat("fifo.cwmtraces").st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_module_is_recorded_as_python_m_runs_it(cwd, capsys):
    Path("pkg").mkdir()
    Path("pkg/__init__.py").write_text("")
    Path("pkg/__main__.py").write_text("import sys\nargs = sys.argv[1:]\ndone = True\n")
    assert main(["record", "-m", "pkg", "--", "-v", "x"]) == 0
    assert cwm.Trace.load("pkg.cwmtrace").state(3)["args"] == "['-v', 'x']"
    assert main(["record", "-m", "absent"]) == 1
    assert "absent: expected a module, or a package with a __main__ module" in capsys.readouterr().err
    for argv in (["record"], ["record", "-m", "pkg", "file.py"], ["record", "-m", "pkg", "--call", "f()"]):
        with pytest.raises(SystemExit) as error:
            main(argv)
        assert error.value.code == 2
        assert "usage: cwm record" in capsys.readouterr().err


def test_an_unknown_option_shows_the_usage_of_its_verb(capsys):
    for verb in ("record", "corpus functions"):
        with pytest.raises(SystemExit):
            main(
                [*verb.split(), "x", "--no-such-option", *(["-o", "y", "--tokenizer", "z"] if "corpus" in verb else [])]
            )
        said = capsys.readouterr().err
        assert f"usage: cwm {verb} " in said and "unrecognized arguments: --no-such-option" in said
