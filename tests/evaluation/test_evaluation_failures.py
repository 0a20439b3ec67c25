"""Predictions of recorded executions: scores by group, and the causes of first divergences."""

import json
import re

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.evaluation import Cause, Divergence, Recording, first_divergence
from cwm_core.evaluation.divergence import value_kind
from cwm_core.evaluation.probes import (
    DEPTHS,
    STRING_FUNCTIONS,
    SWAPS,
    expected_if_independent,
    string_recordings,
    swap_recordings,
)
from cwm_core.trace import TraceWriter

CODE = "def f(n, s):\n    n = n * 3\n    s = s + 'b'\n    return [n, s]\n"
TRACE = cwm.record_source(CODE, "f(2, 'a')")
TEXT = TRACE.to_text().split("<|frame_sep|>", 2)[2]  # what follows the frame in the prompt
END = "<|end_of_text|>"


def diverges(text, is_cut=False):
    return first_divergence(TRACE, cwm.Trace.parse(text), is_cut=is_cut)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"n": "6"', '"n": "7"', Divergence(Cause.VALUE, 4, "int", "n")),
        ("\"'ab'\"", "\"'ba'\"", Divergence(Cause.VALUE, 5, "str", "s")),
        ('"n": "..", "s": "\'ab\'"', '"n": "6", "s": "\'ab\'"', Divergence(Cause.VALUE, 5, "unchanged", "n")),
        ("\"[6, 'ab']\"", '"[6]"', Divergence(Cause.VALUE, 6, "list")),
        ("    n = n * 3", "    return [n, s]", Divergence(Cause.LINE, 3)),
        ('"n": "6", "s": ".."', '"n": "6", "s": "..", "t": "1"', Divergence(Cause.INVENTED, 4, name="t")),
        ('"n": "6", "s": ".."', '"n": "6"', Divergence(Cause.MISSING, 4, name="s")),
        ("<|return_sep|>", "<|exception_sep|>", Divergence(Cause.EVENT, 6)),
        # Of several differences in a frame, the one that the model writes first.
        ('"n": "6", "s": ".."}<|action_sep|>    s', '"n": "7", "s": ".."}<|action_sep|>    t',
         Divergence(Cause.VALUE, 4, "int", "n")),
        ('"n": "6"', '"n": 6', Divergence(Cause.FORMAT, 4)),
        ("<|arg_sep|>\"[6, 'ab']\"", "", Divergence(Cause.FORMAT, 6)),
    ],
)  # fmt: skip
def test_causes_of_hand_made_predictions(old, new, expected):
    assert old in TEXT
    assert diverges(TEXT.replace(old, new, 1)) == expected


def test_the_true_trace_does_not_diverge():
    assert diverges(TEXT) is None


def test_ends_of_predictions():
    frames = TEXT.removesuffix(END).split("<|frame_sep|>")[:-1]
    whole = "<|frame_sep|>".join([*frames, ""])
    five = "<|frame_sep|>".join([*frames[:4], ""])
    assert diverges(five + END) == Divergence(Cause.EVENT, 5)  # too early
    assert diverges(whole + frames[-1] + "<|frame_sep|>" + END) == Divergence(Cause.EVENT, len(TRACE))  # too late
    assert diverges(five, is_cut=True) == diverges(five + frames[4][:20], is_cut=True) == Divergence(Cause.BUDGET, 5)
    assert diverges(whole, is_cut=True) == Divergence(Cause.BUDGET, len(TRACE))
    assert diverges(five + frames[4][:20] + END) == Divergence(Cause.FORMAT, 5)
    # The limit cuts a generation whose format broke long before.
    assert diverges(five.replace('"n": "6"', '"n": 6'), is_cut=True) == Divergence(Cause.FORMAT, 4)
    assert diverges("", is_cut=True) == Divergence(Cause.BUDGET, 1)


def test_kinds_of_values():
    texts = [
        "..",
        "1",
        "-1.5",
        "'a'",
        "True",
        "None",
        "[1]",
        "(1, 2)",
        "{1: 2}",
        "{1}",
        "set()",
        "<object at 0x1>",
        "f(",
    ]
    kinds = ["unchanged", "int", "float", "str", "bool", "NoneType", "list", "tuple", "dict", "set", "set", "object"]
    assert list(map(value_kind, texts)) == [*kinds, "object"]


