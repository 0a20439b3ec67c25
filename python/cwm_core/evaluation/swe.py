"""Software engineering: how many tasks predicted patches resolve, by SWE-bench's own harness or by ours."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..environments import Task, issue_task, judge
from ..machines import Backend, SandboxBackend, SandboxError
from ..machines.programs import installed_packages
from ..support import secrets
from ..support.jsonl import read_rows
from .report import Report, Result, count_left_out, measure
from .results import Progress, Results, digest

Judge = Literal["auto", "harness", "machines"]

HARNESS_FIELDS = ("image", "version", "log_parser", "eval_type", "eval_script")
"""What the harness (swebench 5) needs of a row besides what makes a task."""

_NOT_PYTEST = "its tests are not pytest's"


@dataclass(frozen=True)
class SwePrediction:
    """A model's patch of one instance, with the names that the SWE-bench harness gives them."""

    instance_id: str
    model_name_or_path: str
    model_patch: str | None
    """A diff; None or empty where the model submitted nothing."""


def write_predictions(path: str | os.PathLike[str], predictions: Iterable[SwePrediction]) -> None:
    """Write predictions as JSONL, which the SWE-bench harness reads."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(prediction)) + "\n" for prediction in predictions)


def read_predictions(path: str | os.PathLike[str]) -> list[SwePrediction]:
    """Read a JSONL file of predictions; other fields are ignored.

    Raises ValueError that names the line for a field that is missing or mistyped, an instance that occurs twice, and
    a second model.
    """
    found: dict[str, SwePrediction] = {}
    for number, row in read_rows(path):
        where = f"{os.fspath(path)}, line {number}"
        for field in ("instance_id", "model_name_or_path"):
            if not isinstance(row.get(field), str):
                raise ValueError(f"{where}: {field!r} must be a string, got {json.dumps(row.get(field))[:60]}")
        patch = row.get("model_patch")
        if "model_patch" not in row or not isinstance(patch, str | None):
            raise ValueError(f"{where}: 'model_patch' must be a string or null, got {json.dumps(patch)[:60]}")
        prediction = SwePrediction(row["instance_id"], row["model_name_or_path"], patch)
        if prediction.instance_id in found:
            raise ValueError(f"{where}: {prediction.instance_id} occurs twice")
        first = next(iter(found.values()), prediction)
        if prediction.model_name_or_path != first.model_name_or_path:
            raise ValueError(
                f"{where}: predictions of {prediction.model_name_or_path} among {first.model_name_or_path}'s"
            )
        found[prediction.instance_id] = prediction
    if not found:
        raise ValueError(f"{os.fspath(path)}: no predictions in it")
    return list(found.values())


def read_swe_tasks(path: str | os.PathLike[str]) -> tuple[list[Task], list[dict[str, Any]]]:
    """Tasks of a JSONL file, either of tasks as `write_tasks` writes them or of rows as SWE-bench has them.

    With the rows, as far as the tasks are from such. Raises ValueError that names the line of what is neither, and for
    a name that occurs twice.
    """
    tasks, rows, names = [], [], set()
    for number, row in read_rows(path):
        where = f"{os.fspath(path)}, line {number}"
        try:
            if "instance_id" in row:
                tasks.append(issue_task(row))
                rows.append(row)
            else:
                tasks.append(Task.from_json(json.dumps(row)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
        if tasks[-1].name in names:
            raise ValueError(f"{where}: {tasks[-1].name} occurs twice")
        names.add(tasks[-1].name)
    if not tasks:
        raise ValueError(f"{os.fspath(path)}: no tasks in it")
    return tasks, rows


def harness_refusal(tasks: Sequence[Task], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the SWE-bench harness cannot judge these tasks on this machine, or None if it can."""
    if len(rows) < len(tasks):
        return "not all tasks are SWE-bench's"
    missing = next((field for field in HARNESS_FIELDS for row in rows if not row.get(field)), None)
    if missing:
        return f"the harness needs the field {missing!r} of every row"
    if importlib.util.find_spec("swebench") is None:
        return "the package swebench is not installed"
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    for image in sorted({str(task.image) for task in tasks}):
        there = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
        if there.returncode != 0:
            said = there.stderr.decode(errors="replace").strip().splitlines()
            return f"docker has no image {image}: {said[-1] if said else 'no message'}"
    return None


