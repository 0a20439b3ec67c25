"""Test the verbs that take a model: the source of its vocabulary, the end of predictions, messages on mistakes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cwm_core as cwm
import pytest

torch = pytest.importorskip("torch")

from cwm_core.cli import main  # noqa: E402
from random_models import random_model  # noqa: E402

PROGRAM = "def double(n):\n    return n * 2\n"
PREDICT = ("--call", "double(2)", "--max-new-tokens", "20")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with a model and its vocabulary, one with only the model, and one with only the vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = cwm.Tokenizer.train([PROGRAM], 260)
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = random_model(cwm.model.preset("tiny", **shape, head_dim=16, max_position_embeddings=200))
    cwm.model.save(model, folder / "whole", tokenizer)
    cwm.model.save(model, folder / "bare")
    tokenizer.save(folder / "vocabulary")
    return folder


@pytest.fixture
def cwd(folders, tmp_path, monkeypatch):
    """A folder with a program, and links to the models."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    for name in ("whole", "bare", "vocabulary"):
        Path(name).symlink_to(folders / name)
    return tmp_path


def failure(capsys, *argv):
    assert main(argv) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return said.err


# ---- the vocabulary


def test_a_saved_model_is_all_that_predict_needs(cwd, capsys):
    assert main(["predict", "whole", "program.py", *PREDICT]) == 0
    whole = capsys.readouterr().out
    assert main(["predict", "bare", "program.py", *PREDICT, "--tokenizer", "vocabulary"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["predict", "bare", "program.py", *PREDICT, "--tokenizer", "vocabulary/tokenizer.json"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["predict", "whole", "program.py", *PREDICT, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] > 0 and result["scores"] is None and result["verdict"] in whole


@pytest.mark.parametrize(
    "verb",
    [
        ("predict", "bare", "program.py", "--call", "double(2)"),
        ("debug", "bare", "program.py", "--call", "double(2)"),
        ("eval", "output", "bare", "problems.jsonl", "-o", "out"),
        ("serve", "bare", "--port", "0"),
    ],
)
def test_a_missing_vocabulary_is_named_with_the_option(cwd, capsys, verb):
    Path("problems.jsonl").write_text('{"code": "def f(): pass", "input": "", "output": "None"}\n')
    assert failure(capsys, *verb) == (
        f"cwm {verb[0]}: bare has no tokenizer.json: name the model's vocabulary with --tokenizer\n"
    )


def test_debug_takes_the_vocabulary_of_a_local_model(cwd, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["debug", "bare", "program.py", "--call", "double(2)", "--tokenizer", "vocabulary"]) == 0
    assert "frame 0 call" in capsys.readouterr().out


def test_a_vocabulary_that_is_too_large_for_the_model(cwd, capsys):
    cwm.Tokenizer.train(["a longer text, a longer text"], 280).save("large")
    message = failure(capsys, "predict", "bare", "program.py", *PREDICT, "--tokenizer", "large")
    assert message.startswith("cwm predict: bare: the tokenizer has ") and "the model only 516" in message


# ---- how a prediction ends


def test_a_prediction_that_fills_the_context_says_so(cwd, capsys):
    Path("long.py").write_text(PROGRAM + "# a remark\n" * 8)
    assert main(["predict", "whole", "long.py", "--call", "double(2)", "--max-new-tokens", "4000"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("The prediction did not end: the model's context of 200 tokens is full after "), last


def test_a_prediction_that_is_cut_by_its_limit_says_so(cwd, capsys):
    assert main(["predict", "whole", "program.py", *PREDICT]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "The prediction did not end within 20 tokens; it has 1 whole frame."
    )


def test_a_program_that_is_longer_than_the_context(cwd, capsys):
    Path("long.py").write_text(PROGRAM + "# a remark\n" * 100)
    message = failure(capsys, "predict", "whole", "long.py", "--call", "double(2)")
    assert "leaves no room within max_length, 200" in message


# ---- evaluations


def problems(*codes):
    rows = [{"id": f"p{i}", "code": code, "input": "2", "output": "4"} for i, code in enumerate(codes)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LONG = "def f(n):\n    return n * 2\n" + "# a remark\n" * 300
SHORT = "def f(n):\n    return n * 2\n"
TEMPLATE = "{code}\n# {input} {output}\n"


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("traces", ("--sandbox", "process")),
        ("output", ("--how", "trace")),
        ("output", ("--template", "template.txt")),
        ("input", ("--template", "template.txt", "--sandbox", "process")),
        ("termination", ("--sandbox", "process")),
        ("termination", ("--how", "direct", "--template", "template.txt", "--sandbox", "process")),
    ],
)
def test_problems_longer_than_the_context_are_left_out_and_counted(cwd, capsys, task, options):
    problems(LONG, SHORT, LONG)
    Path("template.txt").write_text(TEMPLATE)
    assert main(["eval", task, "whole", "problems.jsonl", "-o", "out", "--max-new-tokens", "8", *options]) == 0
    report = json.loads(Path("out/report.json").read_text())
    reason = "the prompt leaves no room within max_length, 200"
    assert report["left_out"] == {reason: 2}
    assert [result.get("left_out") for result in report["results"]] == [reason, None, reason]
    assert {measure["n"] for measure in report["measures"]} <= {0, 1}
    assert "3 problems, 2 left out" in capsys.readouterr().out


def test_eval_bounds_the_cache(cwd, monkeypatch):
    from cwm_core import inference

    problems(SHORT)
    seen = []
    made = inference.Engine.__init__

    def spy(self, *args, **options):
        seen.append(options.get("max_cache_bytes"))
        made(self, *args, **options)

    monkeypatch.setattr(inference.Engine, "__init__", spy)
    command = ["eval", "output", "whole", "problems.jsonl", "--max-new-tokens", "2", "--how", "trace"]
    assert main([*command, "-o", "a"]) == 0
    assert main([*command, "-o", "b", "--cache-gib", "3"]) == 0
    assert 0 < seen[0] < 1 << 50 and seen[1] == 3 << 30


def test_a_cache_that_no_problem_fits_leaves_all_out(cwd):
    from cwm_core import evaluation, inference

    model, tokenizer = cwm.model.load("whole"), cwm.Tokenizer.load("whole")
    problem = evaluation.Problem("a", SHORT, "2", "4")
    report = evaluation.evaluate_output(
        inference.Engine(model, tokenizer, max_cache_bytes=1000), [problem], how="trace", max_new_tokens=4
    )
    assert report.left_out == {"the prompt and 4 more tokens need a cache of more than 1000 bytes": 1}


# ---- Ctrl-C


BUSY = """
import os, pathlib, threading, time
import cwm_core.{module} as module

def busy(*_, **__):
    pathlib.Path("busy").touch()
    {work}

module.{name} = busy
"""

WORK = {
    "python": "time.sleep(20)",
    # The main thread is in C, and never looks at signals.
    "native": "import torch; a = torch.ones(6000, 6000, dtype=torch.float64); [a @ a]; a.matrix_power(200)",
    # A thread that the end of the process waits for.
    "thread": "threading.Thread(target=time.sleep, args=(20,)).start(); time.sleep(20)",
    # A library turns the exception into another.
    "library": "\n    try:\n        time.sleep(20)\n    except KeyboardInterrupt:\n        raise ValueError('x')",
}


@pytest.mark.parametrize("work", WORK)
def test_ctrl_c_ends_a_verb_whatever_it_is_doing(cwd, work):
    """`cwm predict` as its model takes long."""
    Path("slow.py").write_text(BUSY.format(module="cli.models", name="load_engine", work=WORK[work]))
    process = subprocess.Popen(
        [sys.executable, "-c", "import slow, sys\nfrom cwm_core.cli import main\nsys.exit(main())",
         "predict", "whole", "program.py", *PREDICT],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    press_when(process, "busy")
    out, err = process.communicate(timeout=15)  # the work would go on for 20 s
    assert (process.returncode, out, err) == (130, "", "cwm predict: interrupted\n")


def press_when(process, file):
    """Press Ctrl-C shortly after the process creates a file."""
    deadline = time.monotonic() + 60
    while not Path(file).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)


def test_the_demo_stops_if_training_is_interrupted(cwd, capsys, monkeypatch):
    from cwm_core.demo import run as demo
    from cwm_core.training import TrainingEnd

    monkeypatch.setattr(demo, "available_processes", lambda config: 1)
    monkeypatch.setattr(demo, "run", lambda *_: TrainingEnd.SIGNAL)
    monkeypatch.setattr(demo, "SHORT", demo.Recipe(programs=20, algorithm_calls=1, held_out=2, steps=1))
    assert main(["demo", "--short", "--output", "demo"]) == 130
    said = capsys.readouterr()
    assert said.err == "cwm demo: interrupted\n" and "Predicting" not in said.out
    assert not Path("demo/results.json").exists()


# ---- one sentence, no traceback


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 1 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_one_sentence(cwd, capsys, monkeypatch, error):
    from cwm_core.cli import models

    def load(*_, **__):
        raise error

    monkeypatch.setattr(models, "load_engine", load)
    assert failure(capsys, "predict", "whole", "program.py", *PREDICT).startswith("cwm predict: out of memory; use a")


def test_other_runtime_errors_keep_their_traceback(cwd, monkeypatch):
    from cwm_core.cli import models

    def load(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(models, "load_engine", load)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["predict", "whole", "program.py", *PREDICT])


def test_missing_torchao_is_named(monkeypatch):
    from cwm_core.inference import Engine

    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = random_model(cwm.model.preset("tiny", num_hidden_layers=1))
    with pytest.raises(
        ModuleNotFoundError, match=r"needs torchao: run pip install '.\[float8\]' in a checkout of cwm-core"
    ):
        Engine(model, quantize="float8")


def damaged(**changes):
    def damage(config):
        for key, value in changes.items():
            if isinstance(value, dict):
                config[key] |= value
            else:
                config[key] = value

    return damage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"factor": 0}}, "rope_parameters.factor must be a positive number, got 0"),
        (
            {"rope_parameters": {"low_freq_factor": -1}},
            "rope_parameters.low_freq_factor must be a positive number, got -1",
        ),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        ({"layer_types": ["other"]}, "config.json has layer_types 'other', expected"),
        ({"eos_token_id": [516]}, "eos_token_id 516 is outside the vocabulary of 516"),
    ],
)
def test_a_damaged_configuration_is_one_sentence(cwd, capsys, changes, message):
    Path("damaged").mkdir()
    for file in Path("whole").iterdir():
        (Path("damaged") / file.name).write_bytes(file.read_bytes())
    config = json.loads(Path("damaged/config.json").read_text())
    damaged(**changes)(config)
    Path("damaged/config.json").write_text(json.dumps(config))
    said = failure(capsys, "predict", "damaged", "program.py", *PREDICT)
    assert said.startswith("cwm predict: damaged/config.json") and message in said


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b"\xff\xfe\x00"])
def test_a_damaged_file_of_a_model_is_one_sentence(cwd, capsys, file, content):
    Path("damaged").mkdir()
    for whole in Path("whole").iterdir():
        (Path("damaged") / whole.name).write_bytes(whole.read_bytes())
    (Path("damaged") / file).write_bytes(content)
    assert failure(capsys, "predict", "damaged", "program.py", *PREDICT).startswith("cwm predict: damaged")


