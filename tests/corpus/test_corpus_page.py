"""The first example of the page on corpora runs as printed."""

import subprocess
import sys

import cwm_core as cwm
import readme


def test_the_first_example_runs(tmp_path):
    example = readme.examples("docs/guides/corpus.md")[0]
    subprocess.run([sys.executable, "-I", "-c", example], check=True, cwd=tmp_path, timeout=60)
    [stored] = cwm.TraceReader(tmp_path / "mine.cwmtraces").entries()
    assert stored.metadata["seed"] == 1 and "LIMIT = 3" in stored.trace.context and "g()" not in stored.trace.context
