"""The model of the package: its files, its recorded figures, and the examples that rely on it."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cwm_core import inference, model  # noqa: E402
from cwm_core.model import SHIPPED_FOLDER  # noqa: E402

ROOT = Path(__file__).parents[2]

if not SHIPPED_FOLDER.exists():
    pytest.skip("this checkout has no shipped model yet", allow_module_level=True)

FIGURES = json.loads((SHIPPED_FOLDER / "figures.json").read_text())
# Rounding differs between processors, and one other token may change an execution.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def ship():
    """The script that wrote the files."""
    spec = importlib.util.spec_from_file_location("ship", ROOT / "configs" / "small" / "ship.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine():
    return inference.Engine(*model.load_shipped())


def test_files_have_their_recorded_checksums(ship):
    files = {path.name: path for path in SHIPPED_FOLDER.iterdir() if path.name != "figures.json"}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == FIGURES["sha256"]
    assert sum(path.stat().st_size for path in files.values()) <= ship.MAX_BYTES
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files.keys()


def test_weights_are_bfloat16_and_compute_in_float32(engine):
    stored = model.load(SHIPPED_FOLDER)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in stored.parameters()) == FIGURES["parameters"]


def test_predictions_of_fifty_programs_have_the_recorded_scores(ship, engine):
    assert ship.check(engine) == pytest.approx(FIGURES["check"], abs=TOLERANCE)


def test_the_model_card_shows_the_recorded_figures(ship):
    text = ship.CARD.read_text()
    assert ship.card(text, FIGURES) == text
    assert f"{FIGURES['parameters']:,}" in text


def test_every_recorded_figure_has_its_command_and_machine():
    assert set(FIGURES["machine"]) == {"processor", "cores", "python", "torch"}
    makefile = (ROOT / "Makefile").read_text().replace("$(MODEL)", "build/model").replace("$(EVALUATE)", "cwm eval")
    for part in ("evaluation", "failures"):
        assert FIGURES[part]["command"] in makefile
    groups = {measure["name"].partition(":")[0] for measure in FIGURES["evaluation"]["measures"]}
    assert {"basic", "wide", "unseen", "algorithms", "functions"} <= groups
    assert FIGURES["evaluation"]["settings"]["seed"] == FIGURES["training"]["seed"] == 0
