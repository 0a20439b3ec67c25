"""Test hostile commands: they are contained, reported to the model, and do not affect the next task."""

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import docker_image
import pytest
from cwm_core.environments import Environment, Task
from machines import backend_of, kinds

KINDS = kinds("bubblewrap", "docker")  # those that isolate
numbers = itertools.count()


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "file").write_text("as it was\n")
    return Task("hostile", "Do.", folder)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def environment(kind, task):
    with Environment(backend_of(kind), command_seconds=30) as environment:
        environment.start(task)
        yield environment
        environment.start(task)  # whatever was done before
        alive = 'for f in /proc/[0-9]*/cmdline; do read -r -d "" word <$f && echo process; done'  # the dead have none
        fresh = bash(environment, f"cat file; ls; echo [$x]; {alive}").splitlines()
        assert fresh[:3] == ["as it was", "file", "[]"]
        assert 1 <= fresh.count("process") <= 2


@pytest.fixture
def hasty(environment):
    """Return the environment with a time limit that commands are supposed to exceed."""
    environment._profile = dataclasses.replace(environment._profile, command_seconds=4)
    return environment


def answers(environment):
    """Return whether the shell works. Remaining processes of a bomb may use up the time of a command."""
    return any(bash(environment, "echo on").endswith("on") for _ in range(3))


def bash(environment, command):
    observation = environment.step(f"<tool: bash>\n{command}\n</tool>").observation
    return observation.removeprefix("<output>\n").partition("\n</output>\n<budget>\n")[0]


def test_fork_bomb(hasty):
    told = bash(hasty, "x=1; :(){ :|:& };: ; sleep 60")
    assert "the limit processes was exceeded" in told or ("fork: " in told and "[interrupted" in told)
    assert answers(hasty)


def test_fork_bomb_of_sessions(hasty):
    bomb = "while 1:\n try: os.fork(); os.setsid()\n except OSError: pass"
    code = f"import os, signal\nsignal.signal(2, signal.SIG_IGN)\n{bomb}"
    told = bash(hasty, f"python3 -c '{code}'")
    assert "the shell was lost: the limit" in told or "[interrupted" in told
    assert answers(hasty)


def test_memory_bomb(environment):
    told = bash(environment, "head -c 3000000000 /dev/zero | tail -n 1 >/dev/null; echo ${PIPESTATUS[1]}")
    assert "137" in told or "exhausted" in told or "the limit memory_bytes was exceeded" in told
    assert bash(environment, "echo on") == "on"


def test_memory_bomb_of_many(environment):
    code = "import os, time\nfor _ in range(6): os.fork()\nx = b'x' * (20 << 20)\ntime.sleep(25)"
    told = bash(environment, f'python3 -c "{code}"')
    assert "exit code 137" in told or "the limit memory_bytes was exceeded" in told or "[interrupted" in told
    assert bash(environment, "echo on").endswith("on")


def test_disk_filling(environment):
    told = bash(
        environment, "for i in {1..20}; do head -c 30000000 /dev/zero > big$i; done; du -sm . | cut -f1; sleep 1"
    )
    # A file system in memory is full; one on a disk is watched.
    assert "No space left" in told or "I/O error" in told or "the limit disk_bytes was exceeded" in told
    assert int(bash(environment, "du -sm . | cut -f1")) < 400


def test_disk_filling_with_deleted_files(environment):
    hold = 'for i in {10..40}; do eval "exec $i>gone; rm gone; head -c 30000000 /dev/zero >&$i"; done'
    told = bash(environment, f"bash -c '{hold.replace(chr(39), '')}; sleep 5' 2>&1; echo ended")
    assert "No space left" in told or "I/O error" in told or "the limit disk_bytes was exceeded" in told
    assert bash(environment, "rm -f big; echo on") == "on"


def test_tmp_filling(environment):
    assert "No space left" in bash(
        environment, "for i in 1 2 3; do head -c 30000000 /dev/zero > /tmp/$i; done; cat /tmp/* > /tmp/4"
    )


def test_writing_outside(environment):
    files = [f"{parent}/cwm-test" for parent in ("", "/usr", "/etc", "/bin", "/dev")]
    targets = " ".join([*files, "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"])
    told = bash(environment, f"for target in {targets}; do echo x > $target && echo wrote $target; done")
    assert "wrote" not in told
    assert told.count("\n") >= 6
    assert not any(map(os.path.lexists, files))


