"""Ctrl-C ends real processes of the command soon, with one line and exit code 130."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cwm_core as cwm
import pytest

PROGRAM = "def f(x):\n    return x + 1\n"


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    Path("problems.jsonl").write_text('{"code": "def f(x):\\n    return x\\n", "input": "1", "output": "1"}\n')
    os.mkfifo("never")
    return tmp_path


@pytest.fixture
def model(cwd):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tokenizer = cwm.Tokenizer.train([PROGRAM], 300)
    config = cwm.model.preset("tiny", vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2)
    cwm.model.save(cwm.model.Transformer(config), "model")
    tokenizer.save("model")


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cwm_core", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(process, is_ready):
    deadline = time.monotonic() + 120
    while not is_ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupt(process):
    """Press Ctrl-C, and return what the process then writes to standard error."""
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    # CPython ends itself by SIGINT if the exception passed through `exec` of a text; a shell reports 130 for both.
    assert process.returncode in (130, -signal.SIGINT) and err.count("\n") == 1, err
    return err


def test_serve(model):
    pytest.importorskip("uvicorn")
    process = start("serve", "model", "--port", "0")
    address = process.stderr.readline().split(" at ")[1].split("/v1")[0]

    def answers():
        try:
            return urllib.request.urlopen(f"{address}/health").status == 200
        except OSError:
            return False

    wait_until(process, answers)
    assert interrupt(process) == "cwm serve: interrupted\n"


def test_eval(model):
    process = start("eval", "output", "model", "problems.jsonl", "--max-new-tokens", "1000000", "-o", "out")
    wait_until(process, Path("out/settings.json").exists)
    expected = "cwm eval: interrupted; repeat the command to resume from the results in out\n"
    assert interrupt(process) in (expected, "cwm eval: interrupted\n")


@pytest.mark.parametrize("stage", ["Recording", "Training"])
def test_demo(cwd, stage):
    pytest.importorskip("torch")
    process = start("demo", "--short", "-o", "demo")
    for line in process.stdout:
        if stage in line:
            break
    else:
        pytest.fail(process.stderr.read())
    time.sleep(0.5)
    assert interrupt(process) == "cwm demo: interrupted\n"


def test_debug(model):
    process = start("debug", "model", "program.py", "--call", "f(1)")
    assert process.stdout.readline().startswith("> ")
    assert interrupt(process) == "cwm debug: interrupted\n"


@pytest.mark.parametrize("verb", [pytest.param("plan", marks=pytest.mark.torch), "view"])
def test_verbs_that_wait_for_a_file(cwd, verb):
    process = start(verb, "never")
    opened = []

    def reads():
        try:
            opened.append(os.open("never", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads yet
            return False
        return True

    wait_until(process, reads)
    try:
        assert interrupt(process) == f"cwm {verb}: interrupted\n"
    finally:
        os.close(opened[0])
