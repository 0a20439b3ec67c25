"""Test what only Docker has: missing engines and images, repositories in images, containers left behind."""

import contextlib
import dataclasses
import io
import subprocess
import sys
import tarfile

import docker_image
import pytest
from cwm_core import machines
from cwm_core.environments import Environment, Task
from cwm_core.machines import DockerBackend
from cwm_core.machines import docker as backend_module
from cwm_core.machines import docker_engine as engine_module
from machines import LIMITS

REFUSAL = docker_image.refusal()
engine = pytest.mark.skipif(REFUSAL is not None, reason=f"no docker: {REFUSAL}")


@pytest.fixture
def client():
    import docker

    with contextlib.closing(docker.from_env()) as client:
        yield client.api


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "file").write_text("one\n")
    return tmp_path / "repo"


@pytest.fixture
def machine(folder):
    with contextlib.closing(DockerBackend(docker_image.image(), limits=LIMITS).open(Task("a", "", folder))) as machine:
        yield machine


def test_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(machines.SandboxError, match=r"run pip install '.\[docker\]' in a checkout of cwm-core"):
        DockerBackend()


def test_engine_is_missing(monkeypatch):
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(machines.SandboxError, match="the Docker engine failed"):
        DockerBackend()


@engine
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "cwm-core-test:absent"}, "image cwm-core-test:absent is not on the Docker engine"),
        ({}, "names no image"),
        ({"image": True, "workdir": "/absent"}, "has no folder /absent"),
        ({"image": True, "workdir": "/"}, "the folder / of image"),
        ({"image": True, "workdir": "relative"}, "the folder relative of image"),
        ({"image": True, "workdir": "/usr/local/lib/../bin", "patch": "diff"}, "the patch of task a does not apply"),
    ],
)
def test_tasks_that_cannot_be_opened(client, fields, message):
    if fields.get("image") is True:
        fields = fields | {"image": docker_image.image()}
    with pytest.raises(ValueError, match=message):
        DockerBackend(limits=LIMITS).open(Task("a", "", **fields))
    assert own_containers(client) == []


@engine
def test_image_needs_a_folder_or_a_repository():
    with pytest.raises(ValueError, match="neither an image nor a folder"):
        DockerBackend(docker_image.image()).open(Task("a", ""))


@pytest.fixture
def repository_image(client):
    """An image with a repository of root's in /testbed."""
    container = client.create_container(docker_image.image(), ["true"])["Id"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode, data in (("testbed/closed/file", 0o600, b"one\n"), ("testbed/run.sh", 0o4755, b"echo ran\n")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo("testbed/link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "closed/file"
        tar.addfile(entry)
    client.put_archive(container, "/", buffer.getvalue())
    image = client.commit(container, "cwm-core-test-repository", conf={"WorkingDir": "/testbed"})["Id"]
    client.remove_container(container)
    yield image
    client.remove_image(image, force=True)


@engine
def test_repository_of_an_image(repository_image):
    patch = "diff --git a/closed/file b/closed/file\n--- a/closed/file\n+++ b/closed/file\n@@ -1 +1 @@\n-one\n+two\n"
    backend = DockerBackend(limits=LIMITS)
    for _ in range(2):
        with contextlib.closing(backend.open(Task("a", "", image=repository_image, patch=patch))) as machine:
            assert machine.root == "/testbed"
            done = machine.run("cat link; ./run.sh; stat -c '%U %a' run.sh closed/file; rm -r closed", seconds=10)
            assert done.stdout == b"two\nran\nnobody 755\nnobody 644\n"
            assert (done.exit_code, done.stderr) == (0, b"")


@engine
def test_run(machine):
    done = machine.run("cat; echo err >&2; exit 3", stdin=b"\0\xff" * 300_000, seconds=10, output_bytes=1 << 20)
    assert (done.stdout, done.stderr, done.exit_code) == (b"\0\xff" * 300_000, b"err\n", 3)
    assert machine.run("seq 100000", seconds=10).truncated
    assert machine.run("true", stdin=b"x" * 3_000_000, seconds=10).exit_code == 0
    late = machine.run("exec >&- 2>&-; sleep 0.3; echo late > late", seconds=10)
    assert (late.exit_code, late.seconds > 0.3) == (0, True)
    assert machine.run("cat late", seconds=10).stdout == b"late\n"
    hung = machine.run("echo first; sleep 60", seconds=0.5)
    assert (hung.exceeded, hung.timed_out, hung.exit_code, hung.stdout) == ("seconds", True, None, b"first\n")
    assert machine.run("kill -SEGV $$", seconds=10).exit_code == 139


@engine
def test_run_ends_what_it_started_and_nothing_else(machine):
    shell = machine.shell()
    shell.run("sleep 1000 & x=kept", seconds=5)
    done = machine.run("setsid nohup sleep 2000 >/dev/null 2>&1 & echo on", seconds=5)
    assert done.stdout == b"on\n"
    left = shell.run("jobs; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo $x", seconds=5).output
    assert b"sleep 1000" in left
    assert b"sleep 2000" not in left
    assert left.endswith(b"kept\n")


@engine
def test_container_that_was_lost(client, folder):
    with Environment(DockerBackend(docker_image.image(), limits=LIMITS)) as environment:
        task = Task("a", "", folder)
        environment.start(task)
        client.kill(own_containers(client)[0])
        with pytest.raises(machines.SandboxError, match=r"the Docker engine failed|was lost"):
            environment.step("<tool: bash>\nls\n</tool>")
        environment.start(task)
        assert "file" in environment.step("<tool: bash>\nls\n</tool>").observation


@engine
def test_container_ends_with_its_time(client, folder, monkeypatch):
    monkeypatch.setattr(backend_module, "GRACE", 1.0)
    limits = dataclasses.replace(LIMITS, seconds=1.0)
    with contextlib.closing(DockerBackend(docker_image.image(), limits=limits).open(Task("a", "", folder))):
        client.wait(own_containers(client)[0], condition="removed", timeout=20)


@engine
def test_clone_has_its_own_files_and_tmp(machine):
    machine.run("echo two > file; echo tmp > /tmp/x; ln -s file link; chmod 700 file", seconds=5)
    with contextlib.closing(machine.clone()) as other:
        state = "cat file link /tmp/x; stat -c '%U %a' file . /tmp"
        expected = b"two\ntwo\ntmp\nnobody 700\nnobody 755\nnobody 1777\n"
        assert other.run(state, seconds=5).stdout == expected
        other.run("echo three > file; rm /tmp/x", seconds=5)
        assert machine.run(state, seconds=5).stdout == expected


def own_containers(client):
    """Containers that this process started."""
    everything = client.containers(all=True, filters={"label": backend_module.LABEL})
    return [c["Id"] for c in everything if c["Labels"][backend_module.LABEL] == engine_module.owner_label()]


@engine
def test_containers_of_dead_processes_are_removed(client):
    code = "from cwm_core.machines import docker_engine; print(docker_engine.owner_label())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    owners = [dead, engine_module.owner_label(), "another machine pid:[1] 1 1"]
    made = [
        client.create_container(docker_image.image(), ["true"], labels={backend_module.LABEL: owner})["Id"]
        for owner in owners
    ]
    try:
        DockerBackend()
        left = {c["Id"] for c in client.containers(all=True)}
        assert [container in left for container in made] == [False, True, True]
    finally:
        for container in made[1:]:
            client.remove_container(container)
