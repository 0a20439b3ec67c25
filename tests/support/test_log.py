"""A log that any interruption leaves readable, and that only one writer has."""

import json
import logging
import subprocess
import sys

import pytest
from cwm_core import CwmError, DamagedFileError
from cwm_core.support.log import LogReader, ResumableLog
from hypothesis import given
from hypothesis import strategies as st

ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), max_size=3), max_size=6)


@given(rows=ROWS, cut=st.floats(0, 1))
def test_any_cut_keeps_the_complete_lines(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with ResumableLog(path, durable=False) as log:
        for row in rows:
            log.append(row)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    complete = rows[: path.read_bytes().count(b"\n")]
    with ResumableLog(path, durable=False) as log:
        assert list(log.rows()) == complete
        log.append({"last": 1})
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*complete, {"last": 1}]


@given(rows=ROWS, count=st.integers(0, 7))
def test_keep_removes_later_rows(tmp_path_factory, rows, count):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with ResumableLog(path, durable=False) as log:
        for row in rows:
            log.append(row)
        log.keep(count)
        log.append("new")
        assert list(log.rows()) == [*rows[:count], "new"]
    with ResumableLog(path) as log:
        assert list(log.rows()) == [*rows[:count], "new"]


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "log.jsonl"
    with ResumableLog(path), pytest.raises(BlockingIOError, match="another process writes"):
        ResumableLog(path)
    ResumableLog(path).close()


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 2}\n')
    with ResumableLog(path) as log, pytest.raises(DamagedFileError, match=r"log\.jsonl, line 2") as caught:
        list(log.rows())
    assert isinstance(caught.value, CwmError) and isinstance(caught.value, ValueError)
    assert path.read_bytes().count(b"\n") == 3


def test_an_incomplete_line_is_told_and_stays_until_the_next_one(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\nnot a log')
    with caplog.at_level(logging.WARNING), ResumableLog(path) as log:
        assert list(log.rows()) == [{"a": 1}]
        assert path.read_bytes().endswith(b"not a log")
        log.append(2)
    assert "skipped an incomplete record in the last 9 bytes" in caplog.text
    assert path.read_bytes() == b'{"a": 1}\n2\n'


@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=4),
    limit=st.integers(1, 9),
)
def test_the_pieces_of_long_lines_make_the_file(tmp_path_factory, lines, limit):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with ResumableLog(path, durable=False) as log:
        for line in lines:
            log.append_line(line)
    assert [line for _, line in LogReader(path).lines()] == [line + b"\n" for line in lines]
    pieces = list(LogReader(path).lines(limit))
    assert b"".join(piece for _, piece in pieces) == path.read_bytes()
    assert all(len(piece) <= limit and path.read_bytes()[at:].startswith(piece) for at, piece in pieces)


def test_a_write_that_fails_leaves_complete_lines(tmp_path):
    """The limit of a file's size stands for a full disk."""
    code = """
import resource, signal, sys
from cwm_core.support.log import LogReader, ResumableLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
with ResumableLog(sys.argv[1]) as log:
    log.append("x" * 60)
    try:
        log.append("y" * 60)
    except OSError:
        log.append("z")
"""
    path = tmp_path / "log.jsonl"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == ["x" * 60, "z"]
