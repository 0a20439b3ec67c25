"""Evaluations with engines whose answers are known: the truth, altered truths, and an untrained model's."""

import json
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core import machines
from cwm_core.cli import main
from cwm_core.evaluation import (
    Problem,
    evaluate_input,
    evaluate_output,
    evaluate_termination,
    evaluate_traces,
    score_trace,
)
from cwm_core.evaluation.answers import answer_logprobs, ask
from cwm_core.evaluation.statistics import pass_at_k, wilson_interval
from cwm_core.machines import Limits
from evaluation_problems import HOSTILE, PROBLEMS, write_problems

torch = pytest.importorskip("torch")

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
RUN = {"limits": Limits(seconds=2, cpu_seconds=2, processes=16, memory_bytes=1 << 28), "sandbox": SANDBOX}
END = "<|end_of_text|>"

TRACES = {problem.id: cwm.record_source(problem.code, problem.call) for problem in PROBLEMS}
TEXTS = [trace.to_text() for trace in TRACES.values()]
TOKENIZER = cwm.Tokenizer.train([*TEXTS, " yes no"], 400)


class Scripted:
    """An engine that continues prompt number i with `answer(i, prompt)`."""

    def __init__(self, answer):
        self.tokenizer, self.answer, self.calls = TOKENIZER, answer, 0

    def generate(self, prompts, max_new_tokens, stop_ids=None, *, temperature=0.0, top_p=1.0, seed=0, on_token=None):
        self.calls += 1
        generations = []
        for i, prompt in enumerate(prompts):
            ids = list(self.answer(i, list(prompt)))[:max_new_tokens]
            stops = [at for at, id in enumerate(ids) if id in stop_ids]
            if on_token:
                stops += [at for at in range(len(ids)) if on_token(i, ids[: at + 1])]
            ids = ids[: min(stops, default=len(ids)) + 1]
            generations.append(
                cwm.inference.Generation(
                    np.array(ids, np.int32), np.zeros(len(ids), np.float32), np.zeros(len(ids), bool), "stop"
                )
            )
        return generations


def says(text):
    """Return the tokens of an answer, with an end token."""
    return [*TOKENIZER.encode(text).tolist(), TOKENIZER.special_tokens["<|eot_id|>"]]


def truths(alter=lambda text: text):
    """An engine that continues each prompt of a trace with the true frames, their text altered."""
    continuations = {}
    for trace in TRACES.values():
        frames = trace.to_text().partition("<|frame_sep|>")[2]
        _, _, rest = frames.partition("<|frame_sep|>")
        prompt = TOKENIZER.encode_trace(trace)
        length = len(prompt) - len(TOKENIZER.encode(rest, allowed_special="all"))
        # Each part is encoded by itself, as special tokens cut the text.
        continuations[trace.context] = TOKENIZER.encode(alter(rest), allowed_special="all").tolist()
        assert prompt[length:].tolist() == TOKENIZER.encode(rest, allowed_special="all").tolist()

    def answer(_, prompt):
        context = TOKENIZER.decode(prompt).split("<|trace_context_start|>")[1].split("<|frame_sep|>")[0]
        return continuations[context]

    return Scripted(answer)


def values(report):
    return {measure.name: measure.value for measure in report.measures}


# ---- traces


def test_the_truth_scores_one():
    report = evaluate_traces(truths(), PROBLEMS, cruxeval=True, **RUN)
    found = values(report)
    for name in ("output", "valid_format", "state", "action", "valid_json", "key", "key_value", "recording agrees"):
        assert found[name] == 1.0
    assert report.left_out == {} and [result.id for result in report.results] == list(TRACES)
    output = report.measures[0]
    assert (output.low, output.high) == wilson_interval(12, 12) and output.interval == "wilson"
    assert output.published == 0.88 and report.measures[-1].published is None
    lengths = []
    for trace in TRACES.values():
        spans = TOKENIZER.trace_tokens(trace).spans
        states = [int(end - start) for start, end in spans[1:, 0] if start >= 0]
        lengths.append(sum(states) / len(states))
    assert found["state tokens"] == pytest.approx(np.mean(lengths))


def test_altered_truths_have_the_scores_of_their_traces():
    def alter(text):
        return text.replace('"n": "4"', '"n": "5"', 1).replace("<|return_sep|>", "<|line_sep|>{}", 1)

    report = evaluate_traces(truths(alter), PROBLEMS, **RUN)
    for result, trace in zip(report.results, TRACES.values(), strict=True):
        frames = trace.to_text().partition("<|frame_sep|>")[2].partition("<|frame_sep|>")[2]
        expected = score_trace(trace, cwm.Trace.parse(alter(frames)))
        assert result.values["scores"] == pytest.approx(vars(expected))
    found = values(report)
    for name in ("state", "action", "output"):
        there = [result.values["scores"][name] for result in report.results]
        assert found[name] == pytest.approx(np.mean(there)) and found[name] < 1
        own = next(measure for measure in report.measures if measure.name == name)
        assert own.low <= own.value <= own.high


