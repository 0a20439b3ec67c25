"""A built wheel works where there is no Rust: installed into a clean environment, it runs the README's example.

CWM_WHEELS names a folder of built wheels to take this interpreter's from; without it the test builds one.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import readme

ROOT = Path(__file__).parents[1]
RUST_TOOLS = ("cargo", "rustc", "maturin")


def run(*command, **kwargs):
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, **kwargs)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = os.environ.get("CWM_WHEELS")
    if folder is None:
        folder = tmp_path_factory.mktemp("wheels")
        build = ["maturin", "build", "--release", "--locked", "--out", folder, "-i", sys.executable]
        run(sys.executable, "-m", *build, cwd=ROOT)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = list((ROOT / folder).glob(f"cwm_core-*-{tag}-{tag}-*.whl"))
    assert len(found) == 1, f"one wheel for {tag} wanted in {folder}, found {found}"
    return found[0]


@pytest.fixture
def clean_environment():
    """The process environment, but no Rust on PATH and nothing that leads Python to this checkout."""
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(d for d in folders if not any(shutil.which(tool, path=d) for tool in RUST_TOOLS))
    assert not any(shutil.which(tool, path=path) for tool in RUST_TOOLS)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CARGO"))}
    return kept | {"PATH": path}


def test_readme_examples_run_from_a_clean_install(wheel, clean_environment, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path, env=clean_environment)
    run(tmp_path / "venv/bin/cwm", "--version", cwd=tmp_path, env=clean_environment)
    for example in readme.examples():
        run(python, "-I", "-c", example, cwd=tmp_path, env=clean_environment)


def test_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cwm_core/__init__.py", "cwm_core/_native.pyi", "cwm_core/py.typed"} <= set(names)
    assert sum(name.endswith(".so") for name in names) == 1, "its own extension, none left from another Python"
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cwm_core"}
