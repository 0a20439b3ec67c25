"""Ctrl-C ends native work, however long it would take, and is never a panic."""

import signal
import subprocess
import sys
import time

import cwm_core as cwm
import numpy as np
import pytest

PREPARE = """
import itertools, sys
import cwm_core as cwm
from cwm_core.data import Bucket
folder = sys.argv[1]
both = {"long": (folder + "/long", 1e-15), "short": (folder + "/short", 1.0)}
buckets = [Bucket(50, 1), Bucket(None, 1)]
def endless(**options):
    return cwm.PackedLoader(folder + "/short", 64, **options)
"""

# Each of these would take hours, or never end.
CALLS = {
    "skip": "endless(prefetch=0).skip(10**9)",
    "skip after prefetching": "loader = endless(); next(loader); loader.skip(10**9)",
    "a search for a rare document": "list(cwm.PackedLoader(both, 64, buckets=buckets, prefetch=0))",
    "a search by the prefetching thread": "list(cwm.PackedLoader(both, 64, buckets=buckets))",
    "a search in a stream": "list(cwm.PackedLoader(both, 999, buckets=buckets, packing='stream', prefetch=0))",
    "training a vocabulary": "cwm.Tokenizer.train(itertools.repeat('a few words'), 300)",
    "training with a slow pattern": "cwm.Tokenizer.train(['b' * 3000 + 'c'] * 10_000, 300, pattern='b*(?=b*d)|b')",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for name, length in (("long", 100), ("short", 10)):
        with cwm.ShardWriter(folder / name, 1000) as writer:
            for _ in range(10 if name == "long" else 1000):
                writer.add(np.arange(length))
    return str(folder)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ctrl_c_ends_it(folder, call):
    program = f"{PREPARE}\nprint('ready', flush=True)\n{call}\nprint('it ended by itself')\n"
    command = [sys.executable, "-c", program, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out == "" and err.endswith("KeyboardInterrupt\n"), out + err


def test_an_interrupted_skip_changes_nothing(folder):
    """And the exception is the handler's own."""

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    loader = cwm.PackedLoader(f"{folder}/short", 64, prefetch=0)
    first = next(loader).tokens.tolist()
    state = loader.state_dict()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Stop):
            loader.skip(10**9)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert loader.state_dict() == state
    twin = cwm.PackedLoader(f"{folder}/short", 64)
    assert next(twin).tokens.tolist() == first
    assert next(twin).tokens.tolist() == next(loader).tokens.tolist()


FIRST_ARRAYS = {
    "a tokenizer": "native.Tokenizer.train(iter(['a']), 256, '.', [], 1, None)",
    "shards": "native.Shards(sys.argv[1] + '/short', None, None)",
    "a writer": "native.ShardWriter(sys.argv[1] + '/new', 10, None, 10, True)",
    "a loader": "native.PackedLoader([('a', sys.argv[1] + '/short', 1.0, 1)], None, None, [(2**32 - 1, 8, 1)], 9, [],"
    " 0, 1, 0, (0, 1), 0)",
}


@pytest.mark.parametrize("call", FIRST_ARRAYS.values(), ids=FIRST_ARRAYS)
def test_ctrl_c_while_numpy_is_imported_does_not_panic(folder, call):
    """The first native call that needs arrays imports NumPy; Ctrl-C is pressed at that moment."""
    program = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder
import cwm_core._native as native
assert "numpy" not in sys.modules

class Presser(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "numpy" and self in sys.meta_path:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Presser())
try:
    {call}
except KeyboardInterrupt:
    {call}  # and it works the next time
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_importing_the_package_does_not_import_numpy():
    program = "import sys, cwm_core; assert not {'numpy', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
