"""Tasks from issues that were fixed: rows of SWE-bench's form."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..support.jsonl import loads, read_rows
from .patches import touched
from .protection import SETTINGS
from .tasks import Task

MAX_PROMPT_TOKENS = 8192
"""Of the Code World Model's software engineering environment (arXiv 2510.02387)."""

IMAGE = "swebench/sweb.eval.x86_64.{}:latest"
"""How the images of SWE-bench are called on Docker Hub, which allows no "__" in names."""

TEST_COMMAND = 'PATH="/opt/miniconda3/envs/testbed/bin:$PATH" python -m pytest -q'
"""pytest of the environment that SWE-bench's images hold."""

WORKDIR = "/testbed"
_REQUIRED = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch")
_PROMPT = "This is an issue of {repo}, whose source code you are in:\n\n{statement}\n\nResolve it by changing the code."


def byte_length(text: str) -> int:
    """An upper bound of the number of tokens of a text, for any byte-level tokenizer."""
    return len(text.encode(errors="replace"))


def read_issues(
    path: str | os.PathLike[str],
    *,
    test_command: str = TEST_COMMAND,
    count_tokens: Callable[[str], int] = byte_length,
    left_out: Callable[[str, str], object] | None = None,
) -> Iterator[Task]:
    """Tasks of kind "issue-fix" from a JSONL file of rows as SWE-bench has them.

    Read are `instance_id`, `repo`, `base_commit`, `problem_statement`, `patch`, `test_patch`, `FAIL_TO_PASS` and
    `PASS_TO_PASS` (lists, or JSON of them in a string) and, where there, `image` or `image_name`; without, the image
    is called as SWE-bench's own. The repository is at `WORKDIR` of the image.

    Rows whose tests are not named as pytest names them, and those whose prompt is more than 8,192 tokens long by
    `count_tokens`, are left out: `left_out` is called with the id and the reason. Raises ValueError that names the
    line of a row that is none.
    """
    for number, row in read_rows(path):
        try:
            task = issue_task(row, test_command=test_command)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
        reason = None
        if not task.fail_to_pass or not all("::" in name for name in (*task.fail_to_pass, *task.pass_to_pass)):
            reason = "its tests are not pytest's"
        elif count_tokens(task.prompt) > MAX_PROMPT_TOKENS:
            reason = "its prompt is too long"
        if reason is None:
            yield task
        elif left_out is not None:
            left_out(task.name, reason)


def issue_task(row: Mapping[str, Any], *, test_command: str = TEST_COMMAND) -> Task:
    """The task of one row. Raises ValueError that names a field that is missing or not of its type."""
    for field in _REQUIRED:
        if not isinstance(row.get(field), str):
            raise ValueError(f"{field!r} must be a string, got {json.dumps(row.get(field))[:60]}")
    name = row["instance_id"]
    image = row.get("image") or row.get("image_name") or IMAGE.format(name.lower().replace("__", "_1776_"))
    tests = touched(row["test_patch"])
    solved = set(touched(row["patch"]))
    return Task(
        name,
        _PROMPT.format(repo=row["repo"], statement=row["problem_statement"].strip()),
        image=str(image),
        workdir=WORKDIR,
        test_command=test_command,
        test_patch=row["test_patch"],
        fail_to_pass=_names(row, "FAIL_TO_PASS"),
        pass_to_pass=_names(row, "PASS_TO_PASS"),
        protected=tuple(sorted({*tests, *(name for name in SETTINGS if name not in solved)})),
        solution=row["patch"],
        kind="issue-fix",
        provenance={"repository": row["repo"], "commit": row["base_commit"], "version": row.get("version")},
    )


def _names(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = row.get(field)
    try:
        names = loads(value) if isinstance(value, str) else value
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{field!r} must be a list of strings, or JSON of one, got {json.dumps(value)[:60]}")
    return tuple(names)
