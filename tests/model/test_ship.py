"""The script that puts a trained model into the package."""

import hashlib
import importlib.util
import json
from pathlib import Path

import cwm_core as cwm
import pytest

torch = pytest.importorskip("torch")

from cwm_core.model import load_shipped  # noqa: E402
from cwm_core.tokenizer.special_tokens import PAD, TRACE_TOKENS  # noqa: E402
from random_models import random_model  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "configs" / "small" / "ship.py"


@pytest.fixture(scope="module")
def ship():
    spec = importlib.util.spec_from_file_location("ship", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run: a model, its vocabulary, and its metrics, with a step that was repeated."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = cwm.Tokenizer.train(["def f(n):\n    return n\n"], 270, special_tokens=(*TRACE_TOKENS, PAD))
    shape = {"vocab_size": tokenizer.vocab_size, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024}
    cwm.model.save(random_model(cwm.model.preset("tiny", **shape)), folder, tokenizer)
    rows = [(1, 4.0, 2.0), (2, 2.0, 4.0), (2, 2.0, 3.0), (3, 1.0, 5.0)]
    lines = [json.dumps({"step": step, "loss": loss, "tokens": 100, "seconds": s}) + "\n" for step, loss, s in rows]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_weights_get_checksums_and_figures(ship, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "CHECKED", 1)
    monkeypatch.setattr(ship, "MAX_NEW_TOKENS", 8)
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "outdated").write_text("")
    ship.write_weights(run, folder)
    figures = json.loads((folder / "figures.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "figures.json"}
    assert figures["sha256"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert "model.safetensors" in files and "tokenizer.json" in files and "outdated" not in files
    facts = figures["training"]
    assert (facts["steps"], facts["tokens"], facts["seconds"], facts["tokens_per_second"]) == (3, 300, 5, 60)
    assert facts["loss"] == pytest.approx(7 / 3, abs=1e-4)
    assert figures["check"]["output"] == 0.0 and set(figures["check"]) == {"valid_format", "action", "state", "output"}
    monkeypatch.setattr("cwm_core.model.shipped.SHIPPED_FOLDER", folder)
    loaded, tokenizer = load_shipped()
    assert loaded.lm_head.weight.dtype == torch.float32 and tokenizer.vocab_size == figures["vocabulary"]
    stored = cwm.model.load(run).lm_head.weight
    assert torch.equal(loaded.lm_head.weight, stored.bfloat16().float())


def test_a_model_that_is_too_large_is_refused(ship, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="at most 1,000 are allowed"):
        ship.write_weights(run, tmp_path / "shipped")


def measure(value, n=10):
    return {"name": "", "value": value, "low": 0.1, "high": 0.9, "n": n, "interval": "wilson", "published": None}


def results(folder):
    """Write results of the evaluations to a folder."""
    (folder / "recordings").mkdir()
    measures = [
        measure(0.5) | {"name": f"{group}: {score}"}
        for group in ("basic", "1 to 10 frames")
        for score in ("valid_format", "action", "state", "output")
    ]
    report = {"settings": {"seed": 0}, "measures": measures, "problems": 10, "left_out": {}, "results": []}
    (folder / "recordings" / "report.json").write_text(json.dumps(report))
    failures = {
        "traces": 10,
        "causes": {"wrong line": 3},
        "kinds": [{"kind": "int", "wrong": measure(0.25, 40)}],
        "swaps": {"2": {"free": measure(0.5), "lines_given": measure(None)}},
        "strings": {"1": {"observed": measure(0.75), "expected": 0.75}},
    }
    (folder / "failures.json").write_text(json.dumps(failures | {"distance": [], "cases": []}))


def test_figures_go_into_the_model_card(ship, tmp_path, monkeypatch):
    results(tmp_path)
    figures = {"parameters": 1234567, "vocabulary": 1024}
    figures["training"] = {"tokens": 1000, "steps": 10, "seconds": 120, "tokens_per_second": 8}
    figures["machine"] = {"processor": "P", "cores": 2, "python": "3.11", "torch": "2"}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    page = tmp_path / "card.md"
    page.write_text(ship.CARD.read_text())
    monkeypatch.setattr(ship, "CARD", page)
    ship.add_figures(tmp_path, tmp_path)
    text = page.read_text()
    for row in (
        "| parameters | 1,234,567 |",
        "| training | 1,000 tokens in 10 steps, 2 minutes |",
        "| basic | 10 | 50.0 (10.0 to 90.0) | 50.0 (10.0 to 90.0) | 50.0 (10.0 to 90.0) | 50.0 (10.0 to 90.0) |",
        "| wrong line | 3 |",
        "| int | 25.0 (10.0 to 90.0) | 40 |",
        "| 2 | 50.0 (10.0 to 90.0) | - |",
        "| 1 | 75.0 (10.0 to 90.0) | 75.0 |",
    ):
        assert row in text.splitlines()
    stored = json.loads((tmp_path / "figures.json").read_text())
    assert ship.card(text, stored) == text and "results" not in stored["evaluation"]
    with pytest.raises(SystemExit, match="expected one place for model, found 0"):
        ship.card("nothing", stored)
