"""Tasks of a user's own: the example, and functions that a command names by import path."""

import json
import shutil
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.cli import main
from cwm_core.evaluation import Problem, evaluate_task, evaluate_traces
from evaluation_problems import PROBLEMS, write_problems
from readme import examples
from test_evaluation_tasks import SANDBOX, TOKENIZER, tiny_engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluation_task.py"


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """A folder outside the package, with a model, problems, and a module of the user's."""
    monkeypatch.chdir(tmp_path)
    cwm.model.save(tiny_engine().model, Path("model"))
    TOKENIZER.save("model")
    write_problems(Path("problems.jsonl"))
    return tmp_path


def lengths(engine, problems, seed):
    return [
        {"long": len(p.code) > 60, "length": len(p.code), "seed": None} if p.output else "no output" for p in problems
    ]


def test_scores_become_measures():
    problems = [*PROBLEMS[:3], Problem("x", "def f():\n    pass\n", "")]
    report = evaluate_task(None, problems, lengths, batch=2)
    long, length, seed = report.measures
    assert (report.task, report.problems, report.left_out) == ("lengths", 4, {"no output": 1})
    assert (long.name, long.interval, long.n) == ("long", "wilson", 3)
    assert (length.name, length.interval) == ("length", "bootstrap")
    assert length.value == pytest.approx(sum(len(p.code) for p in PROBLEMS[:3]) / 3)
    assert (seed.name, seed.value, seed.n) == ("seed", None, 0)
    assert report.results[0].values == {"scores": lengths(None, PROBLEMS[:1], 0)[0]}


def test_a_wrong_number_of_scores_is_an_error():
    with pytest.raises(ValueError, match="task first: expected scores of 2 problems, got 1"):
        evaluate_task(None, PROBLEMS[:2], lambda *_: [{}], name="first")


def test_the_example_runs_and_resumes(cwd, capsys):
    shutil.copy(EXAMPLE, cwd)
    command = ["eval", "run", "evaluation_task:compiles", "model", "problems.jsonl", "--limit", "4", "-o", "out"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "compiles" in out and "tokens" in out and "4 problems, 0 left out" in out
    report = Path("out/report.json").read_bytes()
    assert json.loads(report)["settings"]["task"] == "evaluation_task:compiles"
    lines = Path("out/results.jsonl").read_text().splitlines(keepends=True)
    Path("out/results.jsonl").write_text("".join(lines[:1]))
    assert main(command) == 0 and Path("out/report.json").read_bytes() == report
    capsys.readouterr()
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out) == json.loads(report)


def test_the_table_shows_shares_in_percent_and_other_scores_unchanged(cwd, capsys):
    Path("scores.py").write_text(
        "def scores(engine, problems, seed):\n"
        "    return [{'chars': 26.0, 'half': n % 2 == 0} for n in range(len(problems))]\n"
    )
    assert main(["eval", "run", "scores:scores", "model", "problems.jsonl", "--limit", "4", "-o", "out"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if row[0] in ("chars", "half")] == ["26.0", "50.0"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("compiles", "'compiles': expected an import path of the form module:name"),
        ("no_such_module:f", "no_such_module:f: no module named 'no_such_module'"),
        ("own_task:missing", "own_task:missing: own_task has no 'missing'"),
        ("own_task:VALUE", "own_task:VALUE: expected a function, got int"),
    ],
)
def test_a_function_that_cannot_be_used_is_an_error(cwd, capsys, function, message):
    Path("own_task.py").write_text("VALUE = 5\n")
    assert main(["eval", "run", function, "model", "problems.jsonl", "-o", "out"]) == 1
    assert capsys.readouterr().err.startswith(f"cwm eval: {message}")


def test_the_examples_of_the_page_run(cwd, capsys, monkeypatch):
    Path("model").rename("runs-tiny")
    Path("runs").mkdir()
    Path("runs-tiny").rename("runs/tiny")
    monkeypatch.setitem(evaluate_traces.__kwdefaults__, "sandbox", SANDBOX)
    namespace = {}
    for example in examples("docs/guides/evaluate.md"):
        exec(example, namespace)
    assert "valid_format 0.0" in capsys.readouterr().out
    converted = cwm.evaluation.read_problems("converted.jsonl")
    assert [(p.id, p.input, p.output) for p in converted] == [("a/1", "2", "3")]
    assert namespace["report"].task == "output_length"
