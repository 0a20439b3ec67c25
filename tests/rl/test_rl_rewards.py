"""Rewards in the signatures of other trainers; TRL's GRPO trainer runs with them."""

import asyncio
import json
from importlib.util import find_spec
from types import SimpleNamespace

import cwm_core as cwm
import pytest
import readme
from cwm_core.machines import SandboxError, bubblewrap_refusal
from cwm_core.rl.rewards import (
    contest_problem_of,
    math_problem_of,
    problem_of,
    trl_reward,
    verifiers_reward,
    verl_compute_score,
)
from cwm_core.rl.tasks import Reward, judge_output, judge_program

ROW = {"code": "def f(x):\n    return x + 1\n", "input": "1", "output": "2"}
RIGHT, WRONG = "</think>[ANSWER]2[/ANSWER]", "</think>[ANSWER]3[/ANSWER]"
TESTS = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
needs_sandbox = pytest.mark.skipif(bubblewrap_refusal() is not None, reason=f"no bubblewrap: {bubblewrap_refusal()}")


def test_trl_signature(caplog):
    metrics = {}
    reward = trl_reward(judge_output, problem_of, name="output")
    columns = {name: [value] * 4 for name, value in ROW.items()}
    chat = [{"role": "assistant", "content": RIGHT}]
    values = reward(
        prompts=[""] * 4, completions=[RIGHT, WRONG, chat, []], completion_ids=[[1]] * 4, **columns,
        trainer_state=SimpleNamespace(), log_metric=metrics.__setitem__, log_extra=None,
    )  # fmt: skip
    assert values == [1.0, -1.0, 1.0, -1.0] and metrics == {"output/solved": 0.5} and reward.__name__ == "output"

    def broken(problem, text):
        if text == WRONG:
            raise SandboxError("the machine failed")
        return judge_output(problem, text)

    # Only the completion whose machine failed is left out.
    assert trl_reward(broken, problem_of)(prompts=[""] * 4, completions=[RIGHT, WRONG] * 2, **columns) == [1, None] * 2
    assert "completion 1 was not judged" in caplog.text
    with pytest.raises(ValueError, match="expected text in the column 'code', got NoneType"):
        reward(prompts=[""], completions=[RIGHT], output=["2"])


def test_verl_signature():
    score = verl_compute_score({"cruxeval": (judge_output, problem_of)})
    extra = {"code": ROW["code"], "input": "1", "index": 7}
    assert score(data_source="cruxeval", solution_str=RIGHT, ground_truth="2", extra_info=extra, more=1) == {
        "score": 1.0, "acc": 1.0, "reason": "right output",
    }  # fmt: skip
    assert score("cruxeval", WRONG, "2", extra)["acc"] == 0.0
    with pytest.raises(ValueError, match="no judge for the data source 'other'; expected one of \\['cruxeval'\\]"):
        score("other", RIGHT, "2", extra)


def test_verifiers_signature():
    reward = verifiers_reward(judge_output, problem_of)
    chat = [{"role": "assistant", "content": RIGHT}]
    info = {"code": ROW["code"], "input": "1"}
    for given in (info, json.dumps(info)):
        assert asyncio.run(reward(completion=chat, answer="2", info=given)) == 1.0
    assert asyncio.run(reward(completion=WRONG, answer="2", info=info)) == -1.0
    data, trace = SimpleNamespace(model_dump=lambda: ROW), SimpleNamespace(last_reply=RIGHT)
    assert asyncio.run(reward(task=data, trace=trace)) == 1.0


@pytest.mark.torch
@needs_sandbox
def test_the_examples_of_the_page_run(capsys):
    namespace = {}
    for example in readme.examples("docs/guides/rewards.md"):
        exec(compile(example, "rewards.md", "exec", dont_inherit=True), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "{'random': 'not deterministic'}" and "test 1: wrong output" in printed[6]
    assert (
        printed[1].startswith("Reward(value=1.0, reasons=('right output',), solved=True")
        and "'score': 1.0" in printed[8]
    )
    assert printed[7] == "[1.0, -1.0]" and "solved=True" in printed[9] and len(printed) == 10


@needs_sandbox
def test_rows_of_contests():
    text = "</think>\n```python\nprint(sum(map(int, input().split())))\n```"
    for row in (
        {"ground_truth": json.dumps(TESTS)},
        {"input_output": TESTS, "question": None, "solutions": None},
        {"name": "a", "public_tests": {"input": ["1 2\n"], "output": ["3\n"]}},
    ):
        assert judge_program(contest_problem_of(row), text).solved
    with pytest.raises(ValueError, match="expected a problem of CodeContests"):
        contest_problem_of({"question": "?"})
    assert math_problem_of({"ground_truth": 5}).answer == "5"
    with pytest.raises(ValueError, match="'answer' or 'ground_truth'"):
        math_problem_of({})


@pytest.mark.torch
@needs_sandbox
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_the_grpo_trainer_of_trl_trains_with_rewards(tmp_path, caplog):
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = cwm.Tokenizer.train(["0 1 2\n"], 300, special_tokens=["<|end_of_text|>", "<|pad|>"])
    vocabulary.save(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|end_of_text|>", pad_token="<|pad|>"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary.vocab_size, **sizes))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    judged = []

    def judge(problem, text):
        reward = judge_output(problem, text, style="completion")
        # An untrained model never answers; every second one counts as if it had, so that there are advantages.
        judged.append(Reward(reward.value + 2 * (len(judged) % 2), reward.reasons, reward.solved))
        return judged[-1]

    rows = [{**ROW, "prompt": "f(1) == ", "ground_truth": json.dumps(TESTS)}] * 4
    trainer = GRPOTrainer(
        model,
        [trl_reward(judge, problem_of, name="output"), trl_reward(judge_program, contest_problem_of, name="program")],
        args=GRPOConfig(
            str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, num_generations=4, report_to="none",
            max_completion_length=4, use_cpu=True, bf16=False, logging_steps=1, save_strategy="no", learning_rate=0.1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2 and len(judged) == 8
    for number, entry in enumerate(logs):
        values = [reward.value for reward in judged[4 * number : 4 * number + 4]]
        assert entry["rewards/output/mean"] == pytest.approx(sum(values) / 4)
        assert entry["rewards/program/mean"] == -1.0 and entry["program/solved"] == 0.0
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())
