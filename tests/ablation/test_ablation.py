"""The ablation: its documents, held-out sets, repairs, and intervals, and a run of seconds that is interrupted."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("libcst")
pytest.importorskip("matplotlib")

from cwm_core.ablation import data, model, predict, recipe, repair, report, run
from cwm_core.cli import main
from cwm_core.corpus.generator import GeneratedProgram
from cwm_core.corpus.split import normalized
from cwm_core.data import Shards
from cwm_core.data.traces import encode_for_training
from cwm_core.evaluation.statistics import student_interval, wilson_interval
from cwm_core.support.log import ResumableLog
from cwm_core.tokenizer import Tokenizer
from cwm_core.trace import record_source

TINY = recipe.AblationRecipe(
    arms=("mixed", "untrained"),
    tokens=1500,
    seeds=1,
    problems=2,
    checkpoints=(0.5, 1.0),
    transfer_steps=2,
    max_frames=9,
    seq_len=256,
    batch_size=1,
    model={
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 4096,
    },
)  # fmt: skip
LOOP = GeneratedProgram("def f(n):\n    k = 1\n    for i in range(n):\n        k += i + 2\n    return k\n", "f(3)")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data.prepare_vocabulary(folder / "vocabulary", TINY)
    tokenizer = Tokenizer.load(folder / "vocabulary")
    for seed in (0, 1):
        data.prepare_seed(folder / f"seed-{seed}", TINY, seed, tokenizer)
    return folder, tokenizer


def contexts(folder, tokenizer, form):
    """Return the contexts of the documents of a form, in order."""
    documents = Shards(folder / "shards" / form)
    return [tokenizer.parse_trace(documents[at].tokens).trace.context for at in range(len(documents))]


def test_all_forms_have_the_same_programs_and_none_of_those_held_out(prepared):
    folder, tokenizer = prepared
    held_out = []
    for seed in (0, 1):
        here = folder / f"seed-{seed}"
        forms = [contexts(here, tokenizer, form) for form in recipe.FORMS]
        assert len(forms[0]) > 10 and all(form == forms[0] for form in forms)
        sets = {name: data.read_held_out(here, name) for name in recipe.SETS}
        assert all(len(trace) <= TINY.max_frames for name in ("familiar", "unseen") for trace in sets[name])
        assert all(len(trace) > TINY.max_frames for trace in sets["longer"])
        assert {len(traces) for traces in sets.values()} == {TINY.problems}
        lengths = [
            len(tokenizer.parse_trace(document.tokens).frames) for document in Shards(here / "shards" / "traces")
        ]
        assert max(lengths) <= TINY.max_frames
        own = [normalized(program(trace.context)) for traces in sets.values() for trace in traces]
        assert not {normalized(program(context)) for context in forms[0]} & set(own)
        held_out += own
    assert len(set(held_out)) == len(held_out)  # seeds share no program either


def program(context):
    """Return the code of a context, without `main()`."""
    return context.partition("\ndef main()")[0]


def test_a_document_of_outputs_is_the_call_and_its_return(prepared):
    _, tokenizer = prepared
    trace = record_source(*LOOP).coarsen(**recipe.FORMS["outputs"])
    assert [(frame.event, frame.arg) for frame in trace.frames] == [("call", None), ("return", "10")]
    ids, loss_mask, _ = encode_for_training(tokenizer, trace)
    assert '"10"' in tokenizer.decode(ids[loss_mask]) and "range" not in tokenizer.decode(ids[loss_mask])


class Oracle:
    """An engine that knows the documents, and may answer with another value."""

    unfinished = 0

    def __init__(self, documents, change=lambda ids: ids):
        self.documents, self.change, self.prompts = documents, change, []

    def submit(self, request):
        prompt = request.prompt.tolist()
        whole = next(ids for ids in self.documents if ids[: len(prompt)].tolist() == prompt)
        self.prompts.append(prompt)
        rest = self.change(whole[len(prompt) :])
        assert request.max_new_tokens > len(rest)
        return SimpleNamespace(generation=lambda: SimpleNamespace(ids=np.asarray(rest, np.int32)))


@pytest.mark.parametrize("form", list(recipe.FORMS))
def test_answers_are_read_from_predicted_documents(prepared, form):
    _, tokenizer = prepared
    trace = record_source(*LOOP)
    ids = tokenizer.encode_trace(trace.coarsen(**recipe.FORMS[form]))
    oracle = Oracle([ids])
    right, generated, sizes = predict.predict_outputs(oracle, tokenizer, [trace], form)
    assert (right, sizes) == ([1], [len(trace)])
    prompt = tokenizer.decode(oracle.prompts[0])
    assert len(oracle.prompts[0]) + generated[0] == len(ids)
    assert ("return f(3)" in prompt.partition("main")[2].partition("main")[2]) == (form == "outputs")
    assert '"10"' not in prompt  # the answer
    one, other = (tokenizer.encode(f'"{value}"').tolist() for value in (10, 11))
    wrong = Oracle([ids], lambda rest: other if rest.tolist() == one else [*rest[:-2], rest[-1]])
    assert predict.predict_outputs(wrong, tokenizer, [trace], form).right == [0]


def test_a_mutant_fails_and_its_repair_solves_it(prepared):
    _, tokenizer = prepared
    task = repair.break_program(LOOP, record_source(*LOOP), random.Random(0))
    assert task.values[0] == "10" and len(task.calls) == 3 and task.calls[0] == "f(3)"
    assert task.code.replace(task.line, task.fixed) == LOOP.code and task.line != task.fixed
    assert record_source(task.code, "f(3)").result != "10"
    ids, loss_mask = repair.repair_document(tokenizer, task)
    answer = ids[loss_mask].tolist()
    assert repair.repaired(tokenizer, task, answer) == LOOP.code
    oracle = Oracle([ids])
    assert predict.predict_repairs(oracle, tokenizer, [task], "process").right == [1]
    assert tokenizer.decode(oracle.prompts[0]).count('"10"') == 1  # the value to return
    for cut in (answer[:-1], answer[1:], [], [*answer[:-1], *answer]):
        assert repair.repaired(tokenizer, task, cut) is None


def test_repairs_are_judged_by_running_them():
    task = repair.RepairTask(
        LOOP.code.replace("+ 2", "- 2"), "        k += i - 2\n", "        k += i + 2\n", ("f(3)", "f(0)"), ("10", "1")
    )
    other_way, constant = LOOP.code.replace("i + 2", "2 + i"), "def f(n):\n    return 10\n"
    programs = [LOOP.code, other_way, constant, task.code, None, "def f(n)\n"]
    assert repair.are_solved([task] * 6, programs, "process") == [True, True, False, False, False, False]


def test_programs_that_cannot_be_broken_have_no_task():
    plain = GeneratedProgram("def f(s):\n    return s.lower()\n", "f('A')")
    assert repair.break_program(plain, record_source(*plain), random.Random(0)) is None


def test_the_interval_of_students_t():
    # Student, Biometrika 6, 1908: additional hours of sleep of ten patients; mean 1.58, standard deviation 1.230.
    low, high = student_interval([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert (round(low, 3), round(high, 3)) == (0.700, 2.460)
    values = [NormalDist().inv_cdf((at + 0.5) / 400) for at in range(400)]
    assert student_interval(values)[1] == pytest.approx(1.96 / 20, rel=0.05)
    with pytest.raises(ValueError, match="at least two"):
        student_interval([1.0])


def scores(arm, *rights):
    return [{"arm": arm, "seed": seed, "right": right} for seed, right in enumerate(rights)]


def test_intervals_cover_seeds_and_programs():
    agreeing = scores("a", [1, 0] * 10, [1, 0] * 10)
    assert report.estimate(agreeing) == (0.5, *wilson_interval(20, 40))  # seeds that agree by chance prove nothing
    apart = report.estimate(scores("a", [1] * 500, [0] * 500, [1, 0] * 250))
    assert (apart.value, apart.low, apart.high) == (0.5, 0.0, 1.0)
    assert report.estimate(scores("a", [])) is None
    better = report.difference(scores("a", *[[1] * 40] * 3), scores("b", *[[0] * 40] * 3))
    assert better.value == 1.0 and 0.9 < better.low < 1.0
    # Newcombe, Statistics in Medicine 17, 1998, table II, method 10: 56 of 70 and 48 of 80.
    one = report.difference(scores("a", [1] * 56 + [0] * 14), scores("b", [1] * 48 + [0] * 32, [1]))
    assert (round(one.low, 4), round(one.high, 4)) == (0.0524, 0.3339)
    assert report.difference(agreeing, []) is None
    same = report.difference(agreeing, agreeing)
    assert same.value == 0.0 and same.low < -0.1 and same.high > 0.1


def rows(folder):
    return {path.parent.name: path.read_text() for path in folder.glob(f"runs/*/{model.LOG}")}


def test_an_interrupted_run_ends_as_a_whole_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SHORT", TINY)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["ablation", "--short", "--sandbox", "process", "-o"]
    assert main([*arguments, str(whole)]) == 0
    printed = capsys.readouterr().out
    assert printed == (whole / "report.md").read_text()
    assert re.search(r"^\| mixed( \| \S+ \[\S+, \S+\]){6} \|$", printed, re.MULTILINE)
    for figure in re.findall(r"\((figures/\w+\.svg)\)", printed):
        assert (whole / figure).read_text().rstrip().endswith("</svg>")
    found = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    keys = [(one["arm"], one["task"], one["step"], one["set"], one["how"]) for one in found]
    assert len(set(keys)) == len(keys) == sum(len(list(model.score_keys(TINY, arm))) for arm in TINY.arms)

    (cut / "data").mkdir(parents=True)
    (whole / "data").rename(cut / "data")
    (whole / "vocabulary").rename(cut / "vocabulary")
    append, appended = ResumableLog.append, []

    def stop_at(*places):
        def appending(log, row):
            appended.append(row)
            if len(appended) in places:
                raise KeyboardInterrupt
            append(log, row)

        return appending

    monkeypatch.setattr(ResumableLog, "append", stop_at(2, 12, 29))
    assert [main([*arguments, str(cut), "-q"]) for _ in range(3)] == [130, 130, 130]
    assert "Incomplete: 1 models" in (cut / "report.md").read_text()  # without figures yet
    assert main([*arguments, str(cut), "-q"]) == 0
    assert rows(cut) == rows(whole)
    assert not list(cut.glob("runs/*/checkpoints"))
    assert main([*arguments, str(cut), "--tokens", "9000"]) == 1
    assert "tokens = 1500, not 9000" in capsys.readouterr().err


def test_arms_ask_only_what_they_were_trained_for():
    asked = {arm: recipe.how_to_ask(arm) for arm in recipe.ARMS}
    assert asked == {
        "outputs": ["direct"], "traces": ["trace"], "mixed": ["direct", "trace"], "calls": ["trace"],
        "changes": ["trace"], "untrained": [],
    }  # fmt: skip
    assert recipe.checkpoint_steps(replace(recipe.FULL, tokens=15360), "calls") == [1, 2, 5, 10]
    assert recipe.checkpoint_steps(recipe.FULL, "untrained") == []
