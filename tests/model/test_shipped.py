"""The model of the package: its files, its recorded figures, and the examples that rely on it."""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cwm_core import Recorder, evaluation, inference, model  # noqa: E402
from cwm_core.corpus.programs import held_out_programs  # noqa: E402
from cwm_core.debugger import Debugger, EngineFrames  # noqa: E402
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


# ---- what needs a model that knows something

README_CODE = "def triangle(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"


@pytest.fixture(scope="module")
def programs():
    return held_out_programs(8)["basic"]


@pytest.fixture(scope="module")
def free(engine, programs):
    """Recordings of the programs, and the unconstrained predictions."""
    traces = [Recorder().record_source(*program) for program in programs]
    return traces, inference.predict_traces(engine, traces, max_new_tokens=1024)


def test_the_example_of_the_readme_is_predicted_right(engine):
    """The README and `docs/get-started.md` show it: another model may need another example."""
    assert README_CODE in (ROOT / "README.md").read_text()
    prediction = inference.predict_trace(engine, README_CODE, "triangle(4)", max_new_tokens=1024)
    scores = evaluation.score_trace(Recorder().record_source(README_CODE, "triangle(4)"), prediction.parsed)
    assert scores.output == scores.state == scores.action == 1.0


def test_the_grammar_leaves_right_predictions_as_they_are(engine, programs, free):
    right = 0
    for program, trace, prediction in zip(programs, *free, strict=True):
        if evaluation.score_trace(trace, prediction.parsed).output == 1.0:
            constrained = inference.predict_trace(engine, *program, max_new_tokens=1024, source_lines=True)
            assert constrained.ids.tolist() == prediction.ids.tolist()
            right += 1
    assert right >= 4


def test_the_debugger_steps_through_and_verifies_a_right_prediction(engine, programs, free):
    at = next(
        i
        for i, (trace, prediction) in enumerate(zip(*free, strict=True))
        if evaluation.first_divergence(trace, prediction.parsed, is_cut=not prediction.parsed.complete) is None
    )
    code, call = programs[at]
    debugger = Debugger(EngineFrames(engine), engine.tokenizer, code, call)
    debugger.continue_to()
    assert debugger.finished and len(debugger.steps) == len(free[0][at])
    assert all(step.probability is None or 0 < step.probability <= 1 for step in debugger.steps)
    verification = debugger.verify(sandbox="process")
    assert verification.difference is None and verification.compared == len(debugger.steps)


def test_evaluations_tell_right_from_wrong_outputs(engine, programs):
    problems = [
        evaluation.Problem(str(i), code, call[2:-1], Recorder().record_source(code, call).result)
        for i, (code, call) in enumerate(programs)
        if call.startswith("f(") and "raise" not in code
    ]
    problems = [problem for problem in problems if problem.output is not None][:6]
    report = evaluation.evaluate_output(engine, problems, how="trace", max_new_tokens=1024)
    wrong = [dataclasses.replace(problem, output="'never'") for problem in problems]
    accuracy = report.measures[0].value
    assert accuracy is not None and accuracy >= 0.5
    assert evaluation.evaluate_output(engine, wrong, how="trace", max_new_tokens=1024).measures[0].value == 0
