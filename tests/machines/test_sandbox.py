"""Hostile programs against every sandbox that this machine can run; the other must refuse."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.machines import Limits, SandboxError, bubblewrap

REFUSAL = machines.bubblewrap_refusal()
SANDBOXES = ["process"] if REFUSAL else ["bubblewrap", "process"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=SANDBOXES)
def sandbox(request):
    return request.param


def marked(marker: str) -> list[str]:
    """Command lines of the live processes that carry a marker."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in line and int(pid) != os.getpid():
            found.append(line.decode(errors="replace"))
    return found


def vanished(marker: str, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while marked(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_bubblewrap_is_refused_with_a_reason_where_it_is_not_possible(monkeypatch):
    if REFUSAL is None:
        monkeypatch.setattr(bubblewrap, "refusal", lambda: "bwrap is not on PATH")
    with pytest.raises(SandboxError, match=r"bubblewrap sandbox is not possible here: bwrap .*does not isolate"):
        machines.run(["true"])


def test_probe_says_that_bwrap_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not on PATH" in bubblewrap.refusal.__wrapped__()


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown sandbox 'docker'"):
        machines.run(["true"], sandbox="docker")


def test_streams_exit_code_and_input(sandbox):
    done = machines.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"\0\xff" * 500_000, sandbox=sandbox)
    assert (done.exit_code, done.signal, done.stdout, done.stderr) == (3, None, b"\0\xff" * 500_000, b"err\n")
    assert not done.timed_out
    assert not done.truncated


def test_program_that_never_reads_its_input(sandbox):
    assert machines.run(["true"], stdin=b"x" * 5_000_000, sandbox=sandbox).exit_code == 0


def test_program_that_does_not_exist(sandbox):
    done = machines.run(["no-such-program"], sandbox=sandbox)
    assert done.exit_code == 127
    assert b"no-such-program" in done.stderr


def test_missing_folder(sandbox, tmp_path):
    with pytest.raises(NotADirectoryError):
        machines.run(["true"], folder=tmp_path / "absent", sandbox=sandbox)


def test_environment_holds_nothing_of_the_caller(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    done = machines.run(["env"], env={"GIVEN": "1"}, sandbox=sandbox)
    assert b"hunter2" not in done.stdout
    assert b"GIVEN=1" in done.stdout


@linux
def test_descriptors_of_the_caller_are_closed(sandbox, tmp_path):
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        done = machines.run(["ls", "/proc/self/fd"], sandbox=sandbox)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # the last is ls's own


def test_sigpipe_and_interrupt_have_their_default_actions(sandbox):
    code = "import signal; print(signal.getsignal(signal.SIGXFSZ), signal.getsignal(signal.SIGINT))"
    assert b"default_int_handler" in machines.run_python(code, sandbox=sandbox).stdout
    assert machines.run(["bash", "-c", "yes | head -n1; exit ${PIPESTATUS[0]}"], sandbox=sandbox).exit_code == 141


def test_wall_clock_limit_even_when_sigterm_is_ignored(sandbox):
    done = machines.run(["sh", "-c", "trap '' TERM INT HUP; sleep 60 & wait; sleep 60"], limits=Limits(seconds=0.3),
                       sandbox=sandbox)  # fmt: skip
    assert done.timed_out
    assert done.signal == signal.SIGKILL
    assert done.seconds < 5


def test_cpu_limit(sandbox):
    done = machines.run_python("while True: pass", limits=Limits(seconds=10, cpu_seconds=1), sandbox=sandbox)
    assert done.signal in (signal.SIGXCPU, signal.SIGKILL)
    assert not done.timed_out


def test_endless_output_keeps_head_and_tail(sandbox):
    code = "import sys\nprint('first')\nfor i in range(10**9): print('x' * 1000, i, flush=False)"
    done = machines.run_python(code, limits=Limits(seconds=0.5, output_bytes=4000), sandbox=sandbox)
    assert done.timed_out
    assert done.truncated
    assert done.stdout.startswith(b"first\n")
    assert b"bytes left out" in done.stdout
    assert len(done.stdout) < 4100


@linux
@pytest.mark.parametrize(
    "bomb",
    [
        ":(){ :|:& };: ; sleep 60",
        "exec {python} -c 'import os\nwhile 1:\n try: os.fork(); os.setsid()\n except OSError: pass'",
        "exec {python} -c 'import threading as t, time\nwhile 1: t.Thread(target=time.sleep, args=[60]).start()'",
    ],
    ids=["pipes", "sessions", "threads"],
)
def test_fork_bomb_is_bounded(sandbox, bomb):
    limits = Limits(seconds=8, processes=60)
    command = ["bash", "-c", bomb.replace("{python}", shlex.quote(sys.executable))]
    done = machines.run(command, limits=limits, sandbox=sandbox)
    assert done.exceeded == "processes" or b"fork" in done.stderr or b"start new thread" in done.stderr
    assert done.seconds < 9


def test_memory_bomb_of_one_process(sandbox):
    limits = Limits(memory_bytes=200 << 20)
    done = machines.run_python("x = bytearray(1 << 34); print('had it')", limits=limits, sandbox=sandbox)
    assert b"MemoryError" in done.stderr or done.exceeded == "memory_bytes"
    assert b"had it" not in done.stdout


@linux
def test_memory_bomb_of_many_processes(sandbox):
    code = "import os, time\nfor _ in range(5):\n if not os.fork(): x = b'x' * (60 << 20); break\ntime.sleep(20)"
    done = machines.run_python(code, limits=Limits(memory_bytes=200 << 20), sandbox=sandbox)
    assert done.exceeded == "memory_bytes"
    assert done.seconds < 5


def test_file_size_limit(sandbox):
    done = machines.run(["sh", "-c", "head -c 5000000 /dev/zero > big"], limits=Limits(file_bytes=1 << 20),
                       sandbox=sandbox)  # fmt: skip
    assert done.exit_code != 0


@pytest.mark.parametrize("script", ["cat big > $i", "cat big >&9"], ids=["files", "deleted files"])
@linux
def test_folder_size_limit(sandbox, script, tmp_path):
    """Write files that are each below the size limit. Deleted files take space while they are open."""
    program = (
        f"head -c 8000000 /dev/urandom > big; exec 9>gone; rm gone; for i in 1 2 3 4 5 6; do {script}; done; sleep 60"
    )
    limits = Limits(seconds=30, disk_bytes=32 << 20)
    assert (
        machines.run(["bash", "-c", program], limits=limits, folder=tmp_path, sandbox=sandbox).exceeded == "disk_bytes"
    )


def test_folder_that_is_large_already_may_be_used(sandbox, tmp_path):
    (tmp_path / "large").write_bytes(bytes(40 << 20))
    limits = Limits(disk_bytes=32 << 20)
    assert machines.run(["sh", "-c", "sleep 0.1; ls"], limits=limits, folder=tmp_path, sandbox=sandbox).exit_code == 0


@linux
def test_no_process_is_left_behind(sandbox):
    marker = f"7{os.getpid()}.25"
    script = f"setsid sleep {marker} & (setsid sh -c 'sleep {marker} & sleep {marker}' &) ; nohup sleep {marker} & true"
    started = time.monotonic()
    assert machines.run(["bash", "-c", script], sandbox=sandbox).exit_code == 0
    assert time.monotonic() - started < 5
    assert marked(marker) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_caller_that_is_interrupted_or_killed(sandbox, number, tmp_path):
    marker = f"8{os.getpid()}.{number:d}"
    code = f"from cwm_core import machines; machines.run(['bash', '-c', 'setsid sleep {marker} & sleep {marker}'], "
    caller = subprocess.Popen(
        [sys.executable, "-c", code + f"sandbox={sandbox!r}, limits=machines.Limits(seconds=60))"],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 10
    while sum(line.startswith("sleep") for line in marked(marker)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    caller.send_signal(number)
    _, stderr = caller.communicate(timeout=10)
    assert vanished(marker)
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in stderr
        assert list(tmp_path.iterdir()) == []


def test_scratch_folder_is_removed_however_deep_and_closed(monkeypatch):
    if os.path.isdir("/dev/shm"):
        monkeypatch.setattr("tempfile.tempdir", "/dev/shm")  # where a thousand folders cost nothing
    deep = "import os\nprint(os.getcwd())\nfor _ in range(1100): os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)"
    done = machines.run_python(deep, sandbox=SANDBOXES[0])
    assert done.exit_code == 0
    assert not os.path.exists(done.stdout.decode().strip())


def test_folder_is_writable_and_kept(sandbox, tmp_path):
    assert machines.run(["sh", "-c", "echo hi > out"], folder=tmp_path, sandbox=sandbox).exit_code == 0
    assert (tmp_path / "out").read_text() == "hi\n"


@linux
def test_program_that_kills_its_supervisor(sandbox):
    marker = f"9{os.getpid()}.5"
    script = ["bash", "-c", f"sleep {marker} & kill -9 $PPID; sleep 0.2; echo alive"]
    if sandbox == "bubblewrap":
        assert machines.run(script, sandbox=sandbox).stdout == b"alive\n"
    else:
        with pytest.raises(SandboxError, match="without a report"):
            machines.run(script, sandbox=sandbox)
    assert vanished(marker)


isolated = pytest.mark.skipif(REFUSAL is not None, reason=f"no isolation here: {REFUSAL}")


@isolated
def test_writing_outside_the_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    targets = f"{outside}/a link/a /usr/cwm-test /cwm-test /etc/cwm-test /dev/cwm-test /proc/sys/kernel/hostname"
    done = machines.run(["sh", "-c", f"for target in {targets}; do echo x > $target && echo wrote $target; done"],
                       folder=inside)  # fmt: skip
    assert done.stdout == b""
    assert list(outside.iterdir()) == []
    assert not any(os.path.lexists(f"{parent}/cwm-test") for parent in ("/usr", "", "/etc"))
    assert done.stderr.count(b"\n") == 7


@isolated
def test_reading_outside_the_system(tmp_path):
    secret, inside = tmp_path / "secret", tmp_path / "inside"
    secret.write_text("hunter2")
    inside.mkdir()
    done = machines.run(["ls", "-d", str(secret), "/etc/shadow", "/run", "/var", "/sys", "/home"], folder=inside)
    assert done.stdout == b""
    assert machines.run(["sh", "-c", "cat /proc/1/environ /proc/1/mem; ls /proc/1/fd/*"], folder=inside).stdout == b""
    assert machines.run(["cat", str(secret)], folder=inside, readable=[secret]).stdout == b"hunter2"


@isolated
def test_network_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        done = machines.run_python(code)
    assert b"ConnectionRefusedError" in done.stderr or b"unreachable" in done.stderr


@isolated
def test_processes_outside_cannot_be_seen_or_signalled():
    done = machines.run(["sh", "-c", f"ls /proc | grep -c '^[0-9]*$'; kill -0 {os.getpid()}"])
    assert int(done.stdout) <= 6
    assert done.exit_code != 0


@isolated
def test_scratch_memory_is_bounded():
    script = "head -c 8000000 /dev/zero > /tmp/a; cat /tmp/a /tmp/a > /tmp/b; stat -c %s /tmp/a /tmp/b"
    done = machines.run(["sh", "-c", script], limits=Limits(file_bytes=10 << 20))
    assert sum(map(int, done.stdout.split())) <= 10 << 20
    assert b"No space left" in done.stderr


@isolated
def test_no_further_namespaces():
    assert machines.run(["unshare", "-Ur", "true"]).exit_code != 0


def test_run_python_is_isolated_from_user_settings(sandbox, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    done = machines.run_python("import json, sys; print(sys.flags.isolated, sys.argv[1:])", "a", folder=tmp_path,
                              sandbox=sandbox)  # fmt: skip
    assert done.stdout == b"1 ['a']\n"


def test_signals_are_reported(sandbox):
    done = machines.run(["sh", "-c", "kill -SEGV $$"], sandbox=sandbox)
    assert (done.exit_code, done.signal) == (None, signal.SIGSEGV)


def test_head_tail_equals_the_stream_or_its_ends():
    data = bytes(range(256)) * 20
    for limit in (2, 100, 5120, 10_000):
        for step in (1, 7, 5120):
            kept = machines.HeadTail(limit)
            for at in range(0, len(data), step):
                kept.add(data[at : at + step])
            half = limit // 2
            if limit >= len(data):
                assert kept.value() == data
            else:
                middle = b"\n[... %d bytes left out ...]\n" % (len(data) - 2 * half)
                assert kept.value() == data[:half] + middle + data[-half:]