def test_probes_do_what_they_say():
    swaps = swap_recordings(2, seed=1)
    assert [recording.group for recording in swaps[::2]] == [f"swaps {n}" for n in SWAPS]
    for recording in swaps:
        number = int(recording.group.split()[1])
        lines = re.findall(r"    ([a-e]), ([a-e]) = \2, \1", recording.trace.context)
        assert len(lines) == number
        assert len(recording.trace) == number + 6  # main, its line, the call, the first line, two returns
    strings, nested = string_recordings(7, seed=1)
    assert {functions[0] for id, functions in nested.items() if id.startswith("strings 1/")} == set(STRING_FUNCTIONS)
    assert [len(nested[recording.id]) for recording in strings] == [depth for depth in DEPTHS for _ in range(7)]
    assert all(value_kind(recording.trace.result) == "str" for recording in strings)
    assert swap_recordings(2, seed=1)[5].trace.to_text() == swaps[5].trace.to_text()


def test_the_expected_accuracy_is_the_product_of_those_of_single_functions():
    nested = {
        "1/0": ("upper",),
        "1/1": ("upper",),
        "1/2": ("lower",),
        "2/0": ("upper", "upper"),
        "2/1": ("upper", "lower"),
    }
    right = {"1/0": True, "1/1": False, "1/2": True, "2/0": False, "2/1": False}
    assert expected_if_independent(nested, right) == {1: (0.5 + 0.5 + 1) / 3, 2: (0.25 + 0.5) / 2}
    assert expected_if_independent(nested, {"1/0": True}) == {1: None, 2: None}  # lower was not scored alone


# ---- with engines


class Oracle:
    """An engine that writes what really happens, with the text of frames altered."""

    def __init__(self, recordings, alter=lambda recording, text: text):
        texts = [recording.trace.to_text() for recording in recordings]
        self.tokenizer = cwm.Tokenizer.train(texts, 400)
        self.answers = {}
        for recording, text in zip(recordings, texts, strict=True):
            context, first, rest = text.split("<|frame_sep|>", 2)
            whole = "<|frame_sep|>".join([context, first, alter(recording, rest)])
            ids = self.tokenizer.encode(whole, allowed_special="all").tolist()
            self.answers[recording.trace.context] = ids

    def generate(self, prompts, max_new_tokens, stop_ids=None, *, on_token=None, **_):
        generations = []
        for i, prompt in enumerate(prompts):
            context = self.tokenizer.decode(prompt).split("<|trace_context_start|>")[1].split("<|frame_sep|>")[0]
            rest = self.answers[context][len(prompt) :]
            ids = []
            while len(ids) < min(max_new_tokens, len(rest)) and not set(ids) & set(stop_ids):
                ids.append(rest[len(ids)])
                ids += (on_token and on_token(i, ids)) or []
            nothing = np.zeros(len(ids), np.float32)
            generations.append(cwm.inference.Generation(np.array(ids, np.int32), nothing, nothing > 0, "stop"))
        return generations


def recordings():
    """Twelve recordings in two groups."""
    calls = [("short", f"f({n}, 'a')") for n in range(1, 7)] + [("other", f"f({n}, 'xy')") for n in range(1, 7)]
    return [Recording(f"{group}/{i}", group, cwm.record_source(CODE, call)) for i, (group, call) in enumerate(calls)]


@pytest.mark.torch
def test_scores_by_group_and_length(tmp_path):
    def alter(recording, text):
        return text.replace("<|return_sep|>", "<|line_sep|>") if recording.id == "short/0" else text

    recorded = recordings()
    engine = Oracle(recorded, alter)
    report = cwm.evaluation.evaluate_recordings(engine, recorded, folder=tmp_path / "results", batch=5)
    found = {measure.name: measure for measure in report.measures}
    assert found["other: output"].value == found["other: state"].value == 1.0
    assert found["short: valid_format"].value == found["short: output"].value == 5 / 6
    assert found["short: output"].interval == "wilson" and found["short: state"].interval == "bootstrap"
    assert found["1 to 10 frames: output"].n == 12 and "11 to 20 frames: output" not in found
    again = cwm.evaluation.evaluate_recordings(None, recorded, folder=tmp_path / "results", batch=5)
    assert again.measures == report.measures  # from the folder, without an engine
    with pytest.raises(ValueError, match="holds results with dataset"):
        cwm.evaluation.evaluate_recordings(engine, recorded[1:], folder=tmp_path / "results", batch=5)


