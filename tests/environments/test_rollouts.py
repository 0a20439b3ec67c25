"""Rollouts from end to end: small broken repositories repaired through the tools, to tokens that a model learns."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import docker_image
import pytest
from broken import BUGS, broken_tasks, repair_actions
from cwm_core import PackedLoader, Tokenizer, machines
from cwm_core.cli import main
from cwm_core.environments import (
    Budget,
    OutOfBudget,
    ProcessWorker,
    Reply,
    ScriptedAgent,
    TrajectoryReader,
    TrajectoryWriter,
    Transition,
    WorkerError,
    read_tasks,
    read_trajectories,
    rollout,
    run_rollouts,
    solution_actions,
    summarize,
    write_shards,
    write_tasks,
)
from cwm_core.machines import DockerBackend, SandboxBackend
from cwm_core.machines.programs import installed_packages
from cwm_core.machines.sandboxed import LIMITS
from small_repositories import NAMES, TEST_COMMAND, copy_repository

READABLE = installed_packages()  # pytest, for the repositories' tests
ISOLATED = "process" if machines.bubblewrap_refusal() else "bubblewrap"
BACKENDS = {ISOLATED: lambda: SandboxBackend(ISOLATED, readable=READABLE)}
if docker_image.refusal() is None:
    BACKENDS["docker"] = lambda: DockerBackend(docker_image.image())
"""Functions that make a backend, by name. Add any backend that opens tasks with a folder."""
LIGHT = SandboxBackend("process", limits=replace(LIMITS, seconds=60.0))
"""A fast backend for tests that do not depend on isolation."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return broken_tasks(tmp_path_factory.mktemp("repositories"))


def quick(task, name=None):
    """Return the same repository with a check instead of its tests, which takes a hundredth of the time."""
    path, right, _ = BUGS[task.name]
    return replace(task, name=name or task.name, test_command=f"grep -qF '{right}' {path}")


@pytest.fixture(scope="module")
def quick_tasks(tasks):
    return [quick(tasks[n % len(tasks)], f"{tasks[n % len(tasks)].name}-{n}") for n in range(8)]


def processes():
    """Return the command lines of all running processes, except zombies."""
    return subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def without_times(trajectory):
    turns = tuple(
        replace(turn, seconds=0, agent_seconds=0, observation=turn.observation.partition("<budget>")[0])
        for turn in trajectory.turns
    )
    return replace(trajectory, started=0, seconds=0, turns=turns)


def by_name(folder):
    several = [without_times(one) for one in TrajectoryReader(folder / "trajectories.jsonl")]
    assert len({one.name for one in several}) == len(several)
    return {one.name: one for one in several}


@pytest.mark.parametrize("backend", BACKENDS)
def test_repositories_are_repaired_rewarded_and_learned(backend, tasks, tmp_path):
    backend = BACKENDS[backend]()
    seen = []
    agent = ScriptedAgent(repair_actions)
    assert run_rollouts(tasks, agent, tmp_path, backend=backend, progress=lambda *what: seen.append(what)) == len(tasks)
    assert [done for done, _, _ in seen] == list(range(len(tasks) + 1))
    several = list(read_trajectories(tmp_path / "trajectories.jsonl"))
    assert len(several) >= 5
    for one in several:
        assert (one.reward, one.reason, one.end, one.failure) == (1.0, "the tests passed", "done", None)
        look, edit, test, submit, end = one.turns
        wrong = BUGS[one.task.name][2]
        assert wrong in look.observation and (look.role, look.exit_code) == ("tool: bash", 0)
        assert "Replaced 1 line" in edit.observation and edit.role == "tool: edit"
        assert "<output>\npassed\n</output>" in test.observation
        assert "Submitted" in submit.observation and submit.role == "tool: submit"
        assert (end.observation, end.role) == ("", "user")
        assert one.task in tasks
    # Nothing is made twice, and without a repair there is no reward.
    assert run_rollouts(tasks, agent, tmp_path, backend=backend) == 0
    idle = ScriptedAgent(["I see nothing wrong."])
    run_rollouts(tasks[:2], idle, tmp_path / "idle", backend=backend)
    for one in read_trajectories(tmp_path / "idle" / "trajectories.jsonl"):
        assert (one.reward, one.reason) == (0.0, "nothing was submitted")
    learn(several, tmp_path)


