"""Test suites are recorded on machines, and may forge what comes back."""

import dataclasses
import os
import shlex
import sys
import sysconfig
import zipfile
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core import machines
from cwm_core.corpus import repository
from cwm_core.corpus.repository import read_recording, record_repository
from cwm_core.environments.tasks import Task
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from cwm_core.machines.sandboxed import LIMITS
from machines import backend_of, kinds

KIND = "process" if machines.bubblewrap_refusal() else "bubblewrap"
# Little output at once, so that a store takes several reads.
SMALL = dataclasses.replace(LIMITS, output_bytes=1000)
PYTHON = shlex.quote(sys.executable)
CORE = """
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def pay(self, amount):
        if amount > self.balance:
            raise ValueError(amount)
        self.balance -= amount
        return self.balance

def common(words):
    return sorted(set(words))
"""
TESTS = """
import pytest
from bank import Account, common

@pytest.mark.parametrize("amount", range(30))
def test_pay(amount):
    account = Account("a" * 100, 20)
    if amount > 20:
        with pytest.raises(ValueError):
            account.pay(amount)
    else:
        assert account.pay(amount) == 20 - amount

def test_order_of_sets():
    assert common(["x", "y", "z"]) == ["x", "y", "z"]

def test_fails():
    assert common([]) == [1]
"""


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "src" / "bank").mkdir(parents=True)
    (root / "src" / "bank" / "__init__.py").write_text(CORE)
    (root / "test_bank.py").write_text(TESTS)
    (root / "pytest.ini").write_text("[pytest]\npythonpath = src\naddopts = -p no:cacheprovider\n")
    return root


def opened(root, kind=KIND, limits=SMALL):
    return SandboxBackend(kind, limits=limits, readable=installed_packages()).open(Task("bank", "", folder=root))


def recorded(machine, folder, python=PYTHON, **options):
    return record_repository(machine, folder, python=python, seconds=60.0, **options)


def test_a_suite_is_recorded(project, tmp_path):
    with_counts = {"per-site": 30, "per-function": 100}
    machine = opened(project)
    try:
        plain = machine.run(f"{PYTHON} -m pytest -q", seconds=60.0)
        suite = recorded(machine, tmp_path / "stores", arguments=["-q"], options=with_counts)
        again = recorded(machine, tmp_path / "again", options=with_counts)
        left = machine.run("ls -A", seconds=10.0).stdout.decode().split()
    finally:
        machine.close()
    assert plain.exit_code == suite.completed.exit_code == again.completed.exit_code == 1
    assert b"1 failed, 31 passed" in plain.stdout and b"1 failed, 31 passed" in suite.completed.stdout
    assert [path.name for path in suite.stores] == ["main.cwmtraces"] and not suite.lost
    assert suite.stores[0].stat().st_size > 2000
    assert not any(name.startswith(".cwm") for name in left)
    samples = list(read_recording(tmp_path / "stores", license="MIT", provenance={"commit": "c0ffee"}, **COUNTS))
    assert samples == list(read_recording(tmp_path / "again", license="MIT", provenance={"commit": "c0ffee"}, **COUNTS))
    assert len(samples) == 62 == len({sample.id for sample in samples})
    by_call = {sample.call: sample for sample in samples}
    sample = by_call["common(words=['x', 'y', 'z'])"]
    assert sample.code == CORE and sample.trace.result == "['x', 'y', 'z']"
    assert sample.provenance["license"] == "MIT" and sample.provenance["commit"] == "c0ffee"
    assert sample.provenance["module"] == "bank" and sample.provenance["path"] == "src/bank/__init__.py"
    raised = [sample for sample in samples if sample.trace.exception]
    assert {sample.trace.exception for sample in raised} == {f"ValueError({n})" for n in range(21, 30)}
    few = list(read_recording(tmp_path / "stores", per_site=2, per_function=3))
    assert len(few) == 2 + 3 + 2  # __init__ from one site, pay from two, common from two
    assert {sample.id for sample in few} < {sample.id for sample in samples}


COUNTS = {"per_site": 30, "per_function": 100}


@pytest.mark.parametrize("kind", kinds("docker"))
def test_containers_record_the_same(kind, project, tmp_path):
    here, there = opened(project), backend_of(kind).open(Task("bank", "", folder=project))
    try:
        recorded(here, tmp_path / "here")
        suite = recorded(there, tmp_path / "there", python="python3")
        left = there.run("ls -A", seconds=10.0).stdout.decode().split()
    finally:
        here.close()
        there.close()
    assert suite.completed.exit_code == 1 and not suite.lost
    assert not any(name.startswith(".cwm") for name in left)
    samples = list(read_recording(tmp_path / "there"))
    assert samples == list(read_recording(tmp_path / "here")) and len(samples) >= 4