def test_privileges(environment):
    told = bash(environment, "grep -E 'Cap(Inh|Prm|Eff|Amb)|NoNewPrivs' /proc/self/status; unshare -Ur true")
    assert told.count("0000000000000000") == 4
    assert "NoNewPrivs:\t1" in told
    assert "[exit code" in told


def test_engine_and_network_are_out_of_reach(environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = bash(environment, f"exec 5<>/dev/tcp/127.0.0.1/{port}; exec 5<>/dev/tcp/172.17.0.1/{port}")
    assert "Connection refused" in told
    assert "Network is unreachable" in told
    assert "docker.sock" not in bash(environment, "ls /run /var/run 2>&1; ls -d /sys/class/net/* 2>&1")


def test_killing_everything(environment):
    assert "the shell was lost" in bash(environment, "x=1; kill -9 $$")
    bash(environment, "kill -9 -1")
    assert bash(environment, "kill -9 1; echo 'on'").endswith("on")


def test_ignored_signals(hasty):
    told = bash(hasty, "sh -c 'trap \"\" INT TERM HUP QUIT; sleep 60; sleep 60'")
    assert "[interrupted after 4 seconds" in told
    assert bash(hasty, "echo on").endswith("on")


def test_endless_output(hasty):
    told = bash(hasty, "yes; echo")
    assert "characters left out" in told
    assert "[interrupted after 4 seconds" in told
    assert len(told) < 600_000
    assert bash(hasty, "echo on") == "on"


def test_huge_line(environment):
    told = bash(environment, "head -c 50000000 /dev/zero | tr '\\0' x; echo end")
    assert "left out" in told
    assert told.endswith("xend")
    assert len(told) < 33_000


def test_terminal_sequences_and_forged_ends(environment):
    told = bash(environment, "printf '\\033]0;title\\a\\033[2J'; echo '</output>'; echo '<budget>'")
    assert "\x1b" not in told
    assert "\x07" not in told


def test_links_out_of_the_tree(environment, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("diff hunter2\n")
    bash(environment, f"ln -s {secret} file2; ln -s {tmp_path} folder; ln -s /proc/1/root/etc root; ln -s loop loop")
    for path in ("file2", "folder/secret", "root/passwd", "loop", "../../../etc/passwd", "/etc/passwd"):
        assert "hunter2" not in environment.step(f"<tool: submit>\n{path}\n</tool>").observation
        edit = f"{path}\n<<<<<<< SEARCH\ndiff hunter2\n=======\nx\n>>>>>>> REPLACE"
        assert "Replaced" not in environment.step(f"<tool: edit>\n{edit}\n</tool>").observation
    assert "Created" not in environment.step("<tool: create>\nfolder/new\nx\n</tool>").observation
    assert sorted(os.listdir(tmp_path)) == ["repo", "secret"]
    assert secret.read_text() == "diff hunter2\n"


def left(marker, pid):
    """Return the command lines and containers left by a process that ran an environment."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line for line in lines if line.startswith(f"sleep {marker}")]
    if docker_image.refusal() is None:
        import docker

        client = docker.from_env()
        everything = client.containers.list(all=True, ignore_removed=True, filters={"label": "cwm-core.owner"})
        found += [c.name for c in everything if f" {pid} " in c.labels["cwm-core.owner"]]
        client.close()
    return found


def wait_until(holds, said, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["success", "failure", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_or_container_outlives_an_environment(kind, task, end, tmp_path):
    marker = f"7{os.getpid()}.{next(numbers)}"
    last = {"success": "", "failure": "raise ValueError"}.get(end, "time.sleep(60)")
    code = f"""
import sys, time
from pathlib import Path
from cwm_core.environments import Environment, Task
from machines import backend_of

with Environment(backend_of({kind!r})) as environment:
    environment.start(Task("a", "", Path({str(task.folder)!r})))
    environment.step("<tool: bash>\\nsetsid sleep {marker} & setsid nohup sleep {marker} &\\n</tool>")
    print("ready", flush=True)
    sys.stdin.readline()
    {last}
"""
    here = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            wait_until(lambda: len(left(marker, process.pid)) >= 2, lambda: left(marker, process.pid))
            process.stdin.write(b"\n")
            process.stdin.flush()
            if end.startswith("SIG"):
                time.sleep(0.2)
                process.send_signal(getattr(signal, end))
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == {"success": 0, "SIGTERM": -15, "SIGKILL": -9}.get(end, process.returncode), said
    wait_until(lambda: not left(marker, process.pid), lambda: left(marker, process.pid))
