"""Folders held by one process at a time."""

import subprocess
import sys

import pytest
from cwm_core.support.files import locked

HOLD = """
import sys
from cwm_core.support.files import locked
with locked(sys.argv[1], "test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_the_process_ends(tmp_path):
    folder = tmp_path / "new"
    command = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(BlockingIOError, match="another test is using this folder") as caught,
            locked(folder, "test"),
        ):
            raise AssertionError("not reached")
        assert caught.value.filename == str(folder)
        process.kill()
    with locked(folder, "test"), pytest.raises(BlockingIOError), locked(folder, "test"):
        pass
    with locked(folder, "test"):
        assert folder.is_dir()