def evaluate_swe(
    dataset: str | os.PathLike[str],
    predictions: Sequence[SwePrediction],
    *,
    by: Judge = "auto",
    folder: str | os.PathLike[str],
    backend: Backend | None = None,
    workers: int = 1,
    seconds: float = 1800.0,
    seed: int = 0,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """The share of tasks that predictions resolve: all tests to be passed pass, and none that passed before fails.

    The share is of all tasks of the data set, as SWE-bench's is: without a prediction a task is not resolved.

    Args:
        dataset: A JSONL file of SWE-bench's rows, or of tasks as `write_tasks` writes them.
        predictions: Of one model, at most one a task.
        by: "harness": SWE-bench's own, ``python -m swebench.harness.run_evaluation``, where Docker has its images.
            "machines": `environments.judge` with `backend`. "auto": the harness where it can run, else machines.
        folder: For the results, the harness's logs, and to go on after an interruption.
        backend: Opens the machines; None: a sandbox that shows the packages installed here.
        workers: Tasks at a time.
        seconds: For the tests of a task; the harness's own default is 1,800.
        seed: Of the bootstrap.
        progress: Called with the number of tasks that are done, and of all.
        settings: More that results depend on.

    By machines, a task whose tests are not named as pytest names them is left out, and so is one whose machine cannot
    be opened; the harness knows all of SWE-bench's test runners.

    Raises ValueError for predictions of unknown tasks, for files that are not as they should be, for results of other
    settings in `folder`, and for "harness" where it cannot run or fails.
    """
    tasks, rows = read_swe_tasks(dataset)
    by_id = {prediction.instance_id: prediction for prediction in predictions}
    if unknown := by_id.keys() - {task.name for task in tasks}:
        raise ValueError(f"{os.fspath(dataset)} has no task {min(unknown)!r}, of which there is a prediction")
    refusal = harness_refusal(tasks, rows) if by != "machines" else None
    if by == "harness" and refusal:
        raise ValueError(f"SWE-bench's harness cannot run: {refusal}")
    by = "machines" if by == "machines" or refusal else "harness"
    all_settings = {
        "task": "swe",
        "by": by,
        "seconds": seconds,
        "seed": seed,
        "model": predictions[0].model_name_or_path if predictions else "",
        "predictions": digest(json.dumps([asdict(by_id[id]) for id in sorted(by_id)])),
        "dataset": digest(Path(dataset).read_text("utf-8")),
        **(settings or {}),
    }
    results = Results(folder, all_settings)
    try:
        if by == "harness":
            run_id = f"cwm-{digest(json.dumps(all_settings))}"
            found = run_harness(dataset, predictions, folder, run_id=run_id, workers=workers, seconds=seconds)
            results.add([_of_harness(task, found) for task in tasks])
        else:
            chosen = backend or SandboxBackend(readable=installed_packages())
            work = {t.name: functools.partial(_judge, t, by_id.get(t.name), chosen, seconds) for t in tasks}
            _judge_all(work, results, workers, progress)
    finally:
        results.close()
    return _report(tasks, [results[task.name] for task in tasks], all_settings)


def run_harness(
    dataset: str | os.PathLike[str],
    predictions: Sequence[SwePrediction],
    folder: str | os.PathLike[str],
    *,
    run_id: str,
    workers: int,
    seconds: float,
) -> dict[str, list[str]]:
    """Run SWE-bench's harness in `folder`, and read the lists of instance ids in its report, by name.

    What it says goes to standard error; its logs are in `folder`, and instances that those hold under `run_id` are not
    run again. Raises ValueError when it fails or leaves no report.
    """
    where = Path(folder).absolute()
    write_predictions(where / "predictions.jsonl", predictions)
    options = {
        "dataset_name": Path(dataset).absolute(),
        "predictions_path": where / "predictions.jsonl",
        "run_id": run_id,
        "max_workers": workers,
        "timeout": int(seconds),
        "report_dir": where,
    }
    argv = [sys.executable, "-m", "swebench.harness.run_evaluation"]
    argv += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        argv, cwd=where, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=secrets.public(), check=False
    )
    if done.returncode != 0:
        raise ValueError(f"SWE-bench's harness failed with exit code {done.returncode}; its logs are in {where}")
    return read_harness_report(where / f"{predictions[0].model_name_or_path.replace('/', '__')}.{run_id}.json")


