"""Predicted patches: files that SWE-bench's harness reads, judging without it, its reports."""

import io
import json
import tarfile
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from cwm_core import machines as sandbox
from cwm_core.cli import main
from cwm_core.environments import Task, make_diff, write_tasks
from cwm_core.evaluation import SwePrediction, evaluate_swe, read_predictions, write_predictions
from cwm_core.evaluation.statistics import wilson_interval
from cwm_core.evaluation.swe import harness_refusal, read_harness_report, read_swe_tasks
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from small_repositories import TEST_COMMAND, copy_repository

KIND = "process" if sandbox.bubblewrap_refusal() else "bubblewrap"
BACKEND = SandboxBackend(KIND, readable=installed_packages())

needs_harness = pytest.mark.skipif(find_spec("swebench") is None, reason="needs swebench")

ROW = {
    "instance_id": "a__b-1", "repo": "a/b", "base_commit": "c", "version": "1", "problem_statement": "It is wrong.",
    "patch": make_diff("x.py", b"a\n", b"b\n"), "test_patch": make_diff("test_x.py", b"a\n", b"b\n"),
    "FAIL_TO_PASS": '["test_x.py::test_a"]', "PASS_TO_PASS": "[]", "image": "cwm/no-such-image:1",
    "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail", "eval_script": "true",
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path):
    folder = copy_repository("ledger", tmp_path)
    whole = (folder / "ledger/rows.py").read_bytes()
    broken = whole.replace(b"* 100 +", b"* 10 +")
    task = Task(
        "one",
        "Repair it.",
        folder,
        patch=make_diff("ledger/rows.py", whole, broken),
        solution=make_diff("ledger/rows.py", broken, whole),
        test_command=TEST_COMMAND,
        fail_to_pass=("tests/test_rows.py::test_cents[12.5-1250]",),
        pass_to_pass=("tests/test_rows.py::test_join",),
        protected=("tests",),
        kind="flip-operator",
    )
    return [replace(task, name=name) for name in ("one", "two", "three", "four")]


@pytest.fixture
def files(tasks, tmp_path):
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    predictions = [
        SwePrediction("one", "lab/model", tasks[0].solution),
        SwePrediction("two", "lab/model", "diff --git a/x b/x\n"),
        SwePrediction("three", "lab/model", None),
    ]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    return tmp_path / "tasks.jsonl", tmp_path / "predictions.jsonl"


def test_predictions_come_back_as_written(files):
    predictions = read_predictions(files[1])
    assert [p.instance_id for p in predictions] == ["one", "two", "three"]
    assert predictions[2].model_patch is None
    keys = [set(json.loads(line)) for line in files[1].read_text().splitlines()]
    assert keys == [{"instance_id", "model_name_or_path", "model_patch"}] * 3


GOOD = {"instance_id": "a", "model_name_or_path": "m", "model_patch": ""}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"instance_id": "b"}], "line 2: 'model_name_or_path' must be a string, got null"),
        ([GOOD, GOOD | {"instance_id": 1}], "line 2: 'instance_id' must be a string, got 1"),
        ([GOOD | {"model_patch": 1}], "line 1: 'model_patch' must be a string or null, got 1"),
        ([{k: v for k, v in GOOD.items() if k != "model_patch"}], "line 1: 'model_patch' must be"),
        ([GOOD, GOOD], "line 2: a occurs twice"),
        ([GOOD, GOOD | {"instance_id": "b", "model_name_or_path": "n"}], "line 2: expected predictions of m, got n"),
        ([], "the file has no predictions"),
        ([[]], "line 1: not a JSON object"),
    ],
)
def test_bad_predictions_are_refused_with_their_line(tmp_path, rows, message):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


@needs_harness
def test_the_harness_reads_our_predictions(files):
    from swebench.harness.utils import get_predictions_from_file

    read = get_predictions_from_file(str(files[1]), "unused", "test")
    assert [SwePrediction(**row) for row in read] == read_predictions(files[1])


def test_judged_by_machines(files, tmp_path):
    seen = []
    report = evaluate_swe(
        files[0], read_predictions(files[1]), backend=BACKEND, folder=tmp_path / "out", workers=2, seconds=60,
        progress=lambda *done: seen.append(done),
    )  # fmt: skip
    assert report.settings["by"] == "machines"
    assert seen == [(i, 4) for i in range(1, 5)]
    results = {result.id: result.values for result in report.results}
    assert {id: result["resolved"] for id, result in results.items()} == {
        "one": True, "two": False, "three": False, "four": False,
    }  # fmt: skip
    assert results["two"]["reason"].startswith("the diff does not apply")
    assert (results["three"]["reason"], results["four"]["reason"]) == (
        "nothing was submitted",
        "there is no prediction",
    )
    by_name = {m.name: m for m in report.measures}
    resolved = by_name["resolved"]
    assert (resolved.value, resolved.n, (resolved.low, resolved.high)) == (0.25, 4, wilson_interval(1, 4))
    assert (by_name["submitted"].value, by_name["similarity"].value) == (0.5, 0.25)
    assert (report.problems, report.left_out) == (4, {})

    class Refuses:
        def open(self, task):
            raise AssertionError

    again = evaluate_swe(files[0], read_predictions(files[1]), backend=Refuses(), folder=tmp_path / "out", seconds=60)
    assert again == report
    with pytest.raises(ValueError, match="holds results with seconds"):
        evaluate_swe(files[0], read_predictions(files[1]), backend=BACKEND, folder=tmp_path / "out", seconds=61)


