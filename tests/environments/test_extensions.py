"""Agents, tools, rewards and machine backends from outside of the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.cli import main
from cwm_core.environments import ActionError, Environment, Task, parse_action, system_prompt, write_tasks
from cwm_core.environments.tools import tools_by_name

EXAMPLES = Path(__file__).parents[2] / "examples"
SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("agent", "1.0 the tests passed"),
        ("tool", "./sums.py:2:    return a - b"),
        ("reward", "0.93 the tests passed"),
        ("machine", "test_sums.py"),
    ],
)
def test_examples(name, said):
    path = EXAMPLES / f"environment_{name}.py"
    done = subprocess.run([sys.executable, path, SANDBOX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert ("opened a machine for sums" in done.stderr) is (name == "machine")


def test_all_extensions_by_import_path(tmp_path, monkeypatch):
    for path in EXAMPLES.glob("environment_*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SANDBOX", SANDBOX)
    (tmp_path / "finder.py").write_text(
        "from environment_agent import SedAgent\n\n\nclass FindingAgent(SedAgent):\n"
        "    def start(self, task, seed, budget):\n"
        "        generate, calls = super().start(task, seed, budget), iter(['return', 'two\\nlines'])\n"
        "        def reply(messages):\n"
        "            for text in calls:\n"
        "                return f'<tool: find>\\n{text}\\n</tool>'\n"
        "            return generate(messages)\n"
        "        return reply\n"
    )
    task = Task("sums", "Repair it.", EXAMPLES / "repository", fail_to_pass=("test_sums.py::test_add",))
    write_tasks("tasks.jsonl", [task])
    options = ["--agent", "finder:FindingAgent", "--tool", "environment_tool:find", "--workers", "1"]
    options += ["--reward", "environment_reward:short_and_right", "--sandbox", "environment_machine:LoggingBackend"]
    command = [sys.executable, "-m", "cwm_core", "agent", "tasks.jsonl", *options, "-o", "out", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "opened a machine for sums" in done.stderr
    record = json.loads((tmp_path / "out" / "trajectories.jsonl").read_text())["trajectory"]
    assert 0.8 < record["reward"] < 1.0
    assert record["settings"]["tools"] == ["environment_tool:find"]
    assert record["settings"]["reward"] == "environment_reward:short_and_right"
    assert record["settings"]["backend"] == "environment_machine:LoggingBackend"
    assert [turn["role"] for turn in record["turns"][:2]] == ["tool: find"] * 2
    assert "./sums.py:2:" in record["turns"][0]["observation"]
    assert "find takes a single line" in record["turns"][1]["observation"]
    assert "Finds the lines of Python files" in record["messages"][0]["content"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--agent", "nobody"], "choose from 'script', 'engine', 'endpoint', or module:name"),
        (["--agent", "json:nothing"], "json has no 'nothing'"),
        (["--agent", "json:JSONDecoder"], "expected an object with a method 'start', got JSONDecoder"),
        (["--agent", "script", "--sandbox", "json:JSONDecoder"], "expected an object with a method 'open'"),
        (["--agent", "script", "--tool", "no_such_module:find"], "no module named 'no_such_module'"),
        (["--agent", "script", "--sandbox", "chroot"], "choose from 'bubblewrap', 'docker', 'process', or module:name"),
    ],
)
def test_extensions_that_cannot_be_found(options, said, tmp_path, capsys):
    write_tasks(tmp_path / "tasks.jsonl", [Task("sums", "Repair it.", EXAMPLES / "repository")])
    try:
        code = main(["agent", str(tmp_path / "tasks.jsonl"), *options, "-o", str(tmp_path / "out")])
    except SystemExit as error:
        code = error.code
    assert code != 0
    assert said in capsys.readouterr().err


def find(machine, content):
    """Finds nothing."""
    return "\x1b[2Jnothing"


def broken(machine, content):
    """Fails."""
    raise LookupError("a fault of the tool")


def bash(machine, content):
    """Has the name of a built-in tool."""


def nameless(machine, content): ...


def test_names_of_tools():
    assert list(tools_by_name([find, broken])) == ["find", "broken"]
    for tools, said in (([find, find], "two tools named 'find'"), ([bash], "named 'bash'"), ([nameless], "docstring")):
        with pytest.raises(ValueError, match=said):
            Environment(tools=tools)
    with pytest.raises(ValueError, match="'<lambda>' cannot be the name"):
        system_prompt(tools=[lambda machine, content: ""])


def test_calls_of_tools(tmp_path):
    assert parse_action("<tool: find>\n\nx\n</tool>", ["find"]).content == "\nx"
    with pytest.raises(ActionError, match=r"(?s)the tools are bash, edit, create, submit, find\..*<tool: find>\nTEXT"):
        parse_action("<tool: look>\nx\n</tool>", ["find"])
    with pytest.raises(ActionError, match="There is no tool 'find'"):
        parse_action("<tool: find>\nx\n</tool>")
    (tmp_path / "a").touch()
    with Environment(machines.SandboxBackend(SANDBOX), tools=[find, broken]) as environment:
        environment.start(Task("t", "", tmp_path))
        assert "<output>\n\\x1b[2Jnothing\n</output>" in environment.step("<tool: find>\nx\n</tool>").observation
        with environment.clone() as other:
            assert other.step("<tool: find>\nx\n</tool>").role == "tool: find"
        with pytest.raises(LookupError, match="a fault of the tool"):
            environment.step("<tool: broken>\nx\n</tool>")
