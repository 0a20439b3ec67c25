"""The demo trains and predicts unseen programs, and repeats exactly, with the code of `make demo`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest

pytest.importorskip("torch")

from cwm_core import PackedLoader
from cwm_core.corpus.split import normalized
from cwm_core.demo import data, run, run_demo
from cwm_core.demo.recipe import FULL, SHORT
from cwm_core.demo.run import GALLERY_SIZE, Demo, choose_examples, with_first_frame
from rich.console import Console

TINY = replace(SHORT, programs=60, algorithm_calls=1, held_out=3, steps=4)


def test_training_and_held_out_programs_share_nothing() -> None:
    train, held_out = data.programs(FULL)
    assert len(train) > 10_000 and len(held_out) == FULL.held_out
    seen = {normalized(program.code) for program in train}
    assert not any(normalized(program.code) in seen for program in held_out)
    assert not {program.code for program in train} & {program.code for program in held_out}


def test_the_short_demo(tmp_path, capsys, monkeypatch) -> None:
    recipe = replace(SHORT, steps=80, held_out=12)
    monkeypatch.setattr(run, "SHORT", recipe)
    run_demo(tmp_path, short=True)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    losses = results["training"]["losses"]
    assert len(losses) == recipe.steps
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]
    scores = results["scores"]
    assert scores["trained, lines given"]["state"] > scores["untrained, lines given"]["state"]
    assert scores["untrained, free"]["valid_format"] == 0.0
    assert all(name in printed for name in scores) and " processes with one thread each" in printed
    assert "dtype float32: " in printed or "dtype bfloat16: " in printed
    page = (tmp_path / "predictions.html").read_text()
    shown = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])["examples"]
    assert len(shown) == GALLERY_SIZE and all("START_OF_TRACE" in example["context"] for example in shown)
    assert sum(not example["differences"] for example in shown) == min(results["right"], GALLERY_SIZE // 2)
    assert str(tmp_path / "predictions.html") in printed.replace("\n", "")
    assert (tmp_path / "model" / "model.safetensors").is_file() and (tmp_path / "model" / "tokenizer.json").is_file()


def test_ctrl_c_ends_the_demo_at_once(tmp_path) -> None:
    command = [sys.executable, "-m", "cwm_core", "demo", "-o", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "demo").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)  # the demo takes minutes
    assert (process.returncode, said) == (130, "cwm demo: interrupted\n")
    assert not (tmp_path / "demo" / "results.json").exists()


def test_a_seed_repeats_everything(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "available_processes", lambda config: 1)
    recipe = replace(TINY, training=TINY.training | {"dtype": "float32"})
    runs = []
    for name in ("a", "b"):
        demo = Demo(recipe, tmp_path / name, Console(quiet=True))
        (tmp_path / name).mkdir()
        train, held_out = demo.record()
        tokenizer, shards = demo.tokenize(train)
        batches = islice(PackedLoader(str(shards), TINY.seq_len, batch_size=2, seed=TINY.seed), 3)
        demo.train(tokenizer, shards)
        texts = [trace.to_text() for trace in [*train, *held_out]]
        runs.append((texts, tokenizer.encode(texts[0]).tolist(), [b.tokens.tolist() for b in batches], demo.losses))
    assert runs[0] == runs[1]
    other = data.programs(replace(TINY, seed=1))
    assert other != data.programs(TINY)


@pytest.mark.parametrize(("hits", "misses"), [(20, 20), (2, 20), (20, 2), (10, 0), (0, 10), (3, 4)])
def test_examples_are_the_first_of_each_kind(hits, misses) -> None:
    right = [True, False] * min(hits, misses) + [True] * (hits - misses) + [False] * (misses - hits)
    chosen = choose_examples(right)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(GALLERY_SIZE, hits + misses)
    for kind, count in ((True, hits), (False, misses)):
        shown = [at for at in chosen if right[at] is kind]
        assert len(shown) >= min(count, GALLERY_SIZE // 2)
        assert shown == [at for at, one in enumerate(right) if one is kind][: len(shown)]


def test_a_prediction_is_shown_from_the_first_frame() -> None:
    _, held_out = data.programs(TINY)
    trace = data.record(held_out[:1])[0]
    predicted = trace.parse(trace.to_text())
    rest = predicted.trace.to_text().split("<|frame_sep|>", 2)[2]

    class Prediction:
        parsed = trace.parse(rest)

    shown = with_first_frame(trace, Prediction())
    assert [f.line for f in shown.frames] == [f.line for f in trace.frames]