@pytest.mark.parametrize("every", [0, -1])
def test_full_attention_interval_below_one(every):
    with pytest.raises(ValueError, match=f"full_attention_interval must be at least 1, got {every}"):
        cwm.model.preset("tiny", full_attention_interval=every)


# ---- plans


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (3.43e-05, "2.96 seconds"), (1e-09, "less than 0.001 seconds"), (0.0014, "2.02 minutes"), (0.25, "6 hours"),
        (1.5, "1.5 days"), (12_345.6, "12,346 days"),
    ],
)  # fmt: skip
def test_the_time_of_a_run_has_a_unit_that_fits(days, text):
    from cwm_core.cli.plan import _duration

    assert _duration(days) == text


def test_a_plan_of_a_short_run_has_no_powers_of_ten(cwd, capsys):
    assert main(["plan", "sft", "--gpus", "2048", "--tokens", "1000", "--step-tokens", "1000000000"]) == 0
    out = capsys.readouterr().out
    assert " steps: " in out and "e-" not in out


# ---- the model of the package


@pytest.fixture
def shipped(folders, monkeypatch):
    """Put a model in place of the shipped one."""
    monkeypatch.setattr("cwm_core.model.shipped.SHIPPED_FOLDER", folders / "whole")


NOTE = "no MODEL given: using the small model of the package, trained on short generated programs\n"


