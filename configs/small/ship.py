"""Put the model of `make model` into the package, with its checksums and figures.

    python configs/small/ship.py weights build/model/run
    python configs/small/ship.py figures build/model/figures

The first command writes the weights in bfloat16 to `python/cwm_core/shipped`, with `figures.json`: checksums, facts on
the training, and scores on 50 programs, which a test repeats. The second adds the results of `cwm eval recordings` and
`cwm eval failures`, and writes the tables of `docs/model-card.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cwm_core import evaluation, model
from cwm_core.corpus.programs import held_out_programs
from cwm_core.evaluation.recordings import SCORES
from cwm_core.inference import Engine, predict_traces
from cwm_core.tokenizer import Tokenizer
from cwm_core.trace import Recorder

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "python" / "cwm_core" / "shipped"
CARD = ROOT / "docs" / "model-card.md"
FIGURES = "figures.json"
MAX_BYTES = 8_000_000
CHECKED = 25  # programs of each of two distributions
MAX_NEW_TOKENS = 1024
EVALUATED = "build/model/held-out --max-new-tokens 2048 --batch-size 256"  # as the Makefile has it


def write_weights(run: Path, folder: Path) -> None:
    """Write the model of a training run, its vocabulary, and `figures.json` to a folder, instead of what it has."""
    trained, tokenizer = model.load(run, dtype=torch.bfloat16), Tokenizer.load(run)
    shutil.rmtree(folder, ignore_errors=True)
    model.save(trained, folder, tokenizer)
    files = sorted(folder.iterdir())
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise SystemExit(f"{folder} has {size:,} bytes, at most {MAX_BYTES:,} are allowed")
    engine = Engine(trained.float(), tokenizer)
    figures = {
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "vocabulary": tokenizer.vocab_size,
        "training": training(run),
        "machine": machine(),
        "check": check(engine),
    }
    write_figures(folder, figures)


def training(run: Path) -> dict[str, Any]:
    """Return the command, steps, tokens, and seconds of a run, from its metrics. A resumed run may repeat steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows}
    last = [row["loss"] for row in list(steps.values())[-100:]]
    tokens = sum(row["tokens"] for row in steps.values())
    seconds = rows[-1]["seconds"]
    return {
        "command": "make model",
        "seed": 0,
        "steps": len(steps),
        "tokens": tokens,
        "seconds": round(seconds),
        "tokens_per_second": round(tokens / seconds),
        "loss": round(sum(last) / len(last), 4),
    }


def machine() -> dict[str, str | int | None]:
    """Return what rounding and speed depend on."""
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def check(engine: Engine) -> dict[str, float | None]:
    """Return the scores on 50 held-out programs, half of them of the wide distribution."""
    programs = held_out_programs(CHECKED)
    recorder = Recorder()
    traces = [recorder.record_source(*program) for name in ("basic", "wide") for program in programs[name]]
    predictions = predict_traces(engine, traces, max_new_tokens=MAX_NEW_TOKENS)
    pairs = zip(traces, predictions, strict=True)
    scores = asdict(evaluation.mean_scores(evaluation.score_trace(trace, one.parsed) for trace, one in pairs))
    return {name: scores[name] for name in SCORES}


def add_figures(results: Path, folder: Path) -> None:
    """Add the results of the evaluations to `figures.json`, and write the tables of the model card."""
    figures = json.loads((folder / FIGURES).read_text())
    report = json.loads((results / "recordings" / "report.json").read_text())
    failures = json.loads((results / "failures.json").read_text())
    figures["evaluation"] = {
        "command": f"cwm eval recordings {EVALUATED} -o build/model/figures/recordings",
        **{key: report[key] for key in ("settings", "measures", "problems", "left_out")},
    }
    figures["failures"] = {
        "command": f"cwm eval failures {EVALUATED} -o build/model/figures",
        **{key: failures[key] for key in ("traces", "causes", "kinds", "swaps", "strings")},
    }
    write_figures(folder, figures)
    CARD.write_text(card(CARD.read_text(), figures))


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write `figures.json`."""
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")


# ---- the model card


def card(text: str, figures: Mapping[str, Any]) -> str:
    """Return the model card with the tables of the figures."""
    parts = {"model": model_table(figures), "figures": score_table(figures), "failures": failure_tables(figures)}
    for name, table in parts.items():
        text, places = re.subn(
            rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", lambda _, t=table: t, text, flags=re.DOTALL
        )
        if places != 1:
            raise SystemExit(f"{CARD}: expected one place for {name}, found {places}")
    return text


def model_table(figures: Mapping[str, Any]) -> str:
    """Return a table of facts about the model and its training."""
    facts, on = figures["training"], figures["machine"]
    rows = [
        ("parameters", f"{figures['parameters']:,}"),
        ("vocabulary", f"{figures['vocabulary']:,} tokens"),
        ("training", f"{facts['tokens']:,} tokens in {facts['steps']:,} steps, {facts['seconds'] / 60:.0f} minutes"),
        ("speed", f"{facts['tokens_per_second']:,} tokens per second"),
        ("machine", f"{on['processor']}, {on['cores']} cores, Python {on['python']}, PyTorch {on['torch']}"),
    ]
    return table(("model", ""), rows)


def score_table(figures: Mapping[str, Any]) -> str:
    """Return a table of the scores by group."""
    measures = {measure["name"]: measure for measure in figures["evaluation"]["measures"]}
    groups = dict.fromkeys(name.rpartition(": ")[0] for name in measures)
    rows = []
    for group in groups:
        row = [measures[f"{group}: {score}"] for score in SCORES]
        rows.append((group, row[0]["n"], *map(interval, row)))
    return table(("programs", "number", "valid", "action", "state", "output"), rows)


def failure_tables(figures: Mapping[str, Any]) -> str:
    """Return tables of causes and probes."""
    failures = figures["failures"]
    causes = [(cause, number) for cause, number in failures["causes"].items()]
    kinds = [(row["kind"], interval(row["wrong"]), f"{row['wrong']['n']:,}") for row in failures["kinds"]]
    swaps = [(n, interval(row["free"]), interval(row["lines_given"])) for n, row in failures["swaps"].items()]
    strings = [(n, interval(row["observed"]), percent(row["expected"])) for n, row in failures["strings"].items()]
    return "\n".join(
        [
            table((f"cause, of {failures['traces']:,} predictions", "first differences"), causes),
            table(("kind of value", "wrong", "values"), kinds),
            table(("swaps", "output, free", "output, lines given"), swaps),
            table(("nested functions of a string", "output", "expected from single functions"), strings),
        ]
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def interval(measure: Mapping[str, Any]) -> str:
    """Return a measure in percent with its interval."""
    if measure["value"] is None:
        return "-"
    return f"{percent(measure['value'])} ({percent(measure['low'])} to {percent(measure['high'])})"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("weights", "figures"))
    parser.add_argument("folder", type=Path, help="the training run, or the results of the evaluations")
    args = parser.parse_args()
    if args.what == "weights":
        write_weights(args.folder, SHIPPED)
    else:
        add_figures(args.folder, SHIPPED)


if __name__ == "__main__":
    main()
