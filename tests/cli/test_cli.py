"""Test the `cwm` command: the full pipeline through its verbs, messages on mistakes, and exit codes."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core import machines
from cwm_core.cli import build_parser, commands, main
from cwm_core.data.traces import encode_for_training, training_texts
from cwm_core.tokenizer import CL100K_PATTERN, QWEN2_PATTERN

PROGRAM = """
import sys

def count(n):
    total = 0
    for i in range(n):
        total += i
    return total

if __name__ == "__main__":
    print("arguments", sys.argv[1:])
    if "-x" in sys.argv:
        sys.exit(count(2))
"""

VERBS = (
    "record", "view", "import", "export", "tokenize", "pack", "inspect", "plan", "train", "rl", "predict", "debug",
    "eval", "serve", "demo", "completion",
)  # fmt: skip

RUN = """
    output = "run"
    tokenizer = "vocabulary"

    [model]
    preset = "tiny"
    hidden_size = 32
    num_hidden_layers = 1
    rope_parameters = { rope_theta = 10000.0 }

    [data]
    seq_len = 128
    batch_size = 2
    sources.some = { folder = "shards", share = 2 }

    [training]
    max_steps = 4
    warmup_steps = 1
"""


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def shards(cwd):
    """Traces, and the vocabulary and shards made of them."""
    Path("traces").mkdir()
    for n in range(4):
        assert main(["record", "program.py", "--call", f"count({n})", "-o", f"traces/{n}.cwmtrace"]) == 0
    assert main(["tokenize", "traces", "--tokenizer", "vocabulary", "--train-vocab", "300", "-o", "shards"]) == 0
    Path("run.toml").write_text(textwrap.dedent(RUN))
    return cwm.Shards("shards")


def failure(capsys, *argv):
    """Return the one line that a failing command writes to standard error; check that standard output is empty."""
    capsys.readouterr()
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"cwm {argv[0]}: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def wrong_usage(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def python(*command, **kwargs):
    return subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, timeout=60, **kwargs)


# ---- record and view


def test_records_a_script_with_its_arguments(cwd, capsys):
    assert main(["record", "program.py", "--", "-x", "y"]) == 0
    out, err = capsys.readouterr()
    assert out == "arguments ['-x', 'y']\n"
    expected = cwm.Recorder().record_file("program.py", ["-x", "y"])
    assert cwm.Trace.load("program.cwmtrace") == expected
    assert err == f"cwm record: program.cwmtrace: {len(expected)} frames, raised SystemExit(1)\n"


def test_records_a_call_as_record_source_does(cwd, capsys):
    Path("beside.py").write_text("STEP = 2\n")
    Path("program.py").write_text("import sys\nfrom beside import STEP\ndef f(n):\n    return n + STEP, sys.argv\n")
    assert main(["record", "program.py", "--call", "f(1)", "--text", "-o", "t.cwmtrace", "--", "a"]) == 0
    out, err = capsys.readouterr()
    trace = cwm.Trace.load("t.cwmtrace")
    assert out == trace.to_text() and trace.result == "(3, ['program.py', 'a'])"
    assert err.startswith("cwm record: t.cwmtrace: 6 frames, returned (3, ")


def test_record_options_reach_the_recorder(cwd, capsys):
    assert main(["record", "program.py", "--max-frames", "3"]) == 0
    trace = cwm.Trace.load("program.cwmtrace")
    assert len(trace) == 3 and trace.truncated == "max_frames"
    assert main(["record", "program.py", "--call", "count('long')", "--max-value-chars", "2"]) == 0
    assert cwm.Trace.load("program.cwmtrace").frames[2].locals == {"n": "'l..."}
    Path("loop.py").write_text("while True:\n    x = 1\n")
    assert main(["record", "loop.py", "--max-seconds", "0.05"]) == 0
    assert cwm.Trace.load("loop.cwmtrace").truncated == "max_seconds"


def test_records_coarser_traces(cwd, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program.py"])
    full = cwm.Recorder().record_source(PROGRAM, "count(9)", file="program.py")
    levels = {
        ("--calls-only",): {"calls_only": True},
        ("--max-depth", "1"): {"max_depth": 1},
        ("--loop-budget", "0,2"): {"loop_budget": (0, 2)},
        ("--changes-only", "--loop-budget", "2,1"): {"changes_only": True, "loop_budget": (2, 1)},
    }
    for options, level in levels.items():
        assert main(["record", "program.py", "--call", "count(9)", "--text", *options]) == 0
        out, err = capsys.readouterr()
        coarse = cwm.Trace.load("program.cwmtrace")
        assert coarse == full.coarsen(**level) != full and out.endswith("\n" + coarse.to_text())
        assert err == f"cwm record: program.cwmtrace: {len(coarse)} frames, returned 36\n"


def test_scope_may_be_folders(cwd, capsys):
    Path("other").mkdir()
    Path("other/helper.py").write_text("def help():\n    return 1\n")
    Path("script.py").write_text("from other.helper import help\nhelp()\n")
    lengths = []
    for scope in ([], ["--scope", "script.py", "--scope", "other"]):
        assert main(["record", "script.py", *scope]) == 0
        lengths.append(len(cwm.Trace.load("script.cwmtrace")))
        for name in ("other", "other.helper"):
            sys.modules.pop(name)
    assert lengths[0] == 4 and lengths[1] > 4
    assert failure(capsys, "record", "script.py", "--scope", "nowhere") == (
        "cwm record: nowhere: no such file or folder to record\n"
    )


def test_interrupted_recording_is_kept(cwd, capsys):
    Path("program.py").write_text("import os, signal\nx = 1\nos.kill(os.getpid(), signal.SIGINT)\nx = 2\n")
    assert main(["record", "program.py"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    trace = cwm.Trace.load("program.cwmtrace")
    assert trace.exception == "KeyboardInterrupt()" and trace.frames[-1].line.startswith("os.kill(")


def test_views_a_trace_and_a_page(cwd, capsys):
    main(["record", "program.py", "--call", "count(2)", "-o", "a.cwmtrace"])
    main(["record", "program.py", "--call", "count(3)", "-o", "b.cwmtrace"])
    capsys.readouterr()
    assert main(["view", "a.cwmtrace", "--start", "2", "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "def count(n):" in shown and "total = 0" not in shown
    assert main(["view", "a.cwmtrace", "--predicted", "b.cwmtrace"]) == 0
    assert "differ" in capsys.readouterr().out
    assert main(["view", "a.cwmtrace", "--html", "a.html"]) == 0
    assert "<html" in Path("a.html").read_text()


def test_records_into_a_store_and_views_it(cwd, capsys):
    for n in range(3):
        assert main(["record", "program.py", "--call", f"count({n})", "-o", "s.cwmtraces"]) == 0
    assert capsys.readouterr().err.endswith("cwm record: s.cwmtraces: 12 frames, returned 1\n")
    with cwm.TraceWriter("s.cwmtraces", append=True) as writer:
        writer.add(cwm.record_source(PROGRAM, "count(7)"), key="1")
    reader = cwm.TraceReader("s.cwmtraces")
    assert [trace.result for trace in reader] == ["0", "0", "1", "21"]
    assert reader.metadata(0)["source"] == "program.py"
    for which, result in (("0", 0), ("2", 1), ("1", 21), ("3", 21)):  # a key, where there is one, goes before
        assert main(["view", "s.cwmtraces", "--trace", which, "--limit", "0"]) == 0
        assert f"returned {result}" in capsys.readouterr().out
    assert main(["view", "s.cwmtraces", "--trace", "1", "--html", "s.html"]) == 0
    assert "count(7)" in Path("s.html").read_text()
    for argv, message in [
        ((), "s.cwmtraces has 4 traces; choose one with --trace: a key, or a number from 0 to 3"),
        (("--trace", "4"), "s.cwmtraces: no trace '4' among 4 traces"),
        (("--trace", "x"), "s.cwmtraces: no trace 'x' among 4 traces"),
    ]:
        assert message in failure(capsys, "view", "s.cwmtraces", *argv)
    reader[0].save("t.cwmtrace")
    assert "t.cwmtrace: --trace requires a trace store (*.cwmtraces)" in failure(
        capsys, "view", "t.cwmtrace", "--trace", "0"
    )
    assert "got a single trace; make a store of it with `cwm import t.cwmtrace -o t.cwmtraces`" in failure(
        capsys, "export", "t.cwmtrace", "-o", "t.jsonl"
    )
    assert main(["import", "t.cwmtrace", "-o", "one.cwmtraces"]) == 0 == main(["view", "one.cwmtraces"])


# ---- tokenize and pack


def test_tokenizes_stores_as_it_does_single_traces(shards):
    with cwm.TraceWriter("traces/more.cwmtraces") as writer:
        for n in range(4):
            writer.add(cwm.Trace.load(f"traces/{n}.cwmtrace"), **({"source": "mine"} if n % 2 else {"source": n}))
    tokenizer = ["--tokenizer", "vocabulary"]
    assert main(["tokenize", "traces", *tokenizer, "-o", "both"]) == 0
    both = cwm.Shards("both")
    assert len(both) == 8 and both.sources == ["traces", "mine"]
    for n in range(4):
        np.testing.assert_array_equal(both[n].tokens, shards[n].tokens)
        np.testing.assert_array_equal(both[n + 4].tokens, shards[n].tokens)
        assert both[n + 4].source == ("mine" if n % 2 else "traces")
    train = ["--tokenizer", "again", "--train-vocab", "300"]
    assert main(["tokenize", "traces/more.cwmtraces", *train, "-o", "again-shards"]) == 0
    assert Path("again/tokenizer.json").read_bytes() == Path("vocabulary/tokenizer.json").read_bytes()


# ---- files as people have them


@pytest.fixture
def vocabulary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cwm.Tokenizer.train(["a b"], 256).save("vocabulary")
    return ["--tokenizer", "vocabulary"]


def texts_of(folder):
    tokenizer = cwm.Tokenizer.load("vocabulary")
    special = ("<|begin_of_text|>", "<|end_of_text|>")
    return [
        tokenizer.decode(document.tokens).removeprefix(special[0]).removesuffix(special[1])
        for document in cwm.Shards(folder)
    ]


def test_tokenize_takes_folders_of_json_lines(vocabulary):
    Path("data/deep").mkdir(parents=True)
    Path("data/a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}\n\n')
    Path("data/deep/c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}'))
    Path("data/._a.jsonl").write_bytes(b"\0\x05\x16\x07")
    assert main(["tokenize", "data", *vocabulary, "-o", "shards"]) == 0
    assert texts_of("shards") == ["a", "b", "c"]
    assert cwm.Shards("shards").sources == ["data", "deep"]


def test_tokenize_takes_standard_input(vocabulary, monkeypatch, capsys):
    data = gzip.compress(b'{"text": "a"}\n{"text": "b", "source": "mine"}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    assert main(["tokenize", "-", *vocabulary, "-o", "shards"]) == 0
    assert (texts_of("shards"), cwm.Shards("shards").sources) == (["a", "b"], ["stdin", "mine"])
    assert main(["tokenize", "-", "-", *vocabulary, "-o", "twice"]) == 1
    assert "can be read only once" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tokenize", "-", "--tokenizer", "new", "--train-vocab", "300", "-o", "new-shards"])
    assert "reads its input twice" in capsys.readouterr().err


def test_tokenize_takes_sources_with_lone_surrogates(vocabulary):
    rows = [{"text": "a\ud800", "source": "\udfff x"}, {"text": "b", "source": "\ud83d\ude00"}]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["tokenize", "a.jsonl", *vocabulary, "-o", "shards"]) == 0
    assert (texts_of("shards"), cwm.Shards("shards").sources) == (["a\ufffd", "b"], ["\ufffd x", "\U0001f600"])


def test_a_folder_whose_name_is_not_utf8_is_a_source(vocabulary):
    folder = Path(os.fsdecode(b"\xff"))
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    assert main(["tokenize", str(folder), *vocabulary, "-o", "shards"]) == 0
    assert cwm.Shards("shards").sources == ["\ufffd"]


@pytest.mark.parametrize(("name", "expected"), [("Qwen2", QWEN2_PATTERN), ("cl100k_base", CL100K_PATTERN)])
def test_tokenize_takes_patterns_by_name(name, expected, vocabulary):
    Path("a.jsonl").write_text('{"text": "a b"}\n')
    train = ["--tokenizer", "new", "--train-vocab", "256", "--pattern", name]
    assert main(["tokenize", "a.jsonl", *train, "-o", "shards"]) == 0
    assert cwm.Tokenizer.load("new").pattern == expected


def test_tokenize_refuses_an_unknown_name_of_a_pattern(vocabulary, capsys):
    Path("a.jsonl").write_text('{"text": "a b"}\n')
    train = ["--tokenizer", "new", "--train-vocab", "256", "--pattern", "qwen9"]
    assert main(["tokenize", "a.jsonl", *train, "-o", "shards"]) == 1
    assert "one of llama3, gpt2" in capsys.readouterr().err


def test_tokenizes_with_loss_after_the_first_frame(shards, capsys):
    tokenizer = cwm.Tokenizer.load("vocabulary")
    traces = [cwm.Trace.load(f"traces/{n}.cwmtrace") for n in range(4)]
    assert tokenizer.vocab_size == 300 + 256 and shards.sources == ["traces"]
    for document, trace in zip(shards, traces, strict=True):
        np.testing.assert_array_equal(document.tokens, tokenizer.encode_trace(trace))
        texts = {
            label: [tokenizer.decode(document.tokens[start:end]) for start, end in ranges]
            for label, ranges in document.spans.items()
        }
        assert texts["context"] == [f"<|begin_of_text|><|trace_context_start|>{trace.context}<|frame_sep|>"]
        assert texts["action"] == [frame.line for frame in trace.frames]
        assert texts["value"] == [json.dumps(frame.arg) for frame in trace.frames if frame.arg is not None]
        assert len(texts["state"]) == sum(frame.locals is not None for frame in trace.frames)
        given = tokenizer.decode(document.tokens[~document.loss_mask])
        learned = tokenizer.parse_trace(document.tokens[document.loss_mask])
        assert given.endswith("<|frame_sep|><|call_sep|>{}<|action_sep|>def main():\n<|frame_sep|>")
        assert learned.complete and list(learned.frames) == list(cwm.Trace.parse(trace.to_text()).frames)[1:]
        assert not document.loss_mask[: np.argmax(document.loss_mask)].any()


def test_a_trace_without_frames_can_be_encoded(shards):
    tokenizer = cwm.Tokenizer.load("vocabulary")
    empty = cwm.Trace.parse("<|begin_of_text|><|trace_context_start|>x = 1\n<|frame_sep|><|end_of_text|>").trace
    ids, loss_mask, spans = encode_for_training(tokenizer, empty)
    assert spans["context"][0, 0] == 0 and all(len(spans[label]) == 0 for label in ("state", "action", "value"))
    assert len(empty) == 0 and tokenizer.decode(ids[loss_mask]) in ("", "<|end_of_text|>")


def test_texts_of_a_vocabulary_hold_all_parts_and_no_special_token(cwd):
    trace = cwm.record_source(PROGRAM, "count(2)")
    parts = [part for part in re.split(r"<\|\w+\|>", trace.to_text()) if part]
    assert Counter(training_texts(trace)) == Counter(parts)


def test_tokenize_resumes_where_it_was_interrupted(shards, capsys):
    whole = [document.tokens.tolist() for document in shards]
    tokenizer = cwm.Tokenizer.load("vocabulary")
    with cwm.ShardWriter("interrupted", tokenizer) as writer:
        writer.add(whole[0])
    Path("interrupted/.unfinished-x").touch()
    command = ["tokenize", "traces", "--tokenizer", "vocabulary", "-o", "interrupted"]
    assert main(command) == 1
    assert "already holds token shards" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert [document.tokens.tolist() for document in cwm.Shards("interrupted")] == whole
    assert main([*command, "--resume"]) == 0  # nothing is left to do
    assert len(cwm.Shards("interrupted")) == len(whole)


def test_shards_go_to_an_indexed_dataset(shards, capsys):
    assert main(["export", "shards", "-o", "traces_document.idx"]) == 1
    assert "drop_masks" in capsys.readouterr().err
    assert main(["export", "shards", "-o", "traces_document.idx", "--drop-masks"]) == 0
    assert [d.tokens.tolist() for d in cwm.Shards("traces_document")] == [d.tokens.tolist() for d in shards]
    assert main(["pack", "traces_document", "--seq-len", "200"]) == 0
    assert "vocabulary  " in capsys.readouterr().out


def test_token_ids_come_from_parquet(shards, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids, names = [document.tokens for document in shards], ["a", "b", "a", "a"]
    parquet.write_table(pyarrow.table({"ids": ids, "from": names}), "ids.parquet")
    command = ["import", "ids.parquet", "-o", "imported", "--ids", "ids", "--source", "from"]
    with pytest.raises(SystemExit):
        main(command)
    assert "--tokenizer is required" in capsys.readouterr().err
    for new in (4, 0):
        assert main([*command, "--tokenizer", "vocabulary"]) == 0
        assert f"{shards.tokens:,} tokens of 4 documents, {new} new" in capsys.readouterr().err
    imported = cwm.Shards("imported")
    assert [document.tokens.tolist() for document in imported] == [tokens.tolist() for tokens in ids]
    assert [document.source for document in imported] == names


def test_pack_reports_the_rows_of_a_run(shards, capsys):
    capsys.readouterr()
    assert main(["pack", "shards", "--seq-len", "200", "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    total = f"{shards.tokens:,}"
    cut = int((shards.lengths > 200).sum())
    assert "documents   4\n" in out and f"tokens      {total}\n" in out and f"longer      {cut} documents" in out
    assert f"{'shards: traces':<30} {4:>12} {total:>14}  100.0%" in out
    rows = int(out.split("rows")[-1].split()[0])
    share = float(out.split("efficiency")[-1].split("%")[0])
    assert share == pytest.approx(100 * shards.tokens / (rows * 200), abs=0.01)
    assert main(["pack", "shards", "--seq-len", "200", "--packing", "stream"]) == 0
    assert f"rows        {-(-shards.tokens // 200)} of 200" in capsys.readouterr().out


def test_inspect_shows_the_contents_of_shards(shards, capsys):
    capsys.readouterr()
    assert main(["inspect", "shards", "--tokenizer", "vocabulary", "--samples", "2", "--verify"]) == 0
    out, err = capsys.readouterr()
    assert "every checksum is correct" in err
    documents = list(shards)
    learned = sum(document.loss_mask.sum() for document in documents) / shards.tokens
    context = sum(document.spans["context"][0, 1] for document in documents) / shards.tokens
    assert f"{'in the loss':<30} {learned:>7.1%}" in out
    assert f"{'in spans: context':<30} {context:>7.1%}" in out
    assert out.count("\n--- document ") == 2 and out.count("<|begin_of_text|><|trace_context_start|>") == 2
    assert main(["inspect", "shards"]) == 0
    assert "--- document" not in capsys.readouterr().out


def test_inspect_lists_traces(shards, capsys):
    with cwm.TraceWriter("all.cwmtraces") as writer:
        for n in range(4):
            writer.add(cwm.Trace.load(f"traces/{n}.cwmtrace"), source="even" if n % 2 == 0 else "odd")
    capsys.readouterr()
    assert main(["inspect", "all.cwmtraces", "traces"]) == 0
    out = capsys.readouterr().out
    frames = sum(len(cwm.Trace.load(f"traces/{n}.cwmtrace")) for n in range(4))
    assert out.count("traces      4 in ") == 2 and out.count(f"frames      {frames}\n") == 2
    assert main(["inspect", "all.cwmtraces", "--json"]) == 0
    held = json.loads(capsys.readouterr().out)["all.cwmtraces"]
    assert held["sources"] == {"even": 2, "odd": 2} and sum(held["outcomes"].values()) == held["traces"] == 4


def test_inspect_shows_a_vocabulary_and_names_what_it_reads(shards, capsys):
    assert main(["inspect", "vocabulary", "--json"]) == 0
    tokenizer = cwm.Tokenizer.load("vocabulary")
    expected = {"vocab_size": tokenizer.vocab_size, "special_tokens": len(tokenizer.special_tokens)}
    assert json.loads(capsys.readouterr().out) == {"vocabulary": expected}
    Path("empty").mkdir()
    Path("notes.txt").write_text("text")
    for path in ("empty", "notes.txt"):
        assert f"{path}: expected a trace (*.cwmtrace), a trace store" in failure(capsys, "inspect", path)


@pytest.mark.torch
def test_inspect_lists_checkpoints_and_models(shards, capsys):
    assert main(["train", "run.toml"]) == 0
    from cwm_core.model import load

    parameters = sum(parameter.numel() for parameter in load("run").parameters())
    (checkpoint,) = {file.parent for file in Path("run").rglob("step-*/manifest.json")}
    capsys.readouterr()
    assert main(["inspect", "run", str(checkpoint), str(checkpoint.parent), "--json"]) == 0
    model, saved, run = json.loads(capsys.readouterr().out).values()
    assert model["parameters"] == sum(model["dtypes"].values()) == parameters
    assert model["config"]["hidden_size"] == saved["model"]["hidden_size"] == 32
    assert saved["step"] == 4 and saved["bytes"] == sum(saved["files"].values()) == run["checkpoints"][checkpoint.name]
    assert main(["inspect", "run", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert f"parameters  {parameters:,} in " in out and "checkpoint  step 4, " in out and "hidden size 32" in out
    Path("run/config.json").write_text("{")
    assert "run/config.json is not JSON" in failure(capsys, "inspect", "run")


# ---- train and predict


@pytest.mark.torch
def test_the_full_pipeline(shards, capsys):
    assert main(["train", "run.toml", "--set", "training.max_steps=2"]) == 0
    assert main(["train", "run.toml"]) == 0  # goes on from the checkpoint after step 2
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    config = json.loads(Path("run/config.json").read_text())
    special = cwm.Tokenizer.load("run").special_tokens
    ends = [special[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    assert (config["vocab_size"], config["hidden_size"], config["eos_token_id"]) == (556, 32, ends)
    assert config["bos_token_id"] == special["<|begin_of_text|>"]
    assert config["rope_parameters"]["rope_theta"] == 10000.0

    capsys.readouterr()
    predict = ["predict", "run", "program.py", "--call", "count(2)", "--max-new-tokens", "30"]
    assert main([*predict, "-o", "predicted.cwmtrace"]) == 0
    assert "The prediction " in capsys.readouterr().out
    predicted = cwm.Trace.load("predicted.cwmtrace")
    assert predicted.context == cwm.record_source(PROGRAM, "count(2)").context
    assert predicted.frames[0].line == "def main():\n"

    sandbox = "process" if machines.bubblewrap_refusal() else "bubblewrap"
    assert main([*predict, "--verify", "--sandbox", sandbox, "--source-lines"]) == 0
    out = capsys.readouterr().out
    assert "differ" in out and "valid_format" in out
    assert main(["view", "traces/2.cwmtrace", "--predicted", "predicted.cwmtrace"]) == 0


@pytest.mark.torch
def test_a_trained_model_folder_can_be_trained_further(shards, capsys):
    assert main(["train", "run.toml", "--set", "training.max_steps=1"]) == 0
    Path("more.toml").write_text(
        Path("run.toml").read_text().split("[model]")[0].replace('"run"', '"more"')
        + '[model]\nfolder = "run"\n[data]'
        + Path("run.toml").read_text().split("[data]")[1]
    )
    assert main(["train", "more.toml", "--set", "training.max_steps=1"]) == 0
    assert Path("more/model.safetensors").exists()


@pytest.mark.torch
def test_documents_are_trained_on_in_buckets(shards):
    longest = int(np.sort(shards.lengths)[1])
    buckets = f"[{{max_length={longest}, batch_size=2, global_window=16}}, {{batch_size=1, seq_len=512}}]"
    run = ["train", "run.toml", "--set", f"data.buckets={buckets}", "--set", "data.epochs=2", "--set", "output=buckets"]
    assert main([*run, "--set", "training.max_steps=100"]) == 0
    steps = [json.loads(line) for line in Path("buckets/metrics.jsonl").read_text().splitlines()]
    assert {step["tokens"] for step in steps} == {2 * 128, 512}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.buckets=[{max_length=9}]", "run.toml: [data.buckets] 'batch_size' is missing"),
        ("data.buckets=[{batch_size=1, max_length=9}]", "the last bucket must have no max_length"),
        ("training.lr=1", "run.toml: [training] unknown key 'lr'; expected one of max_steps, "),
        ("training.max_steps=many", "run.toml: [training] max_steps must be int, got 'many'"),
        ("training.checkpoint_folder=x", "run.toml: [training] checkpoint_folder cannot be set"),
        ("training.device=toaster", "[training] device 'toaster' cannot be used: "),
        ("data.sources.x=1", "run.toml: [data] x must be a table, got 1"),
        ("data.mask.context='all'", "run.toml: [data.mask] context must be float, got 'all'"),
        ("data.mask.nothing=1", 'mask "nothing": no shard has spans with this label'),
        ("data.packing=tight", 'packing must be "best_fit" or "stream"'),
        ("data.epochs=0", 'source "some": epochs must be at least 1'),
        ("data.sources.x.share=1", "run.toml: [data.sources.x] 'folder' is missing"),
        ("data.sources.some.folder=nowhere", "CWD/nowhere: No such file or directory"),
        ("output.x=1", "run.toml: output.x cannot be set: output is not a table"),
        ("epochs=1", "run.toml: unknown key 'epochs'; expected one of output, "),
        ("epochs", "run.toml: an override must be key=value, got 'epochs'"),
        ("model.depth=1", "[model] unknown key 'depth'; expected one of preset, "),
        ("model.preset=huge", "[model] unknown preset 'huge'"),
        ("model.folder=x", "[model] either preset or folder must be given"),
        ("model.vocab_size=300", "[model] vocab_size 300 is less than the tokenizer's 556"),
        ("tokenizer=nowhere", "nowhere: No such file or directory"),
    ],
)
def test_mistakes_in_a_run(shards, capsys, change, message):
    assert failure(capsys, "train", "run.toml", "--set", change).startswith(
        f"cwm train: {message.replace('CWD', os.getcwd())}"
    )


@pytest.mark.torch
def test_a_run_resumes_only_with_the_same_settings(shards, capsys):
    assert main(["train", "run.toml", "--set", "training.max_steps=1"]) == 0
    assert "hidden_size = 32, not 64" in failure(capsys, "train", "run.toml", "--set", "model.hidden_size=64")
    capsys.readouterr()
    assert main(["train", "run.toml", "--set", "training.seed=1"]) == 1
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("cwm train: warning: ") for line in warnings)
    assert error.startswith("cwm train: ") and "seed = 0, not 1" in error


@pytest.mark.torch
def test_example_configuration_is_valid():
    from cwm_core.training.run import RunConfig

    RunConfig.from_toml(Path(__file__).parents[2] / "configs" / "tiny.toml")


@pytest.mark.torch
def test_mistakes_in_a_prediction(shards, capsys):
    call = ["--call", "count(2)"]
    assert failure(capsys, "predict", "nowhere", "program.py", *call).startswith("cwm predict: nowhere: No such file")
    cwm.Tokenizer.load("vocabulary").save("model")
    assert failure(capsys, "predict", "model", "program.py", *call).startswith(
        "cwm predict: model has no model: config.json or"
    )


# ---- mistakes


def test_mistakes_are_one_sentence(cwd, capsys):
    Path("broken.py").write_text("x = 1\ndef f(:\n")
    Path("raises.py").write_text("import sys\nsys.exit('no')\n")
    Path("bad.cwmtrace").write_bytes(b"nothing")
    Path("empty").mkdir()
    tokens = ["--tokenizer", "vocabulary", "-o", "shards"]
    for argv, message in [
        (("record", "none.py"), "none.py: No such file or directory"),
        (("record", "broken.py"), "broken.py, line 2: invalid syntax"),
        (("record", "broken.py", "--call", "f()"), "broken.py, line 2: invalid syntax"),
        (("record", "program.py", "--call", "count(2"), "--call, line 1: '(' was never closed"),
        (("record", "raises.py", "--call", "1"), "raises.py raised SystemExit('no') before the call"),
        (("record", "program.py", "-o", "none/x.cwmtrace"), "none: no such folder to write to"),
        (("view", "none.cwmtrace"), "none.cwmtrace: No such file or directory"),
        (("view", "bad.cwmtrace"), "bad.cwmtrace: not a valid stored trace: the header is missing"),
        (("tokenize", "bad.cwmtrace", *tokens), "vocabulary: No such file or directory"),
        (("tokenize", "empty", *tokens), "empty: no file in this folder is one of *.cwmtrace, *.cwmtraces, *.jsonl"),
        (("tokenize", "bad.cwmtrace", *tokens, "--train-vocab", "300"), "bad.cwmtrace: not a valid stored trace"),
        (("pack", "none", "--seq-len", "8"), "none: No such file or directory"),
    ]:
        assert message in failure(capsys, *argv)


def test_nothing_is_overwritten(shards, capsys):
    tokens = ["tokenize", "traces", "--tokenizer", "vocabulary", "-o", "shards"]
    assert "already holds token shards" in failure(capsys, *tokens)
    assert "already contains a vocabulary" in failure(capsys, *tokens, "--train-vocab", "300")


def test_a_vocabulary_without_the_trace_tokens_is_refused(shards, capsys):
    cwm.Tokenizer.train(["some text"], 260, special_tokens=[]).save("plain")
    assert "special token" in failure(capsys, "tokenize", "traces", "--tokenizer", "plain", "-o", "other")
    assert not list(Path("other").glob("*.cwmtok"))


def test_wrong_usage(cwd, capsys):
    assert "required: VERB" in wrong_usage(capsys)
    assert "invalid choice: 'fly'" in wrong_usage(capsys, "fly")
    assert "expected a whole number of at least 1, got '0'" in wrong_usage(
        capsys, "record", "program.py", "--max-frames", "0"
    )
    for wrong in ("nan", "0", "1e300", "inf"):
        assert f"expected a positive number of seconds, at most 2,000,000, got '{wrong}'" in wrong_usage(
            capsys, "record", "program.py", "--max-seconds", wrong
        )
    assert "expected FIRST,LAST, got '3'" in wrong_usage(capsys, "record", "program.py", "--loop-budget", "3")
    assert "expected a whole number of at least 1, got '0'" in wrong_usage(
        capsys, "record", "program.py", "--loop-budget", "1,0"
    )
    assert "--scope cannot" in wrong_usage(capsys, "record", "program.py", "--call", "1", "--scope", "package")
    assert "cannot be combined with --html" in wrong_usage(
        capsys, "view", "x.cwmtrace", "--html", "x.html", "--start", "1"
    )
    assert "--pattern requires" in wrong_usage(
        capsys, "tokenize", "x", "--tokenizer", "v", "-o", "s", "--pattern", "gpt2"
    )


def test_data_verbs_need_no_torch(shards):
    script = """
        import sys
        sys.modules["torch"] = None  # as if it were not installed
        from cwm_core.cli import build_parser, commands, main
        assert main(["tokenize", "traces", "--tokenizer", "vocabulary", "-o", "again"]) == 0
        assert main(["pack", "again", "--seq-len", "64"]) == 0
        sys.exit(main(["train", "run.toml"]))
    """
    done = python("-c", textwrap.dedent(script))
    assert done.returncode == 1
    assert done.stderr.endswith("cwm train: this needs torch: run pip install '.[train]' in a checkout of cwm-core\n")


def test_runs_as_a_module(cwd):
    shown = python("-m", "cwm_core", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: cwm ")
    for verb in VERBS:
        assert re.search(rf"^    {verb}( |$)", shown.stdout, re.MULTILINE)


def test_every_verb_has_an_example_that_parses(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert re.search(rf"example:\n  .*cwm {verb} ", capsys.readouterr().out)


def test_traceback_on_request(cwd, monkeypatch):
    monkeypatch.setenv("CWM_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["view", "none.cwmtrace"])


def test_every_command_has_one_vocabulary():
    options = {name: parser._option_string_actions for name, parser in commands(build_parser())}
    for name, known in options.items():
        assert known["-q"] is known["--quiet"], name
        assert not {"--out", "--backend", "--batch", "--url", "--parallel", "--machines"} & known.keys(), name
        if "--output" in known or "-o" in known:
            assert known["-o"] is known["--output"], name


def test_quiet_prints_no_notes_but_errors(cwd, capsys):
    assert main(["record", "program.py", "--call", "count(2)", "--quiet"]) == 0
    assert capsys.readouterr() == ("arguments []\n", "")  # what the program prints stays
    assert main(["view", "none.cwmtrace", "-q"]) == 1
    assert capsys.readouterr().err.startswith("cwm view: none.cwmtrace")


def test_results_as_json(shards, capsys):
    capsys.readouterr()
    assert main(["inspect", "shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"]["documents"] == 4
    assert main(["pack", "shards", "--seq-len", "64", "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert packed["shards"]["shards"]["documents"] == 4 and packed["rows"] == packed["steps"] > 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_name_every_verb(shell, cwd, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    if shell == "bash":
        Path("cwm.bash").write_text(script)
        words = 'COMP_WORDS=(cwm rec); COMP_CWORD=1; _shtab_cwm; echo "${COMPREPLY[@]}"'
        done = subprocess.run(
            ["bash", "-c", f"complete() {{ :; }}; source ./cwm.bash; {words}"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["record"]


def test_the_package_has_its_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"cwm {cwm.__version__}\n"
