"""The right Ray cluster is used, stays as it was, or is refused; each test in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from bad_server import bad_server, drip, reply, silent
from cwm_core.support import cluster

pytest.importorskip("ray")

CONNECT = """
from cwm_core.support.cluster import ray_cluster
try:
    with ray_cluster() as ray:
        print(ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"])
    print("connected" if ray.is_initialized() else "left")
except ConnectionError as error:
    print(error)
"""
PLACE = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because the paths of Ray's sockets may have 107 bytes
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The default, /tmp/ray, belongs to the first user of the machine.
    "RAY_TMPDIR": str(PLACE),
    # Where a token exists, clusters are started with it, which also chooses the address that they listen at.
    "HOME": str(PLACE),
}


@pytest.fixture(scope="module", autouse=True)
def place():
    """Make a token and a path to the environment, and remove what Ray wrote at the end."""
    (PLACE / ".ray").mkdir(parents=True, exist_ok=True)
    (PLACE / ".ray" / "auth_token").write_text("1234567890abcdef" * 4)
    # Ray starts its servers with the path of Python, unquoted.
    (PLACE / "environment").symlink_to(sys.prefix)
    yield
    shutil.rmtree(PLACE, ignore_errors=True)


def run(code, seconds=120, **variables):
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | variables, capture_output=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def running_cluster(folder, *arguments):
    """Start a cluster that other processes find on this machine, and yield its address."""
    port = free_port()
    python = str(PLACE / "environment" / "bin" / Path(sys.executable).name)
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--include-dashboard=false", "--disable-usage-stats", *arguments]
    with open(folder / "ray.log", "w+b") as log:
        head = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while b"runtime started" not in (said := Path(log.name).read_bytes()):
                assert head.poll() is None, said
                with pytest.raises(subprocess.TimeoutExpired):
                    head.wait(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_cannot_be_reached_is_one_sentence(scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    [line] = run(CONNECT, RAY_ADDRESS=address)
    assert line.startswith(f"the Ray cluster of RAY_ADDRESS={address} cannot be reached") and "refused" in line


@pytest.mark.parametrize("script", [silent, reply({}), drip(b""), lambda connection, ended: None])
def test_a_server_that_is_not_a_cluster_is_one_sentence(script):
    with bad_server(script, whole=False) as server:
        address = server.url.removeprefix("http://").removesuffix("/v1")
        [line] = run(CONNECT, RAY_ADDRESS=address)
    assert "cannot be reached: the server there is not the head" in line or "reset by peer" in line


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:x", "ray://", "http://127.0.0.1:80/x", "a.invalid:6379"])
def test_invalid_addresses_are_refused(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS={address} cannot be reached"), cluster.ray_cluster():
        pass


def test_without_an_address_a_new_cluster_is_taken_and_ended(tmp_path):
    """A cluster that runs on this machine is joined only if the variable names it, and keeps running."""
    with running_cluster(tmp_path, "--num-cpus=1") as address:
        mine, end = run(CONNECT)
        assert not mine.startswith(address) and end == "left"
        for name in (address, "auto"):
            [theirs, end] = run(CONNECT, RAY_ADDRESS=name)
            assert theirs == f"{address} 1.0" and end == "left"


def test_a_cluster_without_processors_is_refused(tmp_path):
    with running_cluster(tmp_path, "--num-cpus=0") as address:
        [line] = run(CONNECT, RAY_ADDRESS=address)
    assert line.startswith("the Ray cluster has no CPUs")


def test_a_home_folder_that_cannot_be_written_is_enough():
    code = CONNECT + "import os; print(oct(os.stat(os.environ['RAY_AUTH_TOKEN_PATH']).st_mode)[-3:])"
    assert run(code, HOME="/dev/null")[1:] == ["left", "600"]


def test_the_handler_of_sigterm_is_restored():
    handled = "import signal\nsignal.signal(signal.SIGTERM, print)\n"
    assert run(handled + CONNECT + "print(signal.getsignal(signal.SIGTERM) is print)")[-2:] == ["left", "True"]


def test_a_connection_of_the_callers_stays():
    code = "import ray\nray.init(address='local', num_cpus=1, log_to_driver=False, logging_level='ERROR')\n" + CONNECT
    assert run(code)[-1] == "connected"


def test_the_key_reaches_the_workers_of_a_running_cluster_and_no_file(tmp_path):
    key = "sk-not-to-be-written-anywhere"
    (tmp_path / "doors.py").write_text("def opens(key):\n    if key == 'sesame-11':\n        return 1\n    return 0\n")
    (tmp_path / "make.py").write_text(
        "import cwm_core as cwm\ncwm.Tokenizer.train(['some text'], 260).save('vocabulary')\n"
    )
    subprocess.run([sys.executable, "make.py"], cwd=tmp_path, check=True)
    answer = {"choices": [{"message": {"content": "opens('sesame-11')\n"}}]}
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short,
        running_cluster(tmp_path, "--num-cpus=1", f"--temp-dir={short}") as address,
        bad_server(reply(answer)) as served,
    ):
        command = [sys.executable, "-m", "cwm_core", "corpus", "functions", "doors.py", "--license", "MIT"]
        command += ["--budget", "10", "--ray", "--endpoint", served.url, "--model", "m", "-o", "out"]
        command += ["--tokenizer", "vocabulary"]
        variables = ENVIRONMENT | {"RAY_ADDRESS": address, "CWM_API_KEY": key}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr.decode()
        files = [path for place in (tmp_path, short) for path in Path(place).rglob("*") if path.is_file()]
        assert not [path for path in files if key.encode() in path.read_bytes()]
    assert [f"Bearer {key}".encode() in request for request in served.requests] == [True]
    assert len(files) > 10 and json.loads((tmp_path / "out" / "corpus.json").read_text())


@pytest.mark.parametrize("seconds", [1, 4, 8])
def test_an_interrupt_while_a_cluster_starts_does_not_crash(seconds):
    interrupt = f"threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()"
    code = f"""
import os, signal, threading, time
from cwm_core.support.cluster import ray_cluster
{interrupt}
try:
    with ray_cluster():
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run(code) == ["interrupted"]
