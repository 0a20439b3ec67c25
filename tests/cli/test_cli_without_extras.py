"""The command line where only the required packages are installed."""

import subprocess
import sys

import pytest

# Import nothing but the standard library and the required packages, as in a new environment.
BLOCK = """
import importlib.abc, sys
ALLOWED = {*sys.stdlib_module_names, "numpy", "shtab", "cwm_core"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if path is None and name not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from cwm_core.cli import main
"""
HELP = """
import argparse, contextlib, io
from cwm_core.cli import build_parser
def helps(parser):
    parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                print(child.prog)
                helps(child)
helps(build_parser())
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_every_verb_has_its_help():
    done = run(HELP)
    assert done.returncode == 0, done.stderr
    assert {"cwm record", "cwm agent", "cwm eval swe", "cwm corpus source"} <= set(done.stdout.splitlines())


def test_record_and_view_work(tmp_path):
    program = tmp_path / "p.py"
    program.write_text("x = 1\nprint(x + 1)\n")
    for arguments in (["record", program, "-o", tmp_path / "t.cwmtraces"], ["view", tmp_path / "t.cwmtraces"]):
        done = run(f"raise SystemExit(main({[*map(str, arguments)]}))")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "verb", [["predict", "p.py", "--call", "f()"], ["train", "run.toml"], ["serve"], ["rl", "run.toml"]]
)
def test_verbs_that_need_more_say_what_to_install(verb, tmp_path):
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "p.py").write_text("def f():\n    return 1\n")
    done = run(f"import os; os.chdir({str(tmp_path)!r}); raise SystemExit(main({verb}))")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr and "install" in done.stderr, done.stderr
