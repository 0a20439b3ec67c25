"""The examples of the README and of the documentation: they run as printed, or at least parse."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import readme
from cwm_core.cli import build_parser

# Pages whose shell and Python blocks run in order, in one folder.
WHOLE = [
    "README.md",
    "docs/get-started.md",
    "docs/guides/embed.md",
    "docs/guides/notebooks.md",
    "docs/guides/released-weights.md",
]


@pytest.fixture
def command(tmp_path):
    """The environment of a user: `cwm` of this interpreter on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, call in (("cwm", "-m cwm_core "), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call}"$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def test_python_examples_of_the_readme_run_alone(tmp_path):
    for number, example in enumerate(readme.examples(), 1):
        run = subprocess.run(
            [sys.executable, "-I", "-c", example],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, f"example {number} failed:\n{example}\n{run.stderr}"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("page", WHOLE)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, command):
    if not shutil.which("bwrap"):
        pytest.skip("needs bubblewrap")
    folder = tmp_path / "work"
    folder.mkdir()
    ran = 0
    for block in readme.blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text)
            continue
        if not block.runs or block.language not in ("sh", "python"):
            continue
        program = ["bash", "-e", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        run = subprocess.run(
            [*program, block.text], check=False, cwd=folder, env=command, capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, f"{page}:\n{block.text}\n{run.stdout}\n{run.stderr}"
        ran += 1
    assert ran


@pytest.mark.parametrize("page", readme.pages())
def test_examples_of_a_page_parse(page):
    for block in readme.blocks(page):
        if block.language == "python":
            compile(block.text, page, "exec", dont_inherit=True)
    for block in readme.shell(page):
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
        for line in readme.commands(block.text):
            words = shlex.split(line)
            if words and words[0] != "--version" and "..." not in words:
                build_parser().parse_args(words[: words.index("--")] if "--" in words else words)


def test_links_of_pages_lead_to_files_and_headings():
    hooks = Path(readme.ROOT, "docs", "hooks.py").read_text(encoding="utf-8")
    for page in readme.generated():
        name = page.removeprefix("docs/reference/").removeprefix("api/").removesuffix(".md")
        assert f'"{name}": [' in hooks or f'"reference/{name}.md"' in hooks, f"mkdocs.yml: {page} is not generated"
    for page in readme.pages():
        for target, anchor in readme.links(page):
            if target in readme.generated():
                continue
            assert Path(readme.ROOT, target).exists(), f"{page}: {target}"
            assert not anchor or anchor in readme.anchors(target), f"{page}: {target} has no heading #{anchor}"


def test_every_page_is_in_the_navigation():
    pages = {page for page in readme.pages() if page.startswith("docs/")}
    assert pages == readme.navigation() - readme.generated()