def test_predict_and_debug_without_a_model_use_the_shipped_one_and_say_so(cwd, shipped, capsys, monkeypatch):
    assert main(["predict", "program.py", *PREDICT]) == 0
    by_default = capsys.readouterr()
    assert by_default.err == f"cwm predict: {NOTE}"
    assert main(["predict", "whole", "program.py", *PREDICT]) == 0
    named = capsys.readouterr()
    assert named.out == by_default.out and named.err == ""
    assert main(["predict", "program.py", *PREDICT, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("where\n"))
    assert main(["debug", "program.py", "--call", "double(2)"]) == 0
    shown = capsys.readouterr()
    assert "in main" in shown.out and shown.err == f"cwm debug: {NOTE}"


def test_eval_without_a_model_uses_the_shipped_one(cwd, shipped, capsys):
    Path("problems.jsonl").write_text(json.dumps({"code": "def f(n):\n    return n", "input": "1", "output": "1"}))
    command = ["eval", "output", "problems.jsonl", "--max-new-tokens", "4", "-o", "results"]
    assert main(command) == 0
    assert capsys.readouterr().err.startswith(f"cwm eval: {NOTE}")
    assert json.loads(Path("results/settings.json").read_text())["model"] == "cwm-small"


def test_serve_without_a_model_serves_the_shipped_one_under_its_name(cwd, shipped, capsys, monkeypatch):
    pytest.importorskip("starlette")
    served = []
    monkeypatch.setattr("cwm_core.inference.server.serve", lambda app, *_, **__: served.append(app))
    assert main(["serve", "--port", "0"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"cwm serve: {NOTE.strip()}" and said[1].startswith("cwm serve: cwm-small at http://127.0.0.1:")
    assert len(served) == 1


def test_an_installation_without_a_shipped_model_says_so(cwd, monkeypatch, capsys):
    monkeypatch.setattr("cwm_core.model.shipped.SHIPPED_FOLDER", cwd / "nowhere")
    assert main(["predict", "program.py", *PREDICT, "--quiet"]) == 1
    assert "this installation of cwm-core ships none; name a model folder" in capsys.readouterr().err


def test_a_vocabulary_needs_a_model(cwd, shipped, capsys):
    said = failure(capsys, "predict", "program.py", *PREDICT, "--tokenizer", "vocabulary")
    assert "--tokenizer needs MODEL" in said
