"""Evaluate patches on software engineering tasks, with SWE-bench's harness or in machines of our own."""

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

from .._native import DamagedFileError
from ..environments import Task, issue_task, judge
from ..machines import Backend, SandboxBackend, SandboxError
from ..machines.programs import installed_packages
from ..support import secrets
from ..support.jsonl import loads, read_rows
from .report import Report, Result, count_left_out, measure
from .results import Progress, Results, digest

Judge = Literal["auto", "harness", "machines"]
"""Method of judging patches; see `evaluate_swe`."""

HARNESS_FIELDS = ("image", "version", "log_parser", "eval_type", "eval_script")
"""Fields of a row that the harness (swebench 5) needs besides those of a task."""

_NOT_PYTEST = "its tests are not pytest's"
_HARNESS_REASONS = {
    "resolved_ids": "resolved",
    "unresolved_ids": "not resolved",
    "empty_patch_ids": "nothing was submitted",
    "incomplete_ids": "there is no prediction",
    "error_ids": "the harness had an error",
}


@dataclass(frozen=True)
class SwePrediction:
    """A model's patch for one task. The fields have the names that SWE-bench's harness uses."""

    instance_id: str
    """Name of the task."""
    model_name_or_path: str
    """Name of the model."""
    model_patch: str | None
    """Diff; None or empty if the model submitted nothing."""


