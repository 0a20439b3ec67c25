"""Run the GPU benchmarks at a small scale on the CPU, and check that the compared results are equal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "benches" / "gpu"


def run(name, file, *options):
    command = [sys.executable, FOLDER / f"{name}.py", *options, "--json", file]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def rows_of(name, tmp_path):
    done = run(name, tmp_path / "out.json", "--tiny")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["benchmark"] == name and result["peak_flops"] > 0
    assert len(done.stdout.splitlines()) == 2 + len(result["rows"])
    return result["rows"]


def test_attention(tmp_path):
    rows = rows_of("attention", tmp_path)
    measured = [row for row in rows if "skipped" not in row]
    assert {row["backend"] for row in measured} == {"sdpa", "reference"}
    assert len(rows) == 2 * len(measured) == 16
    for row in measured:
        assert row["differs"] < 1e-4 and min(row["forward_s"], row["both_s"], row["floor_s"]) > 0
    reasons = {row["backend"]: row["skipped"] for row in rows if "skipped" in row}
    assert "does not support backward on CPU" in reasons["flex"] and "kernel is CUDA's" in reasons["varlen"]


def test_loss(tmp_path):
    rows = rows_of("loss", tmp_path)
    assert [row["chunk"] for row in rows] == [16, 64, "all"] * 2
    for row in rows:
        assert row["differs"] < 1e-4 and row["both_s"] > 0


def test_train_step(tmp_path):
    """Both begin with the same weights and batches, and so with the same loss."""
    rows = rows_of("train_step", tmp_path)
    for tokens in (256, 512):
        of_case = {row["model"]: row for row in rows if row["tokens"] == tokens}
        ours, theirs = of_case["ours"], of_case["sdpa"]
        assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=1e-5)
        assert ours["times_faster"] == pytest.approx(theirs["step_s"] / ours["step_s"])
        assert 0 <= ours["loader_wait"] < 1 and ours["of_peak"] > 0 and ours["mfu"] is None
        assert "seem to be installed" in of_case["flash_attention_2"]["skipped"]


def test_decode(tmp_path):
    """All generate from the same weights, and so the same."""
    rows = rows_of("decode", tmp_path)
    measured = [row for row in rows if "skipped" not in row]
    assert [(row["model"], row["what"]) for row in measured] == [
        (model, what)
        for model in ("ours", "masked", "transformers")
        for _ in range(3)
        for what in ("prefill", "decode")
    ]
    for row in measured:
        tokens = row["batch"] * (row["prompt"] if row["what"] == "prefill" else 1)
        assert row["speed"] == pytest.approx(tokens / row["time_s"])
        assert row["of_floor"] == pytest.approx(row["floor_s"] / row["time_s"])
    assert rows[0]["agree"] == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_they_say_so(tmp_path):
    done = run("loss", tmp_path / "out.json")
    assert done.returncode == 2 and "there is no CUDA device; --tiny runs on a CPU" in done.stderr


def test_documents_are_like_those_of_mid_training(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from measure import documents

    rows = [documents(131_072, seed) for seed in range(3000)]
    assert all(sum(row) == 131_072 and min(row) > 0 for row in rows)
    first = [row[0] for row in rows]  # the others are cut to what is left
    assert 0.27 < sum(length > 65_536 for length in first) / len(first) < 0.33
