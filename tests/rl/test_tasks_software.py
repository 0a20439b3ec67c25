"""Episodes on broken repositories, in tokens: what repairs them is rewarded, and a lost machine costs one episode."""

from dataclasses import replace

import cwm_core as cwm
import pytest
from broken import BUGS, broken_tasks, repair_actions
from cwm_core.environments import CWM_TRAINING, WorkerError
from cwm_core.machines import SandboxBackend
from cwm_core.rl.tasks import Reward, SoftwareTask, start_episode
from cwm_core.tokenizer.special_tokens import CHAT_TOKENS

TOKENIZER = cwm.Tokenizer.train(["<tool: bash>\n</tool>\n"], 300, special_tokens=CHAT_TOKENS)
EOT = TOKENIZER.special_tokens["<|eot_id|>"]
BACKEND = SandboxBackend("process")


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    """A check takes the place of the tests, which take a hundred times as long."""
    (task,) = broken_tasks(tmp_path_factory.mktemp("repositories"), ["ledger"])
    path, right, _ = BUGS["ledger"]
    return replace(task, test_command=f"grep -qF '{right}' {path}")


@pytest.fixture(scope="module")
def task():
    with SoftwareTask(TOKENIZER, backend=BACKEND) as task:
        yield task


def action(text, reasoning="I think.\n</think>\n"):
    return [*TOKENIZER.encode(reasoning + text).tolist(), EOT]


def play(task, item, actions):
    """The tokens of the whole episode, whether the model wrote them, and the reward."""
    episode = start_episode(task, item)
    try:
        tokens, is_action = list(episode.prompt), [False] * len(episode.prompt)
        for said in actions:
            tokens += said
            is_action += [True] * len(said)
            result = episode.step(said)
            if isinstance(result, Reward):
                return tokens, is_action, result
            tokens += result
            is_action += [False] * len(result)
        raise AssertionError("the episode did not end")
    finally:
        episode.close()


def test_a_repair_is_rewarded(task, item):
    actions = list(map(action, repair_actions(item)))
    tokens, is_action, reward = play(task, item, actions)
    assert reward == Reward(1.0, ("the tests passed",), True)
    assert [t for t, mine in zip(tokens, is_action, strict=True) if mine] == [t for one in actions for t in one]
    text = TOKENIZER.decode(tokens)
    assert text.count("<think>\nI think.\n</think>") == len(actions)
    assert "<|eot_id|><|start_header_id|>tool: bash<|end_header_id|>\n\n<output>\n" in text
    assert text.endswith("The tests pass again.<|eot_id|>") and "Find out why" in text[: text.index("I think")]
    # The tokens are those of the conversation as a chat.
    assert TOKENIZER.encode(text, allowed_special="all").tolist() == tokens


def test_what_does_not_repair_is_not_rewarded(task, item):
    for actions, reason in (
        ([action("Done.")], "nothing was submitted"),
        ([action("<tool: bash>\nls\n</tool>"), []], "nothing was submitted"),
        ([action("<tool: bash>\ntouch /tmp/cut; sleep 60\n</tool>")[:-1]], "nothing was submitted"),  # cut, so not run
        ([[TOKENIZER.vocab_size + 7, EOT]], "nothing was submitted"),
        ([action("<tool: bash>\nls\n</tool>", reasoning="")], "nothing was submitted"),  # malformed
        ([action("<tool: bash>\necho 'the tests passed'; exit 0\n</tool>"), action("The tests passed.")], "nothing"),
    ):
        _, _, reward = play(task, item, actions)
        assert (reward.value, reward.solved) == (-1.0, False) and reason in reward.reasons[0]


def test_the_context_ends_an_episode(item):
    with SoftwareTask(TOKENIZER, backend=BACKEND, profile=replace(CWM_TRAINING, context_tokens=3000)) as task:
        repair = list(map(action, repair_actions(item)))
        *_, reward = play(task, item, [*repair[:4], action("<tool: bash>\nyes | head -n 4000\n</tool>")])
        assert reward.solved  # what was submitted before is judged


def test_a_lost_machine_costs_its_own_episode(task, item):
    broken, whole = task.start(item), task.start(item)
    broken._worker._process.kill()
    with pytest.raises(WorkerError, match="signal 9"):
        broken.step(action("<tool: bash>\nls\n</tool>"))
    broken.close()
    broken.close()
    assert isinstance(whole.step(action("<tool: bash>\nls\n</tool>")), list)
    assert isinstance(whole.step([]), Reward)
    with pytest.raises(RuntimeError, match="has ended"):
        whole.step([])
    whole.close()
    assert play(task, item, [action("Done.")])[2].value == -1.0
    with pytest.raises(WorkerError):
        task.start(replace(item, folder=item.folder / "missing"))