def test_tasks_that_cannot_be_judged_are_left_out(files, tasks, tmp_path):
    other = ROW | {"instance_id": "a__b-2", "FAIL_TO_PASS": '["test_a (x.Case)"]'}
    lines = [tasks[0].to_json(), json.dumps(ROW), json.dumps(other)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    report = evaluate_swe(
        tmp_path / "mixed.jsonl", [SwePrediction("a__b-1", "m", "diff")], backend=BACKEND, folder=tmp_path / "out"
    )
    assert report.left_out == {"its tests are not pytest's": 1, "the machine failed: ValueError": 1}
    assert next(m for m in report.measures if m.name == "resolved").n == 1


def test_unknown_and_double_tasks_are_refused(files, tasks, tmp_path):
    with pytest.raises(ValueError, match="lacks the task 'nine'"):
        evaluate_swe(files[0], [SwePrediction("nine", "m", "")], backend=BACKEND, folder=tmp_path / "out")
    write_tasks(tmp_path / "double.jsonl", [tasks[0], tasks[0]])
    with pytest.raises(ValueError, match="line 2: one occurs twice"):
        read_swe_tasks(tmp_path / "double.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ValueError, match="line 1: a task's prompt"):
        read_swe_tasks(tmp_path / "bad.jsonl")


# ---- the harness


def test_why_the_harness_is_refused(files, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    tasks, rows = read_swe_tasks(path)
    assert harness_refusal(*read_swe_tasks(files[0])) == "not all tasks are SWE-bench's"
    assert (
        harness_refusal(tasks, [ROW | {"eval_script": ""}]) == "the harness needs the field 'eval_script' of every row"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert harness_refusal(tasks, rows) == "docker is not on PATH"
    with pytest.raises(ValueError, match="harness cannot run: docker is not on PATH"):
        evaluate_swe(path, [SwePrediction("a__b-1", "m", "")], by="harness", folder=tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert harness_refusal(tasks, rows) == "the package swebench is not installed"


STUB = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("dataset_name", "predictions_path", "run_id", "max_workers", "timeout", "report_dir"):
    parser.add_argument(f"--{name}", required=True)
args = parser.parse_args()
rows = [json.loads(line) for line in open(args.dataset_name)]
made = {row["instance_id"]: row for row in map(json.loads, open(args.predictions_path))}
assert (args.max_workers, args.timeout) == ("3", "1800")
report = {"resolved_ids": [id for id in made if made[id]["model_patch"]], "schema_version": 2}
report["incomplete_ids"] = [row["instance_id"] for row in rows if row["instance_id"] not in made]
report["empty_patch_ids"] = [id for id in made if not made[id]["model_patch"]]
name = f"{next(iter(made.values()))['model_name_or_path'].replace('/', '__')}.{args.run_id}.json"
pathlib.Path(args.report_dir, name).write_text(json.dumps(report))
"""


def test_judged_by_the_harness(tmp_path, monkeypatch):
    package = tmp_path / "path/swebench/harness"
    package.mkdir(parents=True)
    (package / "run_evaluation.py").write_text(STUB)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr("cwm_core.evaluation.swe.harness_refusal", lambda tasks, rows: None)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"instance_id": f"a__b-{i}"}) + "\n" for i in range(3)))
    predictions = [SwePrediction("a__b-0", "lab/model", "diff"), SwePrediction("a__b-1", "lab/model", "")]
    report = evaluate_swe(path, predictions, folder=tmp_path / "out", workers=3)
    assert report.settings["by"] == "harness"
    assert [(r.values["resolved"], r.values["reason"]) for r in report.results] == [
        (True, "resolved"), (False, "nothing was submitted"), (False, "there is no prediction"),
    ]  # fmt: skip
    assert next(m.value for m in report.measures if m.name == "resolved") == pytest.approx(1 / 3)
    (package / "run_evaluation.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="failed with exit code 3"):
        evaluate_swe(path, predictions, folder=tmp_path / "other")


@needs_harness
def test_reports_that_the_harness_writes_are_read(tmp_path, monkeypatch):
    from swebench.harness import reporting

    logs = tmp_path / "logs"
    monkeypatch.setattr(reporting, "RUN_EVALUATION_LOG_DIR", logs)
    for name, resolved in (("a", True), ("b", False)):
        (logs / "run" / "lab__model" / name).mkdir(parents=True)
        report = {name: {"resolved": resolved}}
        (logs / "run" / "lab__model" / name / "report.json").write_text(json.dumps(report))
    made = {
        name: {"instance_id": name, "model_name_or_path": "lab/model", "model_patch": patch}
        for name, patch in (("a", "x"), ("b", "x"), ("c", ""), ("d", "x"))
    }
    rows = [{"instance_id": name} for name in "abcde"]
    path = reporting.make_run_report(made, rows, "run", None, str(tmp_path))
    assert Path(path).name == "lab__model.run.json"
    found = read_harness_report(path)
    assert (found["resolved_ids"], found["unresolved_ids"], found["empty_patch_ids"]) == (["a"], ["b"], ["c"])
    assert (found["error_ids"], found["incomplete_ids"]) == (["d"], ["e"])


@needs_harness
def test_the_harness_takes_our_options():
    import ast

    import swebench.harness.run_evaluation as harness

    tree = ast.parse(Path(harness.__file__).read_text())
    options = {
        argument.value.lstrip("-")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    assert {"dataset_name", "predictions_path", "run_id", "max_workers", "timeout", "report_dir"} <= options


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"resolved_ids": 3}'])
def test_files_that_are_not_reports_are_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json is not a report"):
        read_harness_report(tmp_path / "r.json")


# ---- the command


def test_the_command(files, tmp_path, capsys):
    pytest.importorskip("rich")
    argv = ["eval", "swe", str(files[1]), str(files[0]), "-o", str(tmp_path / "out"), "--sandbox", KIND]
    assert main([*argv, "--workers", "2", "--max-seconds", "60"]) == 0
    said = capsys.readouterr()
    assert "resolved" in said.out and "25.0" in said.out and "wilson" in said.out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["task"] == "swe"
    assert report["measures"][0]["value"] == 0.25
    assert main([*argv, "--by", "harness"]) == 1
    assert "harness cannot run: not all tasks are SWE-bench's" in capsys.readouterr().err


# ---- both, on the same tasks


@pytest.fixture(scope="module")
def testbed():
    """The name of an image with the repository of small texts at /testbed, as SWE-bench's images have theirs."""
    docker_image = pytest.importorskip("docker_image")
    docker = pytest.importorskip("docker")
    base, client = docker_image.image(), docker.from_env()

    def of_root(entry):
        entry.uid = entry.gid = 0
        return entry

    with tempfile.TemporaryDirectory() as folder:
        copy_repository("ledger", folder)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(Path(folder) / "ledger", "testbed", filter=of_root)
    container = client.containers.create(base, ["bash"])
    try:
        container.put_archive("/", buffer.getvalue())
        yield container.commit("cwm-core-test-swe", "1").tags[0]
    finally:
        container.remove()
        client.images.remove("cwm-core-test-swe:1", force=True)
        client.close()


@needs_harness
def test_the_harness_and_machines_agree(testbed, tmp_path):
    from cwm_core.machines import DockerBackend

    where = Path(__file__).parents[1].joinpath("repositories") / "ledger"
    rows, tests = (where / "ledger/rows.py").read_bytes(), (where / "tests/test_rows.py").read_bytes()
    fixed = rows.replace(b"def cents", b"def euros(text):\n    return cents(text) / 100\n\n\ndef cents")
    tested = tests + b"\n\ndef test_euros():\n    from ledger.rows import euros\n\n    assert euros('1.5') == 1.5\n"
    test_patch = make_diff("tests/test_rows.py", tests, tested)
    command = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest --no-header -rA"
    script = f"""#!/bin/bash
set -uxo pipefail
cd /testbed
git apply -v - <<'END'
{test_patch}END
: '>>>>> Start Test Output'
{command} tests/test_rows.py
: '>>>>> End Test Output'
git checkout HEAD tests/test_rows.py
"""
    row = ROW | {
        "image": testbed, "patch": make_diff("ledger/rows.py", rows, fixed), "test_patch": test_patch,
        "FAIL_TO_PASS": ["tests/test_rows.py::test_euros"], "PASS_TO_PASS": ["tests/test_rows.py::test_join"],
        "eval_script": script,
    }  # fmt: skip
    wrong = make_diff("ledger/rows.py", rows, fixed.replace(b"/ 100", b"/ 10"))
    breaks = make_diff("ledger/rows.py", rows, fixed.replace(b"separator.join(out)", b"out"))
    patches = {"a__b-1": row["patch"], "a__b-2": wrong, "a__b-3": breaks, "a__b-4": "nonsense", "a__b-5": ""}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"instance_id": id}) + "\n" for id in [*patches, "a__b-6"]))
    predictions = [SwePrediction(id, "lab/model", patch) for id, patch in patches.items()]
    harness = evaluate_swe(path, predictions, folder=tmp_path / "harness", workers=2, seconds=60)
    machines = evaluate_swe(
        path, predictions, by="machines", backend=DockerBackend(), folder=tmp_path / "machines", seconds=60
    )
    assert (harness.settings["by"], machines.settings["by"]) == ("harness", "machines")
    assert machines.left_out == {}
    for report in (harness, machines):
        assert [result.values["resolved"] for result in report.results] == [True, False, False, False, False, False]
    assert [result.values["submitted"] for result in harness.results] == [
        result.values["submitted"] for result in machines.results
    ]
