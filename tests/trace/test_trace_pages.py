"""Every Python example of the pages about recording and trace stores runs as printed."""

import subprocess
import sys

import pytest
import readme


@pytest.mark.parametrize("page", ["docs/guides/record.md", "docs/reference/trace-store.md"])
def test_examples_run(page, tmp_path):
    for number, example in enumerate(readme.examples(page), 1):
        command = [sys.executable, "-I", "-c", example]
        run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, f"example {number} failed:\n{example}\n{run.stderr}"
