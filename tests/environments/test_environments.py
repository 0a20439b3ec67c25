"""Tools as a model uses and misuses them, and episodes to their reward."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.environments import (
    CWM,
    CWM_TRAINING,
    ActionError,
    Environment,
    Task,
    parse_action,
    read_tasks,
    write_tasks,
)
from machines import backend_of, kinds

REFUSAL = machines.bubblewrap_refusal()


@pytest.fixture(params=kinds("bubblewrap", "process", "docker"))
def kind(request):
    return request.param


@pytest.fixture
def backend(kind):
    return backend_of(kind)


@pytest.fixture
def machine(backend, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    with contextlib.closing(backend.open(Task("empty", "", folder))) as machine:
        yield machine


@pytest.fixture
def shell(machine):
    return machine.shell()


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "repo"
    (folder / "tests").mkdir(parents=True)
    (folder / "sums.py").write_text("def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    return a - b\n")
    (folder / "tests" / "check.py").write_text("from sums import add\nassert add(2, 3) == 5\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    return Task(
        "sums",
        "add() subtracts. Repair it.",
        folder,
        test_command="PYTHONPATH=. python -B tests/check.py",
        protected=("tests",),
    )


@pytest.fixture
def environment(backend, task):
    with Environment(backend, command_seconds=10) as environment:
        assert environment.start(task) == task.prompt
        yield environment


def call(tool, content):
    return f"<tool: {tool}>\n{content}\n</tool>"


def edit(path, search, replace):
    return call("edit", f"{path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE")


def said(transition):
    output, _, budget = transition.observation.removeprefix("<output>\n").partition("\n</output>\n<budget>\n")
    assert budget.endswith("</budget>")
    return output


def test_parse_action():
    assert parse_action("Let me look.\n<tool: bash>\nls\n\npwd\n</tool>\n") == parse_action(call("bash", "ls\n\npwd"))
    assert parse_action("<think>\nnot <tool: bash> yet\n</think>\n" + call("bash", "ls")).content == "ls"
    assert parse_action("<tool: bash>\r\nls \\\r\n-a\r\n</tool>\r\n").content == "ls \\\n-a"
    assert parse_action("<tool: create>\na\nb\r\n</tool>").content == "a\nb\r"
    assert parse_action(call("bash", "echo x" * 1_000_000)).content == "echo x" * 1_000_000
    assert parse_action("All done.") is None
    assert parse_action("<think>\n" + call("bash", "ls") + "\n</think>\nDone.") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (call("bash", "ls") + "\n" + call("bash", "pwd"), "Exactly one tool call .* 2 opening and 2 closing"),
        ("<tool: bash>\nls", "</tool> was missing"),
        ("ls\n</tool>", "<tool: NAME> was missing"),
        ("</tool>\n<tool: bash>\nls", "</tool> was missing or misplaced"),
        ("<tool: bash>ls</tool>", "not on a line of its own"),
        (call("python", "1"), "no tool 'python'; the tools are bash, edit, create, submit"),
        (call("bash", "  "), "bash call was empty"),
        (call("bash", "ls") + "\nand then", "Text followed the bash call"),
        ("<think>\nhm", "no </think>"),
        (call("bash", "cat > a <<'E'\n</tool>\nE"), "A line of a call cannot be a tag; write such a line with bash"),
        (call("create", "\nx"), "first line of the create call was blank"),
        (call("submit", "a.diff\nb.diff"), "more than one line"),
        (call("Bash", "ls"), "no tool 'Bash'"),
        ("<tool:bash>\nls\n</tool>", "<tool: NAME> was missing"),
    ],
)
def test_malformed_actions_get_an_explanation_and_the_right_form(text, message):
    with pytest.raises(ActionError, match=message) as error:
        parse_action(text)
    assert re.search(r"The right form, .*:\n<tool: \w+>\n[A-Z \n]+</tool>", str(error.value))


def test_malformed_action_costs_a_turn_and_no_more(environment):
    transition = environment.step("<tool: bash>ls</tool>")
    assert not transition.done
    assert transition.role == "user"
    assert "The right form" in said(transition)
    assert said(environment.step(call("bash", "echo on"))) == "on"


def test_shell_state_survives_between_calls(shell, machine):
    shell.run("mkdir 'a b'; cd 'a b'; x='1\n2'; export Y=3; f() { echo \"f $1\"; }", seconds=5)
    result = shell.run("pwd; echo \"$x\"; sh -c 'echo $Y'; f !!\nfalse", seconds=5)
    assert result.output.decode() == f"{machine.root}/a b\n1\n2\n3\nf !!\n"
    assert result.exit_code == 1


def test_shell_is_binary_safe_and_commands_cannot_read_the_next_one(shell):
    result = shell.run("printf '\\0\\377\\n'; cat; head -c1; read x; echo $?", seconds=5)
    assert result.output == b"\0\xff\n1\n"
    assert shell.run("cat <<'END'\n'$(x)' \"\\\nEND", seconds=5).output == b"'$(x)' \"\\\n"


def test_shell_survives_syntax_errors(shell):
    assert b"unexpected" in shell.run("echo 'open", seconds=5).output
    assert b"syntax error" in shell.run("if then )", seconds=5).output
    assert shell.run("echo alive", seconds=5).output == b"alive\n"


def test_shell_output_is_capped_in_the_middle(shell):
    result = shell.run("echo first; seq 100000; echo last", seconds=10)
    assert result.output.startswith(b"first\n1\n")
    assert result.output.endswith(b"100000\nlast\n")
    assert b"bytes left out" in result.output
    assert len(result.output) < 4100


@pytest.mark.parametrize(
    "command",
    ["sleep 60; sleep 60", "yes", "while true; do :; done", "cat | sleep 60", "sh -c 'trap \"\" INT TERM; sleep 60'"],
)
def test_hanging_command_is_interrupted_and_the_shell_kept(shell, command):
    shell.run("cd /; x=kept", seconds=5)
    result = shell.run(command, seconds=0.3)
    assert result.timed_out
    assert result.restarted is None
    assert result.seconds < 4
    assert shell.run("echo $x; pwd", seconds=5).output == b"kept\n/\n"


def test_shell_that_refuses_to_be_interrupted_is_replaced(shell, monkeypatch):
    monkeypatch.setattr("cwm_core.machines.shell.INTERRUPT_SECONDS", 0.2)
    shell.run("x=lost; trap '' INT", seconds=5)
    result = shell.run("while true; do :; done", seconds=0.3)
    assert result.timed_out
    assert result.restarted == "it did not react to being interrupted"
    assert shell.run("echo [$x]", seconds=5).output == b"[]\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo bye; exit 3", "it exited with code 3"),
        ("kill -9 $$", "it was ended by signal 9"),
        ("exec true", "it exited with code 0"),
    ],
)
def test_shell_that_ended_is_replaced(shell, command, reason):
    shell.run("touch kept; sleep 60 &", seconds=5)
    result = shell.run(command, seconds=9)
    assert result.exit_code is None
    assert result.restarted == reason
    assert shell.run("ls", seconds=5).output == b"kept\n"


def test_shell_that_kills_its_parent_is_kept_or_replaced(shell, kind):
    result = shell.run("kill -9 $PPID; sleep 0.1; echo still", seconds=5)
    # In a container a shell's parent is process 0: its own group, for kill.
    reasons = {"bubblewrap": None, "process": "its sandbox was ended", "docker": "it was ended by signal 9"}
    assert result.restarted == reasons[kind]
    assert shell.run("echo alive", seconds=5).output == b"alive\n"


@pytest.mark.parametrize("options", ["set -x", "set -v", "trap : DEBUG; PROMPT_COMMAND='echo prompt'", "set -xv"])
def test_messages_of_the_shell_itself_are_not_in_the_output(shell, options):
    shell.run(options, seconds=5)
    shown = {"set -x": "+ echo hi\n", "set -v": "echo hi\n", "set -xv": "echo hi\n+ echo hi\n"}.get(options, "")
    result = shell.run("echo hi", seconds=5)
    assert result.output.decode().replace("++", "+") == f"{shown}hi\n"
    assert (result.exit_code, shell.run("false", seconds=5).exit_code) == (0, 1)


@pytest.mark.parametrize(
    ("command", "output", "exit_code"),
    [
        ("sh -c 'kill -SEGV $$'", "Segmentation fault", 139),
        ("sh -c 'kill -ABRT $$'; echo next", "Aborted\nnext", 0),
        ("(kill -KILL $BASHPID)", "Killed", 137),
        ("sh -c 'kill -FPE $$'", "Floating point exception", 136),
    ],
)
def test_the_signal_that_ended_a_program_is_said_and_nothing_of_terminals(shell, command, output, exit_code):
    result = shell.run(command, seconds=5)
    assert re.sub(r" +\(core dumped\)", "", result.output.decode()) == f"{output}\n"
    assert (result.exit_code, result.restarted) == (exit_code, None)


def test_streams_that_exec_moves_are_back_with_the_next_command(shell):
    assert shell.run("exec >log 2>&1; echo lost", seconds=5).output == b""
    assert shell.run("cat log; ls nowhere", seconds=5).output.startswith(b"lost\nls: ")


def test_background_writer_does_not_block_the_shell(shell):
    started = time.monotonic()
    shell.run("yes &", seconds=5)
    assert shell.run("kill %1; echo $?", seconds=5).exit_code == 0
    assert time.monotonic() - started < 4


def test_episode_to_reward(environment, task):
    transition = environment.step(call("bash", "cat tests/check.py; exit_code() { return 4; }; exit_code"))
    assert said(transition) == (task.folder / "tests/check.py").read_text() + "[exit code 4]"
    assert (transition.role, transition.exit_code, transition.malformed, transition.reason) == (
        "tool: bash",
        4,
        False,
        "",
    )
    again = said(environment.step(edit("sums.py", "    return a - b", "    return a + b")))
    assert "occur 2 times in sums.py (lines 2, 6)" in again
    fixed = edit("sums.py", "def add(a, b):\n    return a - b", "def add(a, b):\n    return a + b")
    assert said(environment.step(fixed)) == "Replaced 2 line(s) of sums.py from line 1 on."
    assert said(environment.step(call("create", "notes.txt\none\n\ntwo"))) == "Created notes.txt."
    assert said(environment.step(call("bash", "cat notes.txt; git diff > fix.diff"))) == "one\n\ntwo"
    assert said(environment.step(call("submit", "fix.diff"))).startswith("Submitted.")
    end = environment.step("Repaired.")
    assert (end.reward, end.done, end.reason) == (1.0, True, "the tests passed")
    assert "a - b" in (task.folder / "sums.py").read_text().split("\n")[1]
    steps = json.loads(json.dumps([dataclasses.asdict(step) for step in environment.trajectory]))
    assert [step["exit_code"] for step in steps] == [4, None, None, None, 0, None, None]
    assert all(step["seconds"] >= 0 for step in steps)
    with pytest.raises(RuntimeError, match="call start"):
        environment.step("more")


@pytest.mark.parametrize(
    ("commands", "submitted", "reason"),
    [
        ("true", None, "nothing was submitted"),
        ("echo x >> sums.py; git diff > d", "d", "the tests failed (exit code 1)"),
        ("echo > tests/check.py; git diff > d", "d", "the tests failed (exit code 1)"),
        ("git mv tests gone; ln -s /tmp tests; git add -A; git diff --cached > d", "d", "the tests failed"),
        ("echo 'diff --git a/x b/x' > d", "d", "the diff does not apply"),
    ],
)
def test_no_reward(environment, task, commands, submitted, reason):
    environment.step(call("bash", commands))
    if submitted:
        assert said(environment.step(call("submit", submitted))).startswith("Submitted.")
    end = environment.step("Done.")
    assert (end.reward, end.done) == (0.0, True)
    assert end.reason.startswith(reason)
    assert (task.folder / "tests" / "check.py").exists()


def test_line_with_a_tag_can_be_written_as_the_refusal_says(environment):
    refusal = said(environment.step(call("create", "f\n</tool>")))
    command = re.search(r"printf .* >> FILE", refusal)[0].replace("FILE", "f")
    assert said(environment.step(call("bash", f"{command}; cat f; echo"))).strip() == "</tool>"


REFUSED = [
    (edit("sums.py", "return a - b", "x"), "do not occur in sums.py"),
    (edit("absent.py", "x", "y"), "absent.py is not a file; edit changes existing files"),
    (edit("../../etc/passwd", "root", "y"), "is outside the repository"),
    (edit("link/passwd", "root", "y"), "is outside the repository"),
    (call("edit", "sums.py\nx"), "exactly one line '<<<<<<< SEARCH'; found 0"),
    (edit("sums.py", "x", "y").replace("SEARCH\nx\n", "SEARCH\n"), "SEARCH part was empty"),
    (call("edit", "a\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\nmore"), "others stood around its block"),
    (call("create", "sums.py\nx"), "sums.py exists already"),
    (call("create", "no/such.py\nx"), "folder of no/such.py does not exist"),
    (call("create", "/etc/cwm-test\nx"), "is outside the repository"),
    (call("submit", "sums.py"), "does not start with 'diff'"),
    (call("submit", "empty"), "empty is empty"),
    (call("submit", "absent"), "absent is not a file"),
    (call("submit", "link/passwd"), "is outside the repository"),
    (edit("crlf", "one", "two"), "CRLF in one of them. Change such a file with bash"),
    (edit("marks", "=======", "x"), "found 2. Make several changes in several messages"),
    (edit("fifo", "x", "y"), "fifo is not a file"),
    (edit("a\0b", "x", "y"), "null character"),
    (call("create", "dangling\nx"), "is outside the repository"),
]


def test_refused_file_actions_say_how_to_do_it(environment):
    environment.step(
        call(
            "bash", "ln -s /etc link; touch empty; printf 'one\\r\\n' > crlf; mkfifo fifo; ln -s /etc/cwm-test dangling"
        )
    )
    for action, message in REFUSED:
        transition = environment.step(action)
        assert message in said(transition)
        assert not transition.done
    assert not os.path.lexists("/etc/cwm-test")


def test_edit_keeps_bytes_mode_and_can_delete(environment):
    environment.step(call("bash", "printf 'a\\r\\n\\377\\nb\\nc' > f; chmod 755 f"))
    assert said(environment.step(edit("f", "b\nc", "d"))).startswith("Replaced 2")
    assert said(environment.step(edit("f", "d", "d").replace("=======\nd\n", "=======\n"))).startswith("Replaced 1")
    assert said(environment.step(call("bash", "od -An -c f; stat -c %a f"))).split() == [
        "a",
        "\\r",
        "\\n",
        "377",
        "755",
    ]


def test_lines_are_edited_and_not_what_follows_the_last_newline(environment):
    environment.step(call("bash", "printf 'a\\n\\nb\\n' > f; printf 'x\\n' > g; printf 'a\\nb' > h; : > empty"))
    assert said(environment.step(edit("f", "", "c"))) == "Replaced 1 line(s) of f from line 2 on."
    assert said(environment.step(edit("f", "c", ""))) == "Replaced 1 line(s) of f from line 2 on."  # a blank line
    assert "do not occur in g" in said(environment.step(edit("g", "", "y")))
    assert "do not occur in g" in said(environment.step(edit("g", "x\n", "y")))
    assert "do not occur in empty" in said(environment.step(edit("empty", "", "y")))
    assert said(environment.step(edit("g", "x", "y").replace("=======\ny\n", "=======\n"))).startswith("Replaced 1")
    assert said(environment.step(edit("h", "b", "c"))).startswith("Replaced 1")
    dumped = said(environment.step(call("bash", "od -An -c f; wc -c < g; od -An -c h")))
    assert dumped.split() == ["a", "\\n", "\\n", "b", "\\n", "0", "a", "\\n", "c"]


def test_paths_of_file_tools_count_from_the_root_and_say_so(environment):
    assert said(environment.step(call("create", "one\nx"))) == "Created one."
    environment.step(call("bash", "mkdir sub; cd sub; git diff > fix.diff; cp ../sums.py fix.py"))
    for action in (call("create", "two\nx"), edit("fix.py", "x", "y"), call("submit", "fix.diff")):
        assert re.search(
            r"\n\[paths count from the repository's root, /.*; the shell is in /.*/sub\]$",
            said(environment.step(action)),
        )
    assert said(environment.step(call("bash", "ls ../two; cd .."))) == "../two"
    assert said(environment.step(call("create", "three\nx"))) == "Created three."


def test_an_agent_can_commit(environment, task):
    committed = "sed -i '2s/-/+/' sums.py; git commit -qam fix && git log --format='%an %s'; git diff HEAD~ > d"
    assert said(environment.step(call("bash", committed))) == "agent fix\nagent Start"
    environment.step(call("submit", "d"))
    assert environment.step("Done.").reward == 1.0


def test_a_submission_is_tried_when_it_is_made(environment):
    environment.step(call("bash", "sed -i '2s/-/+/' sums.py; git diff > d; echo x > tests/new.py; git add -A"))
    assert said(environment.step(call("submit", "d"))) == (
        "Submitted. Submit again to replace it; a message without a tool call ends the work."
    )
    environment.step(call("bash", "git commit -qm fix; sed -i '2s/+ b/+ b + 0/' sums.py; git diff > e"))
    told = said(environment.step(call("submit", "e")))
    assert told.startswith("Submitted.") and "the diff does not apply" in told and "sums.py" in told
    told = said(environment.step(call("bash", re.search("`(git add .*)`", told)[1].replace("PATH", "g"))))
    told = said(environment.step(call("submit", "g")))
    assert "Changes that do not count: d (not a module" in told and "tests/new.py (a test, or protected)" in told
    assert environment.step("Done.").reward == 1.0


def test_the_observation_reports_a_command_time_limit(backend, task):
    with Environment(backend, command_seconds=1.0) as environment:
        environment.start(task)
        assert "[interrupted after 1 seconds" in said(environment.step(call("bash", "sleep 60")))
        assert "[the shell was lost: it exited with code 2; a new one" in said(environment.step(call("bash", "exit 2")))


def test_episode_ends_after_its_turns(backend, task):
    with Environment(backend, max_turns=2) as environment:
        environment.start(task)
        assert not environment.step(call("bash", "true")).done
        assert environment.step(call("bash", "true")).done


def test_episode_ends_with_its_time(backend, task):
    with Environment(backend, seconds=0.5) as environment:
        environment.start(task)
        transition = environment.step(call("bash", "sleep 30"))
    assert transition.done
    assert "0 seconds are left" in transition.observation


def test_a_clone_continues_from_the_current_state(environment, task):
    environment.step(
        call("bash", "mkdir 'a b'; cd 'a b'; x=$'1\\n2'; export Y=3; declare -A m=([k]=v); alias ll='echo al'")
    )
    environment.step(call("bash", "f() { echo f$1; }; set -u; echo one > file; sleep 1234.5 & cd ../tests; cd -"))
    fix = "sed -i '2s/-/+/' ../sums.py; git diff > ../fix.diff"
    with environment.clone() as other:
        assert other.trajectory == environment.trajectory
        state = "pwd; echo \"$x\" ${m[k]} $OLDPWD; sh -c 'echo $Y'; f 4; ll; cat file; jobs; echo $-"
        here, there = (said(e.step(call("bash", state))).splitlines() for e in (environment, other))
        assert here[0].endswith("/a b")
        assert here[1:] == ["1", f"2 v {here[0][:-3]}tests", "3", "f4", "al", "one", here[-2], here[-1]]
        assert "Running" in here[-2]
        assert [line.replace(there[0][:-4], here[0][:-4]) for line in there] == [*here[:-2], here[-1]]
        other.step(call("bash", f"echo two > file; {fix}"))
        assert said(environment.step(call("bash", "cat file"))) == "one"
        other.step(call("submit", "fix.diff"))
        with other.clone() as third:
            assert third.step("Done.").reward == 1.0
        assert other.step("Done.").reward == 1.0
    assert environment.step("Done.").reason == "nothing was submitted"
    with pytest.raises(RuntimeError, match="no episode is running"):
        environment.clone()


def test_cwm_profile_ends_the_shell_as_meta_does(backend, task):
    with Environment(backend, CWM, command_seconds=1.5) as environment:
        environment.start(task)
        environment.step(call("bash", "cd tests; x=1"))
        assert "[the shell was lost: a command took longer than 1.5" in said(environment.step(call("bash", "sleep 9")))
        assert said(environment.step(call("bash", "pwd; echo [$x]"))).endswith("\n[]")
        environment.step(call("bash", "cd tests"))
        assert "a command wrote more than 491520 bytes" in said(environment.step(call("bash", "seq 100000")))
        assert not said(environment.step(call("bash", "pwd"))).endswith("tests")
        assert not environment.step("<tool: bash>ls</tool>").done


def test_cwm_training_profile_ends_at_a_malformed_action(backend, task):
    with Environment(backend, CWM_TRAINING) as environment:
        environment.start(task)
        end = environment.step("<tool: bash>ls</tool>")
    assert (end.done, end.reward, end.malformed, end.role) == (True, 0.0, True, "user")
    assert "The right form" in said(end)


@pytest.mark.parametrize("counter", [None, lambda text: len(text.split())], ids=["bytes", "tokens"])
def test_observation_is_bounded(backend, task, counter):
    with Environment(backend, observation_tokens=300, count_tokens=counter) as environment:
        environment.start(task)
        whole = environment.step(call("bash", "seq -s ' é' 10000")).observation
        count = counter or (lambda text: len(text.encode()))
        assert 200 < count(whole) <= 300
        assert whole.startswith("<output>\n1 é2 é")
        assert "é10000\n</output>\n<budget>" in whole
        assert "characters left out" in whole


def test_episode_ends_with_its_context(backend, task):
    with Environment(backend, context_tokens=30, count_tokens=lambda text: len(text.split())) as environment:
        environment.start(task)  # 4 words
        assert not environment.step(call("bash", "true")).done  # 4 and 13
        assert environment.step(call("bash", "true")).done


def test_control_characters_are_shown(environment):
    shown = said(environment.step(call("bash", "printf '\\033]0;title\\a\\033[31mred\\0\\tb\\xc2\\x9b2J'")))
    assert shown == "\\x1b]0;title\\x07\\x1b[31mred\\x00\tb\\x9b2J"


def test_close_leaves_nothing(backend, task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Environment(backend) as environment:
        environment.start(task)
        environment.step(call("bash", "chmod 000 tests; sleep 1234.5 & setsid sleep 1234.5 &"))
    assert not list(tmp_path.glob("cwm-*"))
    assert (
        "sleep 1234.5" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    )
    with pytest.raises(RuntimeError, match="call start"):
        environment.step("x")


@pytest.mark.skipif(REFUSAL is None, reason="bubblewrap is possible here")
def test_the_default_backend_refuses_without_bubblewrap(task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(machines.SandboxError, match="bubblewrap sandbox is not possible here"):
        Environment().start(task)
    assert not list(tmp_path.glob("cwm-*"))


TASK = Task(
    "a",
    "Do \udcff.",
    Path("/r"),
    patch="diff \udc80",
    fail_to_pass=("t.py::a",),
    protected=("tests",),
    provenance={"seed": 1},
)


def test_tasks_are_written_and_read(tmp_path):
    tasks = [TASK, Task("b", "Do.", image="i", workdir="/w")]
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    assert list(read_tasks(tmp_path / "tasks.jsonl")) == tasks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2: a task must be a JSON object, got list"),
        ("{", "line 2: Expecting"),
        ('{"name": "a"}', "line 2: a task's prompt must be a string"),
        ('{"name": "a", "prompt": "b", "patch": null}', "line 2: a task's patch must be a string"),
        ('{"name": "a", "prompt": "b", "protected": "tests"}', "line 2: a task's protected must be a list of strings"),
        ('{"name": "a", "prompt": "b", "colour": 1}', "line 2: a task has no field 'colour'"),
    ],
)
def test_bad_tasks_are_refused_with_their_line(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(f"{TASK.to_json()}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(read_tasks(tmp_path / "t.jsonl"))
