"""The examples of the pages on corpora run as printed, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core import machines

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(python|sh)( [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ["corpus", "corpus-functions", "corpus-projects", "endpoints"]

for library in ("rensa", "license_expression", "detect_secrets", "hypothesis", "httpx"):
    pytest.importorskip(library)


@pytest.mark.skipif(machines.bubblewrap_refusal() is not None, reason="the examples use bubblewrap")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path):
    script = tmp_path / "cwm"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cwm_core "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    python = ""  # later examples use names of earlier ones
    blocks = FENCE.findall((ROOT / "docs" / "guides" / f"{page}.md").read_text("utf-8"))
    assert blocks
    for language, words, text in blocks:
        if title := re.search(r'title="([^"]+)"', words):
            (tmp_path / title[1]).write_text(text)
        elif "norun" in words.split():
            continue
        elif language == "python":
            python += text
            (tmp_path / "example.py").write_text(python)
        else:
            if python:
                run([sys.executable, "example.py"], tmp_path, environment)
            run(["bash", "-e", "-c", text], tmp_path, environment)
    run([sys.executable, "example.py"], tmp_path, environment)
    if page == "corpus":
        [stored] = cwm.TraceReader(tmp_path / "mine.cwmtraces").entries()
        assert (
            stored.metadata["seed"] == 1 and "LIMIT = 3" in stored.trace.context and "g()" not in stored.trace.context
        )
        assert list((tmp_path / "corpus" / "traces").iterdir()) and list((tmp_path / "corpus" / "tokens").iterdir())


def run(command, folder, environment):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
