"""Tasks of reinforcement learning: prompts for a model, and rewards that execution verifies.

A task of a single turn has `prompt(item)` and `score(item, tokens)`; see `RLTask`. A task of several turns starts an
`Episode` for each trajectory; see `EpisodeTask`. `start_episode` covers both kinds: a single turn is an episode whose
first step returns the reward.

    episode = start_episode(task, item)
    context = episode.prompt
    while True:
        action = generate(context, task.max_tokens, task.stop_tokens)
        result = episode.step(action)
        context = context + action
        if isinstance(result, Reward):
            break
        context = context + result
    episode.close()

A task that raises costs its own trajectory only: `score`, `start`, and `step` raise when the machine failed, and never
because of what the model wrote. Drop such a trajectory, and do not train on a made-up reward.
"""

from .calls import InputTask, OutputTask, judge_input, judge_output
from .coding import CodingTask, judge_program
from .curriculum import WINDOW, Curriculum, Stage
from .formats import FormatError
from .mathematics import MathJudge, MathProblem, MathTask, read_mathematics
from .protocol import Episode, EpisodeTask, Reward, RLTask, SingleTurn, Task, outcome, start_episode
from .questions import QuestionTask
from .software import SoftwareTask
from .traces import Execution, Shares, TraceTask, record_executions

__all__ = [
    "WINDOW",
    "CodingTask",
    "Curriculum",
    "Episode",
    "EpisodeTask",
    "Execution",
    "FormatError",
    "InputTask",
    "MathJudge",
    "MathProblem",
    "MathTask",
    "OutputTask",
    "QuestionTask",
    "RLTask",
    "Reward",
    "Shares",
    "SingleTurn",
    "SoftwareTask",
    "Stage",
    "Task",
    "TraceTask",
    "judge_input",
    "judge_output",
    "judge_program",
    "outcome",
    "read_mathematics",
    "record_executions",
    "start_episode",
]
