"""Pools replace killed processes, and hand over secrets without leaving them in environments."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from cwm_core.support import secrets
from cwm_core.support.pool import TRIES, in_order, processes


def _dies_at_first(item):
    """Kill the process if the file that the item names does not exist yet."""
    path, number = item
    marked = f"{path}/{number}"
    if number % 3 == 0 and not os.path.exists(marked):
        open(marked, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _dies(item):
    with open(item, "a") as file:
        file.write("x")
    os._exit(7)


def _raises(item):
    raise item


class _CannotBeSent(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def _raises_what_cannot_be_sent(item):
    raise _CannotBeSent(item, 2)


def _environment(item):
    shown = Path("/proc/self/environ").read_text()
    return dict(os.environ), shown, secrets.get("CWM_API_KEY")


def _sleeps(item):
    time.sleep(item)


def test_the_item_of_a_killed_process_is_tried_again(tmp_path):
    with processes(2) as pool:
        items = [(str(tmp_path), number) for number in range(7)]
        assert list(in_order(pool, _dies_at_first, items)) == list(range(7))
    assert len(list(tmp_path.iterdir())) == 3


def test_an_item_that_ends_every_process_is_an_error(tmp_path):
    marks = tmp_path / "marks"
    with processes(2) as pool:
        other = pool.submit(_raises, KeyError(1))
        with pytest.raises(ChildProcessError, match=r"3 processes of the pool ended .* with exit code 7"):
            pool.submit(_dies, str(marks))()
        with pytest.raises(KeyError):
            other()
    assert marks.read_text() == "x" * TRIES


@pytest.mark.parametrize("error", [ConnectionError("no"), EOFError("no"), BrokenPipeError(32, "no"), ValueError("no")])
def test_an_exception_of_the_work_is_not_a_killed_process(error):
    with processes(2) as pool, pytest.raises(type(error), match="no"):
        pool.submit(_raises, error)()


def test_exceptions_that_cannot_be_sent():
    with processes(2) as pool, pytest.raises(RuntimeError, match="_CannotBeSent: 1 and 2"):
        pool.submit(_raises_what_cannot_be_sent, 1)()


def test_an_exception_ends_what_runs():
    class Stop(Exception):
        pass

    started = time.monotonic()
    with pytest.raises(Stop), processes(2) as pool:
        waiting = [pool.submit(_sleeps, 600) for _ in range(5)]
        time.sleep(1)
        raise Stop
    assert time.monotonic() - started < 300  # they would sleep for longer
    for answer in waiting:
        with pytest.raises((CancelledError, ChildProcessError)):
            answer()


def test_processes_inherit_no_secrets_and_get_those_that_are_sent(monkeypatch):
    monkeypatch.setenv("CWM_API_KEY", "sk-not-to-be-seen")
    monkeypatch.setenv("SOME_TOKEN", "sk-not-to-be-seen")
    with processes(2) as pool:
        [(inherited, shown, key)] = in_order(pool, _environment, [1])
        assert "sk-not" not in str(inherited) + shown and "PATH" in inherited and key == ""
        sent = secrets.read(["CWM_API_KEY"])
        [(inherited, shown, key)] = in_order(pool, _environment, [1], sent)
        assert "sk-not" not in str(inherited) + shown and key == "sk-not-to-be-seen"
    assert os.environ["CWM_API_KEY"] == "sk-not-to-be-seen"
