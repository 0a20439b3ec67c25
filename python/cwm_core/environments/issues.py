"""Make tasks from fixed issues in the format of SWE-bench."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._native import DamagedFileError
from ..support.jsonl import loads, read_rows
from .patches import touched
from .protection import SETTINGS
from .tasks import Task

MAX_PROMPT_TOKENS = 8192
"""Maximum length of a prompt in the software engineering environment of the Code World Model (arXiv 2510.02387)."""

IMAGE = "swebench/sweb.eval.x86_64.{}:latest"
"""Names of the SWE-bench images on Docker Hub, which does not allow "__" in names."""

TEST_COMMAND = 'PATH="/opt/miniconda3/envs/testbed/bin:$PATH" python -m pytest -q'
"""Command that runs pytest in the environment of the SWE-bench images."""

WORKDIR = "/testbed"
"""Folder of the repository in the SWE-bench images."""

_REQUIRED = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch")
_PROMPT = "This is an issue of {repo}, whose source code you are in:\n\n{statement}\n\nResolve it by changing the code."


def byte_length(text: str) -> int:
    """Return an upper bound of the number of tokens of a text, for any byte-level tokenizer."""
    return len(text.encode(errors="replace"))


def read_issues(
    path: str | os.PathLike[str],
    *,
    test_command: str = TEST_COMMAND,
    count_tokens: Callable[[str], int] = byte_length,
    left_out: Callable[[str, str], object] | None = None,
) -> Iterator[Task]:
    """Read tasks of kind "issue-fix" from a JSON Lines file in the format of SWE-bench.

    The fields are `instance_id`, `repo`, `base_commit`, `problem_statement`, `patch`, `test_patch`, `FAIL_TO_PASS`, and
    `PASS_TO_PASS` (lists, or strings with JSON lists). `image` or `image_name` is optional; the default is the image of
    SWE-bench. The repository is in the folder `WORKDIR` of the image.

    Rows are skipped if their tests do not have names of pytest, or if their prompt has more than 8,192 tokens.

    Args:
        path: The file.
        test_command: Command that runs pytest.
        count_tokens: Returns the number of tokens of a text.
        left_out: Called with the id of each skipped row and the reason.

    Raises:
        DamagedFileError: A row is invalid; the message names its line.
    """
    for number, row in read_rows(path):
        try:
            task = issue_task(row, test_command=test_command)
        except ValueError as error:
            raise DamagedFileError(f"{os.fspath(path)}, line {number}: {error}") from None
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
    """Return the task of a row. Raise ValueError that names a field that is missing or has the wrong type."""
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