def test_hostile_programs_lose_themselves_only(tmp_path):
    hostile = [Problem(reason, code, "1", "1") for reason, code in HOSTILE.items()]
    mixed = [problem for pair in zip(PROBLEMS, hostile, strict=False) for problem in pair]
    report = evaluate_traces(truths(), mixed, max_frames=500, folder=tmp_path, batch=7, **RUN)
    assert report.left_out == {reason: 1 for reason in sorted(HOSTILE)}
    assert values(report)["state"] == 1.0 and report.measures[0].n == len(hostile)
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["results"] == [
        result.to_json() for result in report.results
    ]


def test_a_wrong_statement_of_the_result_is_noticed():
    wrong = [Problem("x", PROBLEMS[0].code, PROBLEMS[0].input, "6"), PROBLEMS[1]]
    assert values(evaluate_traces(truths(), wrong, **RUN))["recording agrees"] == 0.5


def test_an_interrupted_evaluation_resumes(tmp_path):
    whole = evaluate_traces(truths(), PROBLEMS, batch=4, **RUN)

    class Interrupted(Scripted):
        def generate(self, *args, **options):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().generate(*args, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate_traces(Interrupted(truths().answer), PROBLEMS, batch=4, folder=tmp_path, **RUN)
    engine = truths()
    assert evaluate_traces(engine, PROBLEMS, batch=4, folder=tmp_path, **RUN) == whole
    assert engine.calls == 1
    with pytest.raises(ValueError, match="max_new_tokens = 4096, not 7"):
        evaluate_traces(engine, PROBLEMS, batch=4, folder=tmp_path, max_new_tokens=7, **RUN)


# ---- outputs


def test_outputs_by_traces():
    report = evaluate_output(truths(), PROBLEMS, how="trace")
    assert values(report) == {"pass@1": 1.0, "answered": 1.0}
    wrong = evaluate_output(truths(lambda text: text.replace('"24"', '"25"')), PROBLEMS, how="trace")
    assert values(wrong)["pass@1"] == pytest.approx(11 / 12)
    assert [r.id for r in wrong.results if not r.values["right"][0]] == ["sample_8"]


def direct(answer):
    """An engine that gets the `PROBLEMS` in order, repeatedly, and answers `answer(problem, turn)`."""
    asked = {}

    def reply(_, prompt):
        text = TOKENIZER.decode(prompt)
        problem = max((p for p in PROBLEMS if p.code.strip() in text), key=lambda p: text.rfind(p.code.strip()))
        turn = asked[problem.id] = asked.get(problem.id, -1) + 1
        return says(answer(problem, turn))

    return Scripted(reply)


def test_outputs_by_asking():
    completion = direct(lambda problem, _: f" {problem.output}\n\n# Program\nassert f(1) == 2")
    assert values(evaluate_output(completion, PROBLEMS))["pass@1"] == 1.0
    chat = direct(lambda problem, _: f"Well. [ANSWER]f({problem.input}) == {problem.output}[/ANSWER]")
    assert values(evaluate_output(chat, PROBLEMS, style="chat"))["pass@1"] == 1.0
    reasoning = direct(lambda problem, _: f"hm\n</think>\n{problem.output if problem.id < 'sample_5' else 'no idea'}")
    report = evaluate_output(reasoning, PROBLEMS, style="reasoning")
    # Compared as ids: sample_0, 1, 10, 11, 2, 3, 4.
    assert values(report)["pass@1"] == pytest.approx(7 / 12)
    endless = direct(lambda problem, _: f"[ANSWER]{problem.output}[/ANSWER] but")
    assert values(evaluate_output(endless, PROBLEMS, style="reasoning")) == {"pass@1": 0.0, "answered": 0.0}


def test_completions_end_with_their_line():
    engine = direct(lambda problem, _: " 1 # one\n and more\n")
    assert ask(engine, [PROBLEMS[0].code], "completion", 100) == ["1 # one"]


def test_samples_give_pass_at_k():
    engine = direct(lambda problem, turn: f" {problem.output}" if turn % 4 == 1 else " 'wrong'")
    report = evaluate_output(engine, PROBLEMS, samples=4, temperature=1.0)
    assert values(report) == {"pass@1": pytest.approx(0.25), "pass@4": 1.0, "answered": 1.0}
    report = evaluate_output(engine, PROBLEMS, samples=6, temperature=1.0)
    assert values(report)["pass@5"] == pytest.approx(
        np.mean([pass_at_k(6, sum(result.values["right"]), 5) for result in report.results])
    )
    with pytest.raises(ValueError, match="several samples need a temperature above 0"):
        evaluate_output(engine, PROBLEMS, samples=2)
    with pytest.raises(ValueError, match='"trace" or "direct"'):
        evaluate_output(engine, PROBLEMS, how="guess")
    with pytest.raises(ValueError, match="unknown style 'essay'"):
        evaluate_output(engine, PROBLEMS, style="essay")


def test_the_template_of_a_file(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{code}|{input}|{{nothing}}")
    prompts = []
    engine = Scripted(lambda _, prompt: prompts.append(TOKENIZER.decode(prompt)) or says("5"))
    assert values(evaluate_output(engine, PROBLEMS[:1], template=path))["pass@1"] == 1.0
    assert prompts == [f"<|begin_of_text|>{PROBLEMS[0].code.strip()}|2, 3|{{{{nothing}}}}"]


# ---- inputs


def test_any_input_that_gives_the_output_is_right():
    others = {"sample_0": "1, b=4", "sample_3": "(1, 3, 3, 1)", "sample_9": "range(5)"}
    answers = {problem.id: others.get(problem.id, problem.input) for problem in PROBLEMS}
    report = evaluate_input(direct(lambda problem, _: f" f({answers[problem.id]}) == 0"), PROBLEMS, **RUN)
    wrong = [result.id for result in report.results if not result.values["right"][0]]
    assert wrong == ["sample_9"] and report.results[9].values["gave"] == ["not literals"]
    answers["sample_9"] = "[*range(4)]"
    report = evaluate_input(direct(lambda problem, _: f" f({answers[problem.id]}) == 0"), PROBLEMS, **RUN)
    assert values(report) == {"pass@1": 1.0, "answered": 1.0}


def test_answers_that_would_do_harm(tmp_path):
    mark = tmp_path / "was here"
    harm = [
        "__import__('os')._exit(0)",
        f"open({str(mark)!r}, 'w')" if SANDBOX == "bubblewrap" else "1, 1",
        "__import__('os').kill(__import__('os').getppid(), 9)" if SANDBOX == "bubblewrap" else "1, 1",
        "type('Any', (), {'__eq__': lambda *_: True, '__add__': lambda *_: 5})(), 1",
        "(" * 5000,
    ]
    for answer in harm:
        report = evaluate_input(direct(lambda problem, _, a=answer: f" f({a}) == 5"), PROBLEMS[:2], **RUN)
        assert values(report)["pass@1"] == 0.0
    assert not mark.exists()


# ---- termination


ENDLESS = Problem("endless", "def f(n):\n    while n:\n        n += 1\n    return n\n", "1")


def test_termination_by_traces():
    true = truths()

    def answer(i, prompt):
        text = TOKENIZER.decode(prompt)
        if "n += 1" not in text:
            return true.answer(i, prompt)
        line = '<|line_sep|>{"n": ".."}<|action_sep|>    while n:\n<|frame_sep|>'
        return TOKENIZER.encode(line * 300, allowed_special="all").tolist()

    report = evaluate_termination(Scripted(answer), [*PROBLEMS, ENDLESS], max_frames=100, **RUN)
    assert values(report) == {"accuracy": 1.0, "balanced accuracy": 1.0}
    assert report.confusion == {
        "ends": {"ends": 12, "does not end": 0, "no answer": 0},
        "does not end": {"ends": 0, "does not end": 1, "no answer": 0},
    }
    assert report.results[-1].to_json() == {"id": "endless", "ends": False, "predicted": False, "frames": 301}


def test_predictions_that_say_nothing_are_wrong():
    broken = Scripted(lambda *_: TOKENIZER.encode("<|line_sep|>{<|frame_sep|>", allowed_special="all").tolist())
    cut = Scripted(lambda *_: TOKENIZER.encode("<|line_sep|>{}<|action_sep|>x", allowed_special="all").tolist())
    stated = [Problem("a", "", "", ends=True), Problem("b", "", "", ends=False), Problem("c", "", "", ends=False)]
    report = evaluate_termination(broken, stated, **RUN)
    assert values(report)["accuracy"] == 0.0 and report.confusion["ends"]["no answer"] == 1
    report = evaluate_termination(cut, stated, max_new_tokens=4, **RUN)
    assert values(report) == {"accuracy": pytest.approx(2 / 3), "balanced accuracy": 0.5}


def test_problems_of_unknown_truth_are_left_out():
    problems = [PROBLEMS[0], Problem("sleeps", HOSTILE["limit: seconds"], "1")]
    report = evaluate_termination(truths(), problems, **RUN)
    assert report.left_out == {"limit: seconds": 1} and report.measures[1].value is None


def tiny_engine(seed=0):
    torch.manual_seed(seed)
    config = cwm.model.preset("tiny", vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_hidden_layers=2)
    return cwm.inference.Engine(cwm.model.Transformer(config), TOKENIZER)


def test_log_probabilities_are_those_of_the_tokens():
    engine = tiny_engine()
    prompt, answers = np.array([1, 5, 9], np.int32), [np.array([7], np.int32), np.array([3, 2, 8], np.int32)]
    found = answer_logprobs(engine, [prompt, prompt[:1]], answers)
    with torch.no_grad():
        for i, before in enumerate((prompt, prompt[:1])):
            for j, answer in enumerate(answers):
                logprobs = engine.model(torch.tensor([*before, *answer])).log_softmax(-1)
                expected = sum(float(logprobs[len(before) - 1 + at, id]) for at, id in enumerate(answer))
                assert found[i, j] == pytest.approx(expected, abs=1e-4)


def test_termination_by_asking():
    stated = [Problem(str(i), PROBLEMS[i].code, PROBLEMS[i].input, ends=bool(i % 2)) for i in range(8)]
    report = evaluate_termination(tiny_engine(), stated, how="direct")
    for result in report.results:
        yes, no = result.values["logprobs"]
        assert result.values["predicted"] is (yes > no)
    assert sum(map(sum, (row.values() for row in report.confusion.values()))) == 8


# ---- an untrained model, and the command


def test_an_untrained_model_is_evaluated(tmp_path):
    engine = tiny_engine()
    report = evaluate_traces(engine, PROBLEMS[:4], max_new_tokens=20, **RUN)
    assert values(report)["valid_format"] == 0.0 and report.left_out == {}
    options = {"samples": 2, "temperature": 1.0, "max_new_tokens": 12, "batch": 2}
    whole = evaluate_output(engine, PROBLEMS[:6], **options)
    evaluate_output(engine, PROBLEMS[:6], folder=tmp_path, **options)
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:3]))
    assert evaluate_output(engine, PROBLEMS[:6], folder=tmp_path, **options) == whole
    report = evaluate_input(engine, PROBLEMS[:4], style="chat", max_new_tokens=12, **RUN)
    assert report.measures[0].n == 4


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = tiny_engine()
    cwm.model.save(engine.model, Path("model"))
    TOKENIZER.save("model")
    write_problems(Path("problems.jsonl"))
    return tmp_path


