"""JSON Lines files in all forms that occur, read by every reader of the package."""

import gzip
import io
import json
import sys

import pytest
from cwm_core import DamagedFileError
from cwm_core.corpus.contests import read_contests
from cwm_core.corpus.functions.sources import read_sources
from cwm_core.data.documents import read_items
from cwm_core.environments import Task, Trajectory, TrajectoryWriter, Turn, read_tasks
from cwm_core.environments.issues import read_issues
from cwm_core.evaluation.problems import read_problems
from cwm_core.support.jsonl import is_jsonl, read_rows

zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

ROWS = [{"text": "a"}, {"text": "\u2028é"}]
LINES = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
PLAIN = b"".join(LINES)
SKIPPED_FRAME = b"\x50\x2a\x4d\x18\x01\x00\x00\x00x"

FORMS = {
    "plain": PLAIN,
    "no last line end": PLAIN[:-1],
    "byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "blank lines": b"\n" + LINES[0] + b" \t\n\r\n" + LINES[1] + b"\n\n",
    "Windows": PLAIN.replace(b"\n", b"\r\n"),
    "gzip": gzip.compress(PLAIN),
    "gzip in two members": gzip.compress(LINES[0]) + gzip.compress(LINES[1]),
    "Zstandard": zstd.compress(PLAIN),
    "Zstandard in two frames": zstd.compress(LINES[0]) + zstd.compress(LINES[1]),
    "parallel Zstandard": SKIPPED_FRAME + zstd.compress(PLAIN),
    "gzip with a byte order mark": gzip.compress(b"\xef\xbb\xbf\n" + PLAIN),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_every_form_gives_the_same_rows(form, name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[form])
    assert is_jsonl(tmp_path / name)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS
    assert [item.content for item in read_items(tmp_path / name)] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("form", FORMS)
def test_standard_input_gives_the_same_rows(form, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(FORMS[form]))))
    assert [row for _, row in read_rows("-")] == ROWS


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(FORMS["blank lines"])
    assert [number for number, _ in read_rows(tmp_path / "rows.jsonl")] == [2, 5]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (LINES[0] + b"{\n", r"line 2: not JSON"),
        (LINES[0] + b"\xff\n", r"line 2: not JSON: .*utf-8"),
        (b"[" * 200_000 + b"\n", r"line 1: not JSON: JSON nested too deeply"),
        (b'{"a":' * 200_000 + b"\n", r"line 1: not JSON: JSON nested too deeply"),
        (b"\n[1]\n", r"line 2: not a JSON object, but a list"),
        (b"null\n", r"line 1: not a JSON object, but null"),
        (b"1\n", r"line 1: not a JSON object, but a number"),
        ("{}\n".encode("utf-16"), r"expected UTF-8, got UTF-16"),
        (gzip.compress(PLAIN)[:-9], r"cut or damaged after line \d"),
        (b"\x1f\x8b\x00", r"cut or damaged after line 0"),
        (zstd.compress(PLAIN)[:-3], r"cut or damaged after line \d"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 9, r"cut or damaged after line 0"),
    ],
)
def test_unreadable_files_are_named(data, why, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"rows\.jsonl.*{why}"):
        list(read_rows(tmp_path / "rows.jsonl"))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="3.14 has a Zstandard module of its own")
def test_zstandard_without_a_library_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl.zst").write_bytes(zstd.compress(PLAIN))
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.delattr(sys.modules.get("backports", sys), "zstd", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"run pip install '.\[zstd\]' in a checkout of cwm-core"):
        list(read_rows(tmp_path / "rows.jsonl.zst"))


ISSUE = {
    **dict.fromkeys(["repo", "base_commit", "problem_statement", "patch", "test_patch"], "x"),
    "instance_id": "a__b-1",
    "FAIL_TO_PASS": ["t.py::test"],
    "PASS_TO_PASS": [],
}
READERS = [
    (read_problems, {"code": "def f(): return 1", "input": "", "output": "1"}),
    (read_tasks, json.loads(Task("name", "prompt").to_json())),
    (read_issues, ISSUE),
    (read_sources, {"code": "def f(): return 1"}),
    (read_contests, {"input_output": '{"inputs": ["1"], "outputs": ["1"]}', "solutions": '["print(input())"]'}),
]


@pytest.mark.parametrize(("read", "row"), READERS)
def test_every_reader_takes_every_form(read, row, tmp_path):
    line = json.dumps(row).encode()
    (tmp_path / "rows.jsonl").write_bytes(line)
    expected = list(read(tmp_path / "rows.jsonl"))
    assert len(expected) == 1
    for name, data in {
        "rows.jsonl": b"\xef\xbb\xbf" + line + b"\n\n",
        "rows.jsonl.gz": gzip.compress(line),
        "rows.jsonl.zst": zstd.compress(line),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert len(list(read(tmp_path / name))) == 1


@pytest.mark.parametrize(("read", "row"), READERS)
def test_every_reader_names_the_line_of_what_is_nested_too_deeply(read, row, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(row).encode() + b"\n" + b"[" * 200_000)
    with pytest.raises(ValueError, match=r"line 2.*nested too deeply"):
        list(read(tmp_path / "rows.jsonl"))


def test_compressed_trajectories_are_those_of_the_plain_file(tmp_path):
    messages = ({"role": "user", "content": "task"},)
    with TrajectoryWriter(tmp_path / "rollouts.jsonl") as writer:
        for name, failure in (("a", None), ("b", "failed"), ("c", None)):
            turns = (Turn(f"action {name}", "observation"),)
            end = "done" if failure is None else "failed"
            writer.add(Trajectory(name, Task("t", "task"), 0, {}, messages, turns, 1.0, "passed", end, failure))
    expected = [item.content for item in read_items(tmp_path / "rollouts.jsonl")]
    assert [trajectory.name for trajectory in expected] == ["a", "c"]
    data = (tmp_path / "rollouts.jsonl").read_bytes()
    for name, compressed in {
        "rollouts.jsonl.gz": gzip.compress(data),
        "rollouts.jsonl.zst": zstd.compress(data),
    }.items():
        (tmp_path / name).write_bytes(compressed)
        items = list(read_items(tmp_path / name))
        assert [item.content for item in items] == expected
        assert [item.where for item in items] == [f"{tmp_path / name}, line {line}" for line in (1, 3)]