def write_predictions(path: str | os.PathLike[str], predictions: Iterable[SwePrediction]) -> None:
    """Write predictions as JSON lines for SWE-bench's harness."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(prediction)) + "\n" for prediction in predictions)


def read_predictions(path: str | os.PathLike[str]) -> list[SwePrediction]:
    """Read predictions from a file of JSON lines; unknown fields are ignored.

    Raises:
        DamagedFileError: A field is missing or has the wrong type, a task has two predictions, or there are
            several models. The message names the line.
    """
    found: dict[str, SwePrediction] = {}
    for number, row in read_rows(path):
        where = f"{os.fspath(path)}, line {number}"
        for field in ("instance_id", "model_name_or_path"):
            if not isinstance(row.get(field), str):
                raise DamagedFileError(f"{where}: {field!r} must be a string, got {json.dumps(row.get(field))[:60]}")
        patch = row.get("model_patch")
        if "model_patch" not in row or not isinstance(patch, str | None):
            raise DamagedFileError(f"{where}: 'model_patch' must be a string or null, got {json.dumps(patch)[:60]}")
        prediction = SwePrediction(row["instance_id"], row["model_name_or_path"], patch)
        if prediction.instance_id in found:
            raise DamagedFileError(f"{where}: {prediction.instance_id} occurs twice")
        first = next(iter(found.values()), prediction)
        if prediction.model_name_or_path != first.model_name_or_path:
            raise DamagedFileError(
                f"{where}: expected predictions of {first.model_name_or_path}, got {prediction.model_name_or_path}"
            )
        found[prediction.instance_id] = prediction
    if not found:
        raise DamagedFileError(f"{os.fspath(path)}: the file has no predictions")
    return list(found.values())


def read_swe_tasks(path: str | os.PathLike[str]) -> tuple[list[Task], list[dict[str, Any]]]:
    """Read tasks from a file of JSON lines: rows of SWE-bench, or tasks that `write_tasks` wrote.

    Returns:
        The tasks, and the rows of those that come from SWE-bench.

    Raises:
        DamagedFileError: A line is neither kind, or a name is not unique. The message names the line.
    """
    tasks: list[Task] = []
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for number, row in read_rows(path):
        where = f"{os.fspath(path)}, line {number}"
        try:
            if "instance_id" in row:
                tasks.append(issue_task(row))
                rows.append(row)
            else:
                tasks.append(Task.from_json(json.dumps(row)))
        except (ValueError, TypeError) as error:
            raise DamagedFileError(f"{where}: {error}") from None
        if tasks[-1].name in names:
            raise DamagedFileError(f"{where}: {tasks[-1].name} occurs twice")
        names.add(tasks[-1].name)
    if not tasks:
        raise DamagedFileError(f"{os.fspath(path)}: the file has no tasks")
    return tasks, rows


def harness_refusal(tasks: Sequence[Task], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why SWE-bench's harness cannot judge these tasks on this machine; None if it can."""
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
    """Return the share of tasks that predictions resolve.

    A patch resolves a task if all tests that should pass do, and no test that passed before fails. The share is of all
    tasks of the data set, as in SWE-bench: a task without a prediction is not resolved.

    Args:
        dataset: File of JSON lines with rows of SWE-bench, or with tasks that `write_tasks` wrote.
        predictions: Predictions of one model, at most one a task.
        by: "harness" runs SWE-bench's harness, `python -m swebench.harness.run_evaluation`, which needs its Docker
            images. "machines" runs `environments.judge` with `backend`; it leaves out tasks whose tests are not
            pytest's and tasks whose machine does not open. "auto" is the harness if it can run, else machines.
        folder: Folder for the results and the harness's logs, from which an interrupted evaluation resumes.
        backend: Backend of the machines. Defaults to a sandbox with the packages installed here.
        workers: Number of tasks to judge in parallel.
        seconds: Time limit of the tests of a task; the harness's default is 1,800.
        seed: Seed of the bootstrap.
        progress: Callback with the number of finished tasks and the number of all tasks.
        settings: Further settings that results depend on.

    Raises:
        ValueError: A prediction is for an unknown task, a file is invalid, `folder` holds results of other settings, or
            `by` is "harness" and the harness cannot run or fails.
    """
    tasks, rows = read_swe_tasks(dataset)
    by_id = {prediction.instance_id: prediction for prediction in predictions}
    if unknown := by_id.keys() - {task.name for task in tasks}:
        raise ValueError(f"{os.fspath(dataset)} lacks the task {min(unknown)!r} of a prediction")
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
    """Run SWE-bench's harness in `folder`, and return the lists of task names in its report, by name of the list.

    The harness writes to standard error, keeps its logs in `folder`, and skips tasks whose logs for `run_id` exist.

    Raises:
        ValueError: The harness fails or writes no report.
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
    """Return the lists of task names in a report of SWE-bench's harness, such as `resolved_ids`, by name.

    Raises:
        DamagedFileError: The file is not a report.
        OSError: The file cannot be read.
    """
    try:
        report = loads(Path(path).read_bytes())
        lists = {name: list(map(str, value)) for name, value in report.items() if name.endswith("_ids")}
    except (ValueError, AttributeError, TypeError):
        lists = {}
    if "resolved_ids" not in lists:
        raise DamagedFileError(f"{os.fspath(path)} is not a report of SWE-bench's harness")
    return lists


def _of_harness(task: Task, found: Mapping[str, Sequence[str]]) -> Result:
    lists = (name for name in _HARNESS_REASONS if task.name in found.get(name, ()))
    name = next(lists, None)
    return Result(
        task.name,
        {
            "resolved": name == "resolved_ids",
            "submitted": name not in ("empty_patch_ids", "incomplete_ids"),
            "reason": "not in the report" if name is None else _HARNESS_REASONS[name],
        },
    )


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
        return Result(task.name, left_out=_NOT_PYTEST)
    try:
        reward = judge(
            task, patch.encode(errors="surrogateescape") if patch.strip() else None, backend, seconds=seconds
        )
    except (SandboxError, ValueError, OSError) as error:
        reason = f"the machine failed: {type(error).__name__}"
        return Result(task.name, {"error": str(error)[:1000]}, left_out=reason)
    return Result(
        task.name,
        {
            "resolved": reward.value == 1.0,
            "submitted": bool(patch.strip()),
            "reason": _HARNESS_REASONS["incomplete_ids"] if prediction is None else reward.reason,
            "similarity": reward.similarity,
            "kind": task.kind,
        },
    )


def _report(tasks: Sequence[Task], results: list[Result], settings: dict[str, Any]) -> Report:
    judged = [result.values for result in results if result.left_out is None]
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