def test_the_command(cwd, capsys):
    few = ["model", "problems.jsonl", "--limit", "4", "--max-new-tokens", "8"]
    box = ["--sandbox", SANDBOX]
    assert main(["eval", "traces", *few, *box, "--cruxeval", "-o", "t"]) == 0
    out, err = capsys.readouterr()
    assert "published: CWM 32B on CruxEval" in out and "96.9" in out and "4 problems, 0 left out" in out
    assert err == "cwm eval: wrote the result of every problem to t/report.json\n"
    report = json.loads(Path("t/report.json").read_text())
    assert len(report["results"]) == 4 and report["settings"]["model"] == "model"
    assert main(["eval", "output", *few, "--how", "trace", "-o", "o"]) == 0
    assert main(["eval", "input", *few, *box, "--samples", "2", "--temperature", "1", "-o", "i"]) == 0
    assert "pass@2" in capsys.readouterr().out
    assert main(["eval", "termination", *few, *box, "--how", "direct", "-o", "e"]) == 0
    assert "balanced accuracy" in capsys.readouterr().out


def test_the_command_resumes_only_with_the_same_settings(cwd, capsys):
    command = ["eval", "output", "model", "problems.jsonl", "--max-new-tokens", "3", "-o", "out"]
    assert main(command) == 0
    first = Path("out/report.json").read_bytes()
    assert main(command) == 0 and Path("out/report.json").read_bytes() == first
    capsys.readouterr()
    assert main([*command, "--seed", "1"]) == 1
    assert capsys.readouterr().err.startswith("cwm eval: out holds results with seed = 0, not 1; choose another")
    cwm.model.save(tiny_engine(seed=1).model, Path("model"))
    assert main(command) == 1
    assert "holds results with weights = " in capsys.readouterr().err
    Path("problems.jsonl").write_text('{"code": "", "input": ""}\n')
    assert main(command) == 1
    assert capsys.readouterr().err == "cwm eval: problems.jsonl, line 1: 'output' is missing\n"


def test_an_interrupted_command_says_how_to_resume(cwd, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cwm.inference.Engine, "generate", interrupted)
    assert main(["eval", "output", "model", "problems.jsonl", "-o", "out"]) == 130
    assert capsys.readouterr().err == "cwm eval: interrupted; repeat the command to resume from the results in out\n"
