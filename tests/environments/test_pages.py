"""The pages on environments, tasks and rollouts: every Python example runs, and every command can be parsed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import readme
from cwm_core import Tokenizer, machines
from cwm_core.cli import main
from cwm_core.environments import Task, make_diff, write_tasks
from small_repositories import copy_repository

pytestmark = pytest.mark.skipif(machines.bubblewrap_refusal() is not None, reason="the examples need bubblewrap")

BROKEN = b"def add(a, b):\n    return a - b\n"
TEST = "from sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
# Its plugin takes several times as long to import as these tests take to run.
WITHOUT_HYPOTHESIS = "-p no:hypothesispytest"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    sums = tmp_path / "repositories" / "sums"
    (sums / "tests").mkdir(parents=True)
    (sums / "sums.py").write_bytes(BROKEN)
    (sums / "tests" / "test_sums.py").write_text(TEST)
    (sums / "pytest.ini").write_text(f"[pytest]\naddopts = {WITHOUT_HYPOTHESIS}\n")
    (tmp_path / "swe-bench.jsonl").touch()
    solution = make_diff("sums.py", BROKEN, BROKEN.replace(b"a - b", b"a + b"))
    names = ("tests/test_sums.py::test_add",)
    write_tasks("tasks.jsonl", [Task("sums", "Repair it.", sums, solution=solution, fail_to_pass=names)])
    return tmp_path


def run(page):
    """Run the Python examples of a page in order, in one namespace."""
    names = {"__name__": "__main__"}
    for example in readme.examples(f"docs/guides/{page}.md"):
        exec(compile(example, page, "exec"), names)
    return names


def test_environments(folder, capsys):
    run("environments")
    said = capsys.readouterr().out
    assert "True 1.0 the tests passed" in said
    assert "./sums.py:2:    return a - b" in said


def test_forage(folder, capsys, monkeypatch):
    monkeypatch.setattr("cwm_core.environments.foraging.harvest.SLACK_SECONDS", 3.0)
    settings = copy_repository("reckon", folder / "checkouts") / "pyproject.toml"
    settings.write_text(f'{settings.read_text()}addopts = "{WITHOUT_HYPOTHESIS}"\n')
    names = run("forage")
    assert sum(names["harvest"].tasks.values()) == 2
    assert names["reward"].value == 1.0
    assert names["best"] == names["task"].solution


def test_rollouts(folder, capsys):
    Tokenizer.train(["some text of a vocabulary"], 300).save("vocabulary")
    names = run("rollouts")
    assert [trajectory.reward for trajectory in names["trajectories"]] == [1.0]
    sed = (folder / "rollouts-of-sed" / "trajectories.jsonl").read_text()
    assert '"reward":1.0' in sed


@pytest.mark.parametrize("page", ["environments", "forage", "rollouts"])
def test_commands_can_be_parsed(page, capsys):
    text = (readme.ROOT / "docs" / "guides" / f"{page}.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "cwm"
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--help"])
            assert ended.value.code == 0
            known = capsys.readouterr().out
            assert all(word.partition("=")[0] in known for word in arguments if word.startswith("-"))


def test_the_first_command_of_rollouts(folder):
    arguments = shlex.split("agent tasks.jsonl --agent script -o check")
    done = subprocess.run([sys.executable, "-m", "cwm_core", *arguments], check=False)
    assert done.returncode == 0
    assert '"reward":1.0' in Path("check/trajectories.jsonl").read_text()
