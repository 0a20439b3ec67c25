"""Sources and filters from outside the package: the scripts in `examples/`, from the command line and from Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core import machines
from cwm_core.corpus.pipeline import make_corpus
from cwm_core.corpus.recording import CorpusSettings
from cwm_core.corpus.sample import Drop
from cwm_core.corpus.unit import Unit
from cwm_core.support.pool import processes
from llama3 import rank_path

for library in ("rich", "rensa", "license_expression", "detect_secrets"):
    pytest.importorskip(library)

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = "def f(x):\n    y = x\n    z = y\n    w = z\n    return w\n"


def corpus(*arguments, out, cwd=EXAMPLES):
    common = ["--tokenizer", rank_path(), "-o", out, "--sandbox", SANDBOX]
    command = [sys.executable, "-m", "cwm_core", "corpus", *map(str, [*arguments, *common])]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def keys(out):
    return [entry.key for path in sorted((out / "traces").iterdir()) for entry in cwm.TraceReader(path).entries()]


def test_a_source_from_the_command_line(tmp_path):
    done = corpus("source", "corpus_source:units", 6, "--workers", 2, out=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert keys(tmp_path / "out") == [f"insertion-sort-{number:06}#0" for number in range(6)]
    done = corpus("source", "corpus_source:units", 7, "--workers", 1, out=tmp_path / "out")
    assert done.returncode == 1 and "other sources or settings" in done.stderr


def test_a_source_from_python(tmp_path):
    if SANDBOX == "process":
        pytest.skip("the example uses bubblewrap")
    command = [sys.executable, EXAMPLES / "corpus_source.py", rank_path(), tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("10 of 10 samples kept")


@pytest.mark.parametrize("workers", [1, 2])
def test_filters_from_the_command_line(tmp_path, workers):
    (tmp_path / "mine.py").write_text(
        "from cwm_core.corpus.unit import Unit\n\ndef units():\n"
        f"    yield Unit('long', {LONG!r}, ('f(1)',))\n"
        f"    yield Unit('prints', {LONG.replace('w = z', 'print(z)').replace('return w', 'return z')!r}, ('f(2)',))\n"
        "    yield Unit('short', 'def f(x):\\n    return [x, x]\\n', ('f(3)',))\n"
    )
    (tmp_path / "corpus_filter.py").write_text((EXAMPLES / "corpus_filter.py").read_text())
    filters = ["--filter", "corpus_filter:no_prints", "--filter", "corpus_filter:varied"]
    arguments = ["source", "mine:units", "--license", "MIT", *filters, "--workers", workers]
    done = corpus(*arguments, "--json", out=tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dropped"] == {"few lines": 1, "prints": 1}
    assert keys(tmp_path / "out") == ["long#0"]
    settings = json.loads((tmp_path / "out" / "corpus.json").read_text())["settings"]
    assert settings["filters"] == ["corpus_filter:no_prints", "DistinctLines(at_least=5)"]
    done = corpus("source", "mine:absent", out=tmp_path / "other", cwd=tmp_path)
    assert done.returncode == 1 and "mine has no 'absent'" in done.stderr


def no_twos(sample):
    return Drop("two") if "2" in sample.call else None


def test_filters_from_python_come_after_the_others(tmp_path):
    units = [Unit(str(n), LONG, (f"f({n})",), provenance={"license": "MIT"}) for n in (1, 2)]
    units.append(Unit("3", LONG, ("f(22)",), provenance={"license": "GPL-3.0-only"}))
    settings = CorpusSettings(str(rank_path()), sandbox=SANDBOX)
    for size in (1, 2):
        with processes(size) as pool:
            summary = make_corpus(tmp_path / str(size), units, settings, description={}, filters=[no_twos], pool=pool)
        assert summary.drops.to_json()["dropped"] == {"two": 1, "license not allowed": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_sandboxes_in_a_pool_leave_no_folders(tmp_path, monkeypatch, fails):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    units = (Unit(str(n), LONG, (f"f({n})",), provenance={"license": "MIT"}) for n in range(40))

    def interrupt(done):
        if fails:
            raise KeyboardInterrupt

    settings = CorpusSettings(str(rank_path()), sandbox="process")
    try:
        with processes(2) as pool:
            make_corpus(tmp_path / "out", units, settings, description={}, pool=pool, watch=interrupt, chunk_items=4)
    except KeyboardInterrupt:
        assert fails
    assert [name for name in os.listdir(tmp_path / "tmp") if name.startswith("cwm-")] == []
