"""A corpus is the same however often it is interrupted, and in every pool."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core import machines
from cwm_core.corpus.generator import generate
from cwm_core.corpus.output import CorpusWriter
from cwm_core.corpus.pipeline import make_corpus
from cwm_core.corpus.recording import CorpusSettings
from cwm_core.corpus.unit import Unit
from cwm_core.support.pool import in_order, processes
from llama3 import rank_path

pytest.importorskip("rensa")
pytest.importorskip("license_expression")
pytest.importorskip("detect_secrets")

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
SETTINGS = CorpusSettings(str(rank_path()), sandbox=SANDBOX)
MIT = {"license": "MIT", "source": "test"}


def unit(name, body, **provenance):
    code = "def f(x):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return Unit(name, code, ("f([3, 1, 2])",), provenance=MIT | provenance)


UNITS = [
    unit("sorts", "y = sorted(x)\nz = y[0]\nreturn y, z"),
    unit("sorts-again", "y = sorted(x)\nz = y[0]\nreturn y, z"),
    unit("clock", "import time\nt = time.time() > 0\ny = t\nreturn y"),
    unit("hash", "y = list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})\nz = y\nreturn z"),
    unit("file", "with open('/etc/passwd') as file:\n    y = file.read(1)\nreturn y"),
    unit("forever", "y = 0\nwhile True:\n    y += 1"),
    unit("crash", "import os\ny = 1\nos._exit(1)"),
    unit("secret", "y = 'AKIAIOSFODNN7EXAMPLQ'\nz = y[:2]\nreturn z"),
    unit("license", "y = 2\nz = 3\nreturn y * z", license="GPL-3.0-only"),
    unit("short", "return x"),
    unit("module", "import json\ny = json\nz = y.__name__\nreturn z"),
    unit(
        "message", "try:\n    from json import absent\nexcept ImportError as error:\n    y = str(error)\n    return y"
    ),
    unit("folder", "import os\ny = os.path.expanduser('~')\nz = y\nreturn z"),
    unit("own path", "y = '/tmp/a'\nz = y + '/b'\nreturn z"),
    unit("process", "import os\ny = os.getpid() > 0\nz = y\nreturn z"),
    unit("memory", "try:\n    y = bytearray(1 << 40)\nexcept MemoryError:\n    y = None\nreturn y"),
    unit("memory in C", "y = 1\nz = '-' * (1 << 34)\nreturn y"),
    unit("raises memory", "y = 1\nif y:\n    raise MemoryError('mine')"),
    unit("raises", "y = 1\nz = x[7]\nreturn z"),
]
REASONS = {
    "duplicate": 1, "effect: clock": 1, "not deterministic": 1, "effect: file": 1, "truncated": 1,
    "ended by exit code 1": 1, "secret": 1, "license not allowed": 1, "shows the machine": 2, "effect: machine": 1,
    "limit: memory": 2,
}  # fmt: skip


def content(folder):
    """Return everything that a reader sees."""
    traces = [
        tuple(entry) for path in sorted((folder / "traces").iterdir()) for entry in cwm.TraceReader(path).entries()
    ]
    shards = cwm.Shards(folder / "tokens") if any((folder / "tokens").iterdir()) else []
    tokens = [
        (d.tokens.tolist(), d.loss_mask.tolist(), d.source, {k: v.tolist() for k, v in d.spans.items()}) for d in shards
    ]
    return traces, tokens, (folder / "progress.jsonl").read_bytes()


def make(folder, units, workers=1, part_items=4, settings=SETTINGS, **options):
    with processes(workers) as pool:
        return make_corpus(
            folder, units, settings, description={"units": "test"}, pool=pool, part_items=part_items, **options
        )


def test_every_drop_has_its_reason(tmp_path):
    summary = make(tmp_path / "c", UNITS)
    dropped = summary.drops.to_json()["dropped"]
    assert dropped == REASONS, summary.drops.to_json()
    traces, tokens, _ = content(tmp_path / "c")
    kept = ["sorts", "short", "module", "own path", "raises memory", "raises"]
    assert [key for key, *_ in traces] == [f"{name}#0" for name in kept]
    assert summary.drops.kept == len(traces) == len(tokens)
    assert summary.tokens == sum(len(document[0]) for document in tokens)
    assert any("<module 'json'>" in str(frame.locals) for frame in traces[2][2].frames)
    _, metadata, trace = traces[0]
    assert trace == cwm.record_source(UNITS[0].code, UNITS[0].calls[0])
    assert metadata["source"] == "test" and metadata["license"] == "MIT" and metadata["call"] == "f([3, 1, 2])"


def test_workers_and_parts_make_no_difference(tmp_path):
    units = [*UNITS, *(Unit(f"{seed:03}", *_program(seed), provenance=MIT) for seed in range(30))]
    make(tmp_path / "one", units)
    make(tmp_path / "two", units, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    make(tmp_path / "whole", units, part_items=1000)
    assert content(tmp_path / "one")[:2] == content(tmp_path / "whole")[:2]


def _program(seed):
    program = generate(seed)
    return program.code, (program.call,)


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_corpus_pipeline import *
if __name__ == "__main__":
    make(Path({folder!r}), UNITS * 1 + [Unit(f"{{s:03}}", *_program(s), provenance=MIT) for s in range(40)], workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, number):
    units = [*UNITS, *(Unit(f"{seed:03}", *_program(seed), provenance=MIT) for seed in range(40))]
    make(tmp_path / "whole", units)
    script = tmp_path / "script.py"
    here = Path(__file__).parent
    paths = [os.fspath(folder) for folder in (here, here.parent, here.parents[1] / "benches")]
    script.write_text("from pathlib import Path" + SCRIPT.format(path=paths, folder=str(tmp_path / "cut")))
    progress = tmp_path / "cut" / "progress.jsonl"
    for parts in (1, 4, 8):
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not progress.exists() or progress.read_bytes().count(b"\n") < parts):
            pass
        process.send_signal(number)
        process.wait()
    make(tmp_path / "cut", units)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_torn_part_is_made_again(tmp_path):
    make(tmp_path / "c", UNITS)
    whole = content(tmp_path / "c")
    progress = tmp_path / "c" / "progress.jsonl"
    lines = progress.read_bytes().splitlines(keepends=True)
    progress.write_bytes(lines[0] + lines[1][:20])
    (tmp_path / "c" / "tokens" / "00007.cwmtok.tmp").write_bytes(b"left over")
    make(tmp_path / "c", UNITS, workers=2)
    assert content(tmp_path / "c") == whole


def test_existing_files_are_checked(tmp_path):
    make(tmp_path / "c", UNITS[:2])
    with pytest.raises(ValueError, match="other sources or settings"):
        make(tmp_path / "c", UNITS[:2], part_items=5)
    with CorpusWriter(tmp_path / "d", {}, 10, 0.8), pytest.raises(BlockingIOError):
        CorpusWriter(tmp_path / "d", {}, 10, 0.8)
    sketches = tmp_path / "c" / "sketches" / "00000.bin"
    data = bytearray(sketches.read_bytes())
    data[-1] ^= 1
    sketches.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000.bin is damaged at byte \d+"):
        make(tmp_path / "c", UNITS[:2])
    sketches.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"00000.bin is damaged at byte \d+"):
        make(tmp_path / "c", UNITS[:2])
    (tmp_path / "c" / "progress.jsonl").write_text(json.dumps({"items": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        make(tmp_path / "c", UNITS[:2])


def test_evaluation_problems_are_kept_out(tmp_path):
    problem = {"code": UNITS[0].code, "input": "[3, 1, 2]", "output": "1", "id": "p1"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    settings = CorpusSettings(str(rank_path()), evaluation_sets=(str(tmp_path / "problems.jsonl"),), sandbox=SANDBOX)
    assert make(tmp_path / "c", UNITS[:1], settings=settings).drops.to_json()["dropped"] == {"in an evaluation set": 1}


def _square(x):
    if x == 13:
        raise ValueError("unlucky")
    return x * x


@pytest.mark.parametrize("size", [1, 2])
def test_pools_keep_the_order_and_pass_errors_on(size):
    with processes(size) as pool:
        assert list(in_order(pool, _square, range(12))) == [x * x for x in range(12)]
        with pytest.raises(ValueError, match="unlucky"):
            list(in_order(pool, _square, range(20)))


def test_ray_makes_the_same(tmp_path):
    pytest.importorskip("ray")
    from cwm_core.support.pool import ray_cluster

    make(tmp_path / "here", UNITS)
    with ray_cluster() as pool:
        make_corpus(tmp_path / "ray", UNITS, SETTINGS, description={"units": "test"}, pool=pool, part_items=4)
    assert content(tmp_path / "ray") == content(tmp_path / "here")


def interrupt_at(items):
    """Return a `watch` function that interrupts when so many items are done."""

    def watch(done):
        if done >= items:
            raise KeyboardInterrupt

    return watch


def test_an_interrupted_part_is_kept_and_completed(tmp_path):
    units = [*UNITS, *(Unit(f"{seed:03}", *_program(seed), provenance=MIT) for seed in range(50))]
    make(tmp_path / "whole", units, part_items=1000)
    summaries = []
    for items in (16, 32, 48):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", units, part_items=1000, watch=interrupt_at(items), progress=summaries.append)
        traces, tokens, _ = content(tmp_path / "cut")
        assert traces == content(tmp_path / "whole")[0][: len(traces)] and len(traces) == len(tokens) > 0
        assert summaries[-1].items == items and summaries[-1].drops.kept == len(traces)
    seen = []
    make(tmp_path / "cut", units, part_items=1000, watch=seen.append)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert seen == [64, len(units)]  # finished items are not done again


def test_an_interrupted_part_among_others(tmp_path):
    units = [*UNITS, *(Unit(f"{seed:03}", *_program(seed), provenance=MIT) for seed in range(50))]
    make(tmp_path / "whole", units, part_items=20)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", units, part_items=20, watch=interrupt_at(36))
    with pytest.raises(KeyboardInterrupt):  # before anything new is done
        make(tmp_path / "cut", iter(_interrupting(units, 36)), part_items=20)
    make(tmp_path / "cut", units, part_items=20)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def _interrupting(units, at):
    yield from units[:at]
    raise KeyboardInterrupt


def test_a_run_that_kept_nothing_does_not_block_another(tmp_path):
    refused = [unit("gpl", "y = 1\nz = 2\nreturn y", license="GPL-3.0-only")]
    assert make(tmp_path / "c", refused).drops.to_json()["dropped"] == {"license not allowed": 1}
    any_license = dataclasses.replace(SETTINGS, licenses=None)
    assert make(tmp_path / "c", refused, settings=any_license).drops.kept == 1
    with pytest.raises(ValueError, match="other sources or settings"):
        make(tmp_path / "c", refused)