def learn(trajectories, folder):
    """A tiny model's loss on the trajectories' tokens falls."""
    torch = pytest.importorskip("torch")
    from cwm_core.model import Transformer, preset
    from cwm_core.training import TrainConfig, Trainer

    texts = [message["content"] for one in trajectories for message in one.conversation()]
    tokenizer = Tokenizer.train(texts, 400)
    assert write_shards(folder / "shards", tokenizer, trajectories) == len(trajectories)
    loader = PackedLoader(folder / "shards", 1024, vocab_size=tokenizer, batch_size=2, seed=1)
    config = preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        sliding_window=256,
    )
    losses = []
    torch.manual_seed(0)
    train = TrainConfig(max_steps=30, learning_rate=1e-2, warmup_steps=2, seed=0)
    Trainer(Transformer(config), loader, train, on_step=lambda progress: losses.append(progress.loss)).run()
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_foraged_tasks_are_solved_and_learned(tmp_path, monkeypatch, capsys):
    """The same from the command line, with tasks that nobody wrote."""
    monkeypatch.setattr("cwm_core.environments.foraging.harvest.SLACK_SECONDS", 3.0)
    repositories = [str(copy_repository(name, tmp_path)) for name in NAMES[:3]]
    out, tasks = tmp_path / "out", tmp_path / "tasks"
    backend = ["--sandbox", ISOLATED]
    options = ["--count", "4", "--test-command", TEST_COMMAND]
    assert main(["forage", *repositories, *options, "--output", str(tasks), *backend, "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["tasks"].values()) == 4
    several = list(read_tasks(tasks / "tasks.jsonl"))
    assert len(several) == 4 and len({task.folder for task in several}) >= 2
    assert main(["agent", str(tasks / "tasks.jsonl"), "--agent", "script", "--output", str(out), *backend]) == 0
    solved = list(read_trajectories(out / "trajectories.jsonl"))
    assert len(solved) == 4 and all(one.reward == 1.0 for one in solved), [one.reason for one in solved]
    learn(solved, tmp_path)


# ---- one rollout


class Counting:
    """An environment that answers with a number, and ends after `turns`."""

    def __init__(self, turns=100):
        self.turns, self.actions = turns, []

    def start(self, task):
        return task.prompt

    def step(self, action):
        self.actions.append(action)
        done = not action or len(self.actions) >= self.turns
        observation = f"<output>\n{len(self.actions)}\n</output>" if action else ""
        reason = "as it is" if done else ""
        return Transition(observation, 0.25 if done else 0.0, done, "tool: bash", 0, reason=reason)


class Function:
    """An agent of a function from messages to a reply."""

    settings: ClassVar = {"agent": "function"}

    def __init__(self, function):
        self._function = function

    def start(self, task, seed, budget):
        return self._function

    def interrupt(self):
        pass


def one_rollout(function, environment=None, **budget):
    from cwm_core.environments import Task

    task = Task("t", "Count.", Path("/r"))
    return rollout(environment or Counting(), Function(function), task, name="t/0", seed=1, budget=Budget(**budget))


def test_an_agent_sees_the_conversation_grow():
    seen = []

    def reply(messages):
        seen.append([dict(message) for message in messages])
        return f"action {len(seen)}"

    one = one_rollout(reply, Counting(3), turns=3)
    assert (one.end, one.reward, one.reason) == ("turns", 0.25, "as it is")
    assert [message["role"] for message in seen[0]] == ["system", "user"]
    assert seen[2][2:] == [
        {"role": "assistant", "content": "action 1"},
        {"role": "tool: bash", "content": "<output>\n1\n</output>"},
        {"role": "assistant", "content": "action 2"},
        {"role": "tool: bash", "content": "<output>\n2\n</output>"},
    ]
    assert one.conversation()[: len(seen[2])] == seen[2]
    assert one.settings["agent"] == "function" and one.settings["budget"]["turns"] == 3


def test_a_cut_reply_is_not_acted_on():
    environment = Counting()
    one = one_rollout(lambda messages: Reply("<tool: bash>\nrm -rf", "length", tokens=9), environment)
    assert (one.end, one.reward, environment.actions) == ("action tokens", 0.25, [""])
    assert one.turns[0].action == "<tool: bash>\nrm -rf" and one.tokens == 9


def test_an_exhausted_budget_ends_the_rollout_with_its_reward():
    def reply(messages):
        if len(messages) > 4:
            raise OutOfBudget("context tokens")
        return "more"

    one = one_rollout(reply)
    assert (one.end, one.reward, len(one.turns), one.failure) == ("context tokens", 0.25, 2, None)


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        (lambda messages: 1 // 0, "ZeroDivisionError: "),
        (lambda messages: b"bytes", "TypeError: an agent must reply with a string or a Reply, got bytes"),
        (lambda messages: Reply(None), "TypeError: "),
        (lambda messages: Reply("x", ids=("a",)), "ValueError: "),
    ],
)
def test_failures_are_recorded(function, failure):
    one = one_rollout(lambda messages: "fine" if len(messages) == 2 else function(messages))
    assert one.end == "failed" and one.failure.startswith(failure)
    assert one.reward == 0.0 and len(one.turns) == 1


# ---- many


def test_a_bad_rollout_harms_no_other(quick_tasks, tmp_path):
    def actions(task):
        if task.name.endswith("-2"):
            raise RuntimeError("the script is broken")
        return solution_actions(task)

    several = list(quick_tasks)
    several[4] = replace(several[4], patch="diff --git a/x b/x\n")
    several[5] = replace(several[5], folder=Path("/no/such/folder"))
    assert run_rollouts(several, ScriptedAgent(actions), tmp_path, backend=LIGHT, workers=3) == 8
    results = by_name(tmp_path)
    failures = {name: one.failure for name, one in results.items() if one.failure}
    assert sorted(failures) == sorted(f"{several[n].name}/0" for n in (2, 4, 5))
    assert failures[f"{several[2].name}/0"] == "RuntimeError: the script is broken"
    assert "patch of task" in failures[f"{several[4].name}/0"]
    assert "/no/such/folder" in failures[f"{several[5].name}/0"]
    assert sum(one.solved for one in results.values()) == 5
    summary = summarize(results.values())
    assert (summary.rollouts, summary.solved, summary.failed, summary.tasks_solved) == (8, 5, 3, 5)
    assert summary.ends == {"done": 5, "failed": 3} and summary.reasons == {"the tests passed": 5}


def test_a_killed_worker_fails_its_rollout_and_no_other(quick_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it leaves its work tree

    def actions(task):
        look = ["<tool: bash>\nkill -9 $(ps -o ppid= -p $PPID)\n</tool>"]
        return (look if task.name.endswith("-1") else []) + solution_actions(task)

    run_rollouts(quick_tasks[:3], ScriptedAgent(actions), tmp_path, backend=LIGHT, workers=1)
    results = by_name(tmp_path)
    failed = results.pop(f"{quick_tasks[1].name}/0")
    assert failed.failure == "WorkerError: the environment's process ended with signal 9"
    assert all(one.solved for one in results.values()) and len(results) == 2


def test_samples_have_seeds_of_their_own_and_can_become_more(quick_tasks, tmp_path):
    seeds = []

    class Agent(Function):
        def start(self, task, seed, budget):
            seeds.append(seed)
            return lambda messages: f"My seed is {seed}."

    agent = Agent(None)
    assert run_rollouts(quick_tasks[:2], agent, tmp_path, samples=2, backend=LIGHT) == 4
    assert run_rollouts(quick_tasks[:3], agent, tmp_path, samples=3, backend=LIGHT) == 5
    assert len(set(seeds)) == 9
    once = by_name(tmp_path)
    run_rollouts(quick_tasks[:3], agent, tmp_path / "again", samples=3, backend=LIGHT, workers=1)
    assert by_name(tmp_path / "again") == once
    assert {one.turns[0].action for one in once.values()} == {f"My seed is {seed}." for seed in seeds[:9]}


def test_other_settings_and_other_tasks_are_refused(quick_tasks, tmp_path):
    agent = ScriptedAgent(["Done."])
    run_rollouts(quick_tasks[:1], agent, tmp_path, backend=LIGHT)
    with pytest.raises(ValueError, match="holds rollouts with seed = 0, not 1"):
        run_rollouts(quick_tasks[:1], agent, tmp_path, backend=LIGHT, seed=1)
    with pytest.raises(ValueError, match="holds rollouts with script = "):
        run_rollouts(quick_tasks[:1], ScriptedAgent(["Else."]), tmp_path, backend=LIGHT)
    with pytest.raises(ValueError, match="another task named"):
        run_rollouts([replace(quick_tasks[0], prompt="Else.")], agent, tmp_path, backend=LIGHT)
    with pytest.raises(ValueError, match="two tasks named"):
        run_rollouts([quick_tasks[0]] * 2, agent, tmp_path / "b", backend=LIGHT)
    with TrajectoryWriter(tmp_path / "trajectories.jsonl"), pytest.raises(BlockingIOError):
        run_rollouts(quick_tasks, agent, tmp_path, backend=LIGHT)


def test_a_backend_that_cannot_be_sent_is_an_error(quick_tasks, tmp_path):
    backend = SandboxBackend("process")
    backend.odd = lambda: None
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        run_rollouts(quick_tasks, ScriptedAgent(["Done."]), tmp_path, backend=backend)


# ---- ends that nobody planned

COMMAND = "echo begun > {mark}.$$; sleep 987.25"


@contextlib.contextmanager
def running(tmp_path, quick_tasks, *, stuck_after, workers=2):
    """`cwm agent` at work, tasks from `stuck_after` on hanging in a command; yields the process and its work folder."""
    work, marks = tmp_path / "work", tmp_path / "marks"
    for folder in (work, marks):
        folder.mkdir(exist_ok=True)
    script = {task.name: solution_actions(task) for task in quick_tasks}
    for task in quick_tasks[stuck_after:]:
        hang = COMMAND.format(mark=marks / "begun")
        script[task.name] = [f"<tool: bash>\n{hang}\n</tool>", *script[task.name]]
    write_tasks(tmp_path / "tasks.jsonl", quick_tasks)
    (tmp_path / "script.json").write_text(json.dumps(script))
    argv = [sys.executable, "-m", "cwm_core", "agent", "tasks.jsonl", "--agent", "script", "--script", "script.json"]
    argv += ["--output", "out", "--sandbox", "process", "--workers", str(workers)]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=os.environ | {"TMPDIR": str(work)}, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_until(lambda: len(list(marks.iterdir())) >= min(workers, len(quick_tasks) - stuck_after))
        yield process, work
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_nothing_behind_and_the_next_run_resumes(number, quick_tasks, tmp_path):
    with running(tmp_path, quick_tasks, stuck_after=4) as (process, work):
        assert "sleep 987.25" in processes()
        started = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - started < 10
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert b"interrupted; run the same command to resume" in said and b"Traceback" not in said
    wait_until(lambda: "sleep 987.25" not in processes() and not list(work.iterdir()))
    finished = by_name(tmp_path / "out")
    assert 2 <= len(finished) <= 4
    # As if nothing had happened. The script's name is its content's, so the settings stay.
    script = json.loads((tmp_path / "script.json").read_text())
    run_rollouts(
        quick_tasks[:4], ScriptedAgent(script), tmp_path / "out", backend=LIGHT, settings={"backend": "process"}
    )
    again = by_name(tmp_path / "out")
    assert len(again) == 4 and all(one.solved for one in again.values())
    assert {name: again[name] for name in finished} == finished


def test_a_worker_ends_with_its_lifeline(quick_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    worker = ProcessWorker(LIGHT, {"command_seconds": 60}, 100)
    assert worker.start(quick_tasks[0]) == quick_tasks[0].prompt
    assert list(tmp_path.iterdir())
    worker.close()
    worker.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(WorkerError, match="ended with exit code 0"):
        worker.step("x")


def test_a_worker_that_does_not_answer_is_given_up(quick_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    worker = ProcessWorker(LIGHT, {"command_seconds": 60}, 100)
    worker.start(quick_tasks[0])  # takes more than a second on a busy machine
    worker._seconds = 1.0
    with pytest.raises(WorkerError, match="did not answer within 1 seconds"):
        worker.step("<tool: bash>\nsleep 986.25\n</tool>")
    assert "sleep 986.25" not in processes() and not list(tmp_path.iterdir())


def test_an_engines_agent_in_threads_is_interrupted(quick_tasks, tmp_path):
    """A model at work on every task, when the caller's progress raises."""
    pytest.importorskip("torch")
    from cwm_core.environments import EngineAgent
    from cwm_core.inference import Engine
    from cwm_core.model import preset
    from random_models import random_model

    tokenizer = Tokenizer.train(["<tool: bash>\nls\n</tool>"], 260)
    shape = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    engine = Engine(random_model(preset("tiny", **shape)), tokenizer, max_length=20_000)
    budget = Budget(action_tokens=8, context_tokens=20_000, seconds=60)
    run_rollouts(quick_tasks[:3], EngineAgent(engine), tmp_path / "a", backend=LIGHT, budget=budget, workers=3)
    results = by_name(tmp_path / "a")
    assert all(one.failure is None and one.turns[0].ids and one.turns[0].logprobs for one in results.values())
    long = replace(budget, action_tokens=15_000)

    def ring_when_at_work():
        while not engine.unfinished and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGALRM)

    def ring(*_):
        raise KeyboardInterrupt

    before, deadline = signal.signal(signal.SIGALRM, ring), time.monotonic() + 50
    watcher = threading.Thread(target=ring_when_at_work)
    try:
        with pytest.raises(KeyboardInterrupt):
            watcher.start()
            run_rollouts(quick_tasks, EngineAgent(engine), tmp_path / "b", backend=LIGHT, budget=long, workers=2)
    finally:
        watcher.join()
        signal.signal(signal.SIGALRM, before)
    assert not engine.unfinished


# ---- the command


def test_cwm_agent_plays_solutions(quick_tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tasks("tasks.jsonl", [*quick_tasks[:2], replace(quick_tasks[2], solution="diff --git a/x b/x\n")])
    command = ["agent", "tasks.jsonl", "--agent", "script", "--output", "out", "--sandbox", "process"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "rollouts" in out and "the tests passed" in out and "3 trajectories" in err
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rollouts"], summary["solved"]) == (3, 2)
    assert summary == json.loads(Path("out/summary.json").read_text())
    assert "the diff does not apply" in summary["reasons"]


def test_cwm_agent_tries_failed_rollouts_again(quick_tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tasks("tasks.jsonl", quick_tasks[:2])
    script = {quick_tasks[0].name: ["Done."]}
    Path("script.json").write_text(json.dumps(script))
    command = ["agent", "tasks.jsonl", "--agent", "script", "--output", "out", "--sandbox", "process", "--json"]
    command += ["--script", "script.json"]
    assert main(command) == 0 == main(command)
    assert json.loads(Path("out/summary.json").read_text())["failed"] == 1
    assert main([*command, "--retry-failed"]) == 0
    assert "1 failed rollouts are repeated" in capsys.readouterr().err
    assert json.loads(Path("out/summary.json").read_text())["rollouts"] == 2


def test_cwm_agent_fails_when_every_rollout_failed(quick_tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tasks("tasks.jsonl", quick_tasks[:2])
    Path("script.json").write_text("{}")
    command = ["agent", "tasks.jsonl", "--agent", "script", "--output", "out", "--sandbox", "process"]
    assert main([*command, "--script", "script.json"]) == 1
    assert "every rollout failed, most often with: ValueError: the script has no actions" in capsys.readouterr().err
    Path("none.jsonl").touch()
    assert main([*command[:1], "none.jsonl", *command[2:]]) != 0
    assert "none.jsonl: expected at least one task" in capsys.readouterr().err


def test_cwm_agent_writes_through_links(quick_tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tasks("tasks.jsonl", quick_tasks[:2])
    Path("out").mkdir()
    Path("disk").mkdir()
    for name in ("summary.json", "trajectories.jsonl"):
        Path("out", name).symlink_to(tmp_path / "disk" / name)
    Path("script.json").write_text(json.dumps({quick_tasks[0].name: ["Done."]}))
    command = ["agent", "tasks.jsonl", "--agent", "script", "--script", "script.json", "--output", "out"]
    assert main([*command, "--sandbox", "process"]) == 0
    assert main([*command, "--sandbox", "process", "--retry-failed"]) == 0
    assert all(path.is_symlink() for path in Path("out").iterdir())
    assert sorted(path.name for path in Path("disk").iterdir()) == ["summary.json", "trajectories.jsonl"]
    assert len(list(read_trajectories("disk/trajectories.jsonl"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "engine"], "needs --model"),
        (["--agent", "endpoint", "--model", "m"], "needs --endpoint"),
    ],
)
def test_cwm_agent_names_missing_options(quick_tasks, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_tasks("tasks.jsonl", quick_tasks[:1])
    with pytest.raises(SystemExit) as stopped:
        main(["agent", "tasks.jsonl", "--output", "out", "--sandbox", "process", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_cwm_agent_with_a_model(quick_tasks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    from cwm_core.model import preset, save
    from random_models import random_model

    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train(["<tool: bash>\nls\n</tool>"], 260)
    tokenizer.save("model")
    shape = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    save(random_model(preset("tiny", **shape)), "model")
    write_tasks("tasks.jsonl", quick_tasks[:1])
    command = [
        "agent",
        "tasks.jsonl",
        "--agent",
        "engine",
        "--model",
        "model",
        "--output",
        "out",
        "--sandbox",
        "process",
    ]
    assert main([*command, "--action-tokens", "8", "--max-turns", "2", "--samples", "2"]) == 0
    several = list(read_trajectories("out/trajectories.jsonl"))
    assert [one.tokens > 0 for one in several] == [True, True]
    assert several[0].settings["weights"] and several[0].turns[0].ids != several[1].turns[0].ids


def test_no_key_reaches_the_commands_of_an_agent(quick_tasks, tmp_path, monkeypatch):
    """Not by `env`, and not by the environment of the processes above it, which those of the same user can read."""
    look = "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -a -e CWM -e HF_ -e OWN_"
    (tmp_path / "script.json").write_text(json.dumps({quick_tasks[0].name: [f"<tool: bash>\n{look}\n</tool>"]}))
    write_tasks(tmp_path / "tasks.jsonl", quick_tasks[:1])
    command = [sys.executable, "-m", "cwm_core", "agent", "tasks.jsonl", "--sandbox", "process"]
    command += ["--agent", "script", "--script", "script.json", "--output", "out"]
    secret = {"CWM_API_KEY": "sk-not-to-be-seen", "HF_TOKEN": "hf-not-to-be-seen", "OWN_HEADER": "is sk-not-to-be-seen"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | secret, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    [trajectory] = by_name(tmp_path / "out").values()
    assert "LANG=C.UTF-8" in trajectory.turns[0].observation
    assert "not-to-be-seen" not in (tmp_path / "out" / "trajectories.jsonl").read_text()


# ---- Ray


def test_the_same_on_a_ray_cluster(quick_tasks, tmp_path):
    """In a process of its own, as Ray leaves threads and servers behind in that which starts it."""
    pytest.importorskip("ray")
    write_tasks(tmp_path / "tasks.jsonl", quick_tasks)
    command = [sys.executable, "-m", "cwm_core", "agent", "tasks.jsonl", "--agent", "script", "--sandbox", "process"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    for more in (["--output", "ray", "--ray", "--workers", "3"], ["--output", "here"]):
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    ray, here = by_name(tmp_path / "ray"), by_name(tmp_path / "here")
    assert ray == here and len(ray) == len(quick_tasks) and all(one.solved for one in ray.values())