def altered(recording, text):
    changes = {
        "short/1": ('"n": "6"', '"n": "8"'),
        "short/2": ("<|line_sep|>", "<|oops|>"),
        "other/6": ("'xyb'", "'<b>&'"),
        "other/7": ("'xyb'", "'xb'"),
        "strings 2/0": ("<|arg_sep|>\"'", "<|arg_sep|>\"'z"),
    }
    return text.replace(*changes.get(recording.id, ("", "")))


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    recorded = recordings()
    strings, _ = string_recordings(7)
    engine = Oracle([*recorded, *swap_recordings(7), *strings], altered)
    return cwm.evaluation.analyze_failures(engine, recorded, folder=folder, probes=7, settings={"model": "<oracle>"})


@pytest.mark.torch
def test_an_analysis_counts_causes_kinds_and_distances(failures):
    assert failures.traces == 12
    assert failures.causes == {Cause.VALUE: 3, Cause.FORMAT: 1}
    kinds = {row.kind: row.wrong for row in failures.kinds}
    assert kinds["str"].value * kinds["str"].n == pytest.approx(2)
    assert kinds["int"].value * kinds["int"].n == pytest.approx(1)
    assert kinds["unchanged"].value == 0
    rows = {row.frame: row for row in failures.distance}
    assert list(rows) == list(range(1, 8)) and all(row.traces == 12 for row in failures.distance)
    assert rows[1].still_right.value == 11 / 12  # short/2 breaks the format at once
    assert rows[4].still_right.value == 10 / 12
    assert rows[5].right.value == 9 / 12 and rows[5].still_right.value == 8 / 12


@pytest.mark.torch
def test_an_analysis_has_the_accuracy_on_probes(failures):
    assert {n: (free.value, given.value, free.n) for n, (free, given) in failures.swaps.items()} == {
        n: (1.0, 1.0, 7) for n in SWAPS
    }
    observed = {depth: seen.value for depth, (seen, _) in failures.strings.items()}
    assert observed == {1: 1.0, 2: 6 / 7, 3: 1.0, 4: 1.0, 5: 1.0}
    assert {expected for _, expected in failures.strings.values()} == {1.0}


@pytest.mark.torch
def test_the_page_has_plots_and_links_to_the_frame_of_each_case(failures, tmp_path):
    from cwm_core.evaluation.failures_page import write_failures

    write_failures(failures, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and "&lt;oracle&gt;" in page and "<oracle>" not in page
    assert not re.search(r'(?:src|href)="(?!#|cases\.html)', re.sub(r'xlink:href="#', 'href="#', page))
    links = re.findall(r'cases\.html#example=(\d+)&amp;step=(\d+)">([^:]+):', page)
    assert {id: int(step) for _, step, id in links} == {"short/1": 4, "short/2": 1, "other/6": 5, "other/7": 5}
    gallery = (tmp_path / "cases.html").read_text()
    assert all(id in gallery for _, _, id in links) and gallery.isascii()
    data = json.loads((tmp_path / "failures.json").read_text())
    assert data["causes"] == {"wrong value": 3, "broken format": 1} and len(data["cases"]) == 4
    write_failures(failures, tmp_path)
    assert (tmp_path / "report.html").read_text() == page


@pytest.mark.torch
def test_the_commands_read_stores(tmp_path, monkeypatch, capsys):
    from cwm_core.cli import main
    from random_models import random_model

    monkeypatch.chdir(tmp_path)
    recorded = recordings()
    for group in ("short", "other"):
        with TraceWriter(f"{group}.cwmtraces") as store:
            for recording in recorded:
                if recording.group == group:
                    store.add(recording.trace)
    tokenizer = cwm.Tokenizer.train([TRACE.to_text()], 280)
    shape = {"vocab_size": tokenizer.vocab_size, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 4096}
    cwm.model.save(random_model(cwm.model.preset("tiny", **shape)), "model", tokenizer)
    options = ["--limit", "2", "--max-new-tokens", "3"]
    assert main(["eval", "recordings", "model", ".", "-o", "scores", *options]) == 0
    said = capsys.readouterr()
    assert re.search(r"^short +2 +0\.0 \(0\.0-65\.8\)", said.out, re.MULTILINE), said.out
    assert len(json.loads((tmp_path / "scores/report.json").read_text())["results"]) == 4
    assert main(["eval", "failures", "model", "short.cwmtraces", "-o", "failures", *options]) == 0
    said = capsys.readouterr()
    assert "token budget" in said.out or "broken format" in said.out
    assert (tmp_path / "failures/report.html").exists()
    assert main(["eval", "recordings", "model", "scores", "-o", "nothing"]) == 1
    assert "no *.cwmtraces file in this folder" in capsys.readouterr().err