# A test suite that forges, adds, and destroys files.
HOSTILE = """
import os, pathlib
def pytest_sessionfinish(session):
    folder = pathlib.Path(session.config.option.cwm_record)
    (folder / "garbage.cwmtraces").write_bytes(os.urandom(1000))
    (folder / "empty.cwmtraces").write_bytes(b"")
    (folder / "linked.cwmtraces").symlink_to("/etc/passwd")
    (folder / "two words.cwmtraces").write_bytes(b"x")
    (folder / "new\\nline.cwmtraces").write_bytes(b"x")
    (folder / "$(touch x).cwmtraces").write_bytes(b"x")
    (folder / "folder.cwmtraces").mkdir()
    with open(folder / "huge.cwmtraces", "wb") as file:
        file.truncate(1 << 29)
"""


def test_a_hostile_suite(project, tmp_path):
    (project / "conftest.py").write_text(HOSTILE)
    machine = opened(project, limits=dataclasses.replace(SMALL, output_bytes=1 << 20))
    try:
        suite = recorded(machine, tmp_path / "stores", max_bytes=1 << 20)
    finally:
        machine.close()
    lost = "\n".join(suite.lost)
    assert "huge.cwmtraces has 536870912 bytes" in lost
    assert "two words" in lost and "$(touch x)" in lost and "folder.cwmtraces could not be read" in lost
    names = {path.name for path in suite.stores}
    assert {"main.cwmtraces", "garbage.cwmtraces"} <= names <= set(os.listdir(tmp_path / "stores"))
    assert not any(path.is_symlink() for path in (tmp_path / "stores").iterdir())
    assert len(list(read_recording(tmp_path / "stores"))) > 3


def test_files_that_are_not_recordings_are_left_out(tmp_path):
    trace = cwm.record_source("def f():\n    return 1\n", "f()")
    good = {"test": "t", "function": "m:f", "site": "s:1", "seed": 0, "call": 1}
    odd = [{"test": 3}, {"seed": "x"}, {"call": None}, {"site": ["s"]}, {"seed": True}]
    with cwm.TraceWriter(tmp_path / "a.cwmtraces") as writer:
        for n, changes in enumerate(odd):
            writer.add(trace, key=str(n), **(good | changes))
        writer.add(trace, **good)
        writer.add(trace, key="good", **good)
        writer.add(cwm.Recorder(max_frames=0).record_source("x = 1", "x"), key="empty", **(good | {"site": "s:2"}))
        writer._native.add(trace, "deep", '{"a": ' * 50_000 + "1" + "}" * 50_000)
        writer._native.add(trace, "list", "[]")
        writer.add(trace, key="last", **(good | {"site": "s:3"}))
    (tmp_path / "b.cwmtraces").write_bytes((tmp_path / "a.cwmtraces").read_bytes())
    damaged = bytearray((tmp_path / "a.cwmtraces").read_bytes())
    damaged[100] ^= 255
    (tmp_path / "c.cwmtraces").write_bytes(damaged)
    assert [sample.id for sample in read_recording(tmp_path)] == ["good", "last"]


def test_incompatible_interpreters_are_refused(project, tmp_path):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    other = project / "other-python"
    other.write_text("#!/bin/sh\ncat > /dev/null\necho .cpython-39-other.so\n")
    other.chmod(0o755)
    wheel = tmp_path / "cwm_core.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in repository._own_files().items():
            archive.writestr(f"cwm_core/{name}", data)
        archive.writestr("cwm_core/../../evil.py", "1 / 0")
    machine = opened(project)
    try:
        with pytest.raises(ValueError, match=r"loads modules \*\.cpython-39-other\.so: give a wheel"):
            record_repository(machine, tmp_path / "1", python="./other-python")
        with pytest.raises(ValueError, match=r"no-python does not run on the machine: .*no-python"):
            record_repository(machine, tmp_path / "2", python="no-python")
        suite = recorded(machine, tmp_path / "3", wheel=wheel, packages=["bank"], arguments=["-k", "sets"])
        assert len(list(read_recording(tmp_path / "3"))) == 1 and suite.completed.exit_code == 0
        with pytest.raises(FileExistsError):
            recorded(machine, tmp_path / "3")
    finally:
        machine.close()
    assert Path(repository._PACKAGE / f"_native{suffix}").exists()


def test_a_suite_that_takes_too_long(project, tmp_path):
    (project / "test_bank.py").write_text(TESTS + "\ndef test_z():\n    import time\n    time.sleep(60)\n")
    machine = opened(project, kind="process")
    try:
        suite = record_repository(machine, tmp_path / "stores", python=PYTHON, seconds=6.0)
    finally:
        machine.close()
    assert suite.completed.timed_out
    # Complete recordings are kept.
    assert isinstance(list(read_recording(tmp_path / "stores")), list)
