"""A log that any interruption leaves readable, and that only one writer has."""

import json

import pytest
from cwm_core import CwmError, DamagedFileError
from cwm_core.support.log import ResumableLog
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
