"""Every Python example of the README runs as printed, alone, in a fresh interpreter."""

import subprocess
import sys

import readme


def test_examples_run(tmp_path):
    for number, example in enumerate(readme.examples(), 1):
        command = [sys.executable, "-I", "-c", example]
        run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, f"example {number} failed:\n{example}\n{run.stderr}"