def read_harness_report(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The lists of instance ids in a report of SWE-bench's harness, such as `resolved_ids`, by name.

    Raises ValueError for a file that is none, OSError when it cannot be read.
    """
    try:
        report = json.loads(Path(path).read_text("utf-8"))
        lists = {name: list(map(str, value)) for name, value in report.items() if name.endswith("_ids")}
    except (ValueError, AttributeError, TypeError):
        lists = {}
    if "resolved_ids" not in lists:
        raise ValueError(f"{os.fspath(path)} is no report of SWE-bench's harness")
    return lists


def _of_harness(task: Task, found: Mapping[str, Sequence[str]]) -> Result:
    names = {
        "resolved_ids": "resolved",
        "unresolved_ids": "not resolved",
        "empty_patch_ids": "nothing was submitted",
        "incomplete_ids": "there is no prediction",
        "error_ids": "the harness had an error",
    }
    reason = next((text for name, text in names.items() if task.name in found.get(name, ())), "not in the report")
    submitted = reason not in ("nothing was submitted", "there is no prediction")
    return {"id": task.name, "resolved": reason == "resolved", "submitted": submitted, "reason": reason}


def _judge_all(
    work: Mapping[str, Callable[[], Result]], results: Results, workers: int, progress: Progress | None
) -> None:
    waiting = [judged for name, judged in work.items() if name not in results]
    done = len(work) - len(waiting)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in as_completed([pool.submit(judged) for judged in waiting]):
                results.add([future.result()])
                done += 1
                if progress:
                    progress(done, len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _judge(task: Task, prediction: SwePrediction | None, backend: Backend, seconds: float) -> Result:
    patch = (prediction and prediction.model_patch) or ""
    if task.kind == "issue-fix" and not all("::" in name for name in (*task.fail_to_pass, *task.pass_to_pass)):
        return {"id": task.name, "left_out": _NOT_PYTEST}
    try:
        reward = judge(
            task, patch.encode(errors="surrogateescape") if patch.strip() else None, backend, seconds=seconds
        )
    except (SandboxError, ValueError, OSError) as error:
        return {"id": task.name, "left_out": f"the machine failed: {type(error).__name__}", "error": str(error)[:1000]}
    return {
        "id": task.name,
        "resolved": reward.value == 1.0,
        "submitted": bool(patch.strip()),
        "reason": "there is no prediction" if prediction is None else reward.reason,
        "similarity": reward.similarity,
        "kind": task.kind,
    }


def _report(tasks: Sequence[Task], results: list[Result], settings: dict[str, Any]) -> Report:
    judged = [result for result in results if "left_out" not in result]
    seed = settings["seed"]
    measures = [
        measure("resolved", [result["resolved"] for result in judged], share=True, seed=seed),
        measure("submitted", [result["submitted"] for result in judged], share=True, seed=seed),
    ]
    if settings["by"] == "machines":
        measures.append(measure("similarity", [result["similarity"] for result in judged], share=False, seed=seed))
    kinds = sorted({result["kind"] for result in judged if result.get("kind")})
    for kind in kinds if len(kinds) > 1 else ():
        values = [result["resolved"] for result in judged if result["kind"] == kind]
        measures.append(measure(f"resolved of {kind}", values, share=True, seed=seed))
    return Report("swe", settings, measures, len(tasks), count_left_out(results), results)
