"""Work on a repository until its tests pass: mutate-fix and issue-fix tasks in the environments for agents."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Sequence
from typing import Any, Self

from ...environments import CWM_TRAINING, Profile, system_prompt
from ...environments import Task as RepositoryTask
from ...environments.workers import EXTRA_SECONDS, EnvironmentWorker, ProcessWorker
from ...evaluation.answers import text_of
from ...machines import Backend
from ...tokenizer import Tokenizer
from .protocol import Reward, outcome

_THINK = "<think>\n"


class SoftwareTask:
    """Episodes of tools on the repository of an `environments.Task`, with the reward of its tests; a context manager.

    An episode is the conversation of `environments.rollout`: the system message, the request, and then messages with
    one tool call each and their observations. It ends with a message without a call, or at a limit of the profile. A
    message that a limit cut is not carried out, and what was submitted before is judged. The tests run on a fresh
    machine, with only the changes that a submission may make.

    Each episode runs in a process of its own, which later episodes reuse. A process that hangs, crashes, or is lost
    raises `WorkerError` in its own episode and is replaced.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        backend: Backend | None = None,
        profile: Profile = CWM_TRAINING,
        reasoning: bool = True,
        max_tokens: int = 65_536,
        name: str = "software",
    ) -> None:
        """Set the machines and limits.

        Args:
            tokenizer: The model's vocabulary.
            backend: Opens the machines; None is `SandboxBackend()`.
            profile: Limits of an episode. The default is that of the Code World Model, where a malformed action ends
                the episode.
            reasoning: Begin each action with `<think>`, and ask for reasoning in the system message.
            max_tokens: Maximum number of tokens of an action. The default is that of the Code World Model.
            name: Name in metrics.

        Raises:
            ValueError: The vocabulary lacks a special token of chats.
        """
        self.name, self.max_tokens, self.stop_tokens = name, max_tokens, frozenset(tokenizer.stop_tokens)
        self._tokenizer, self._prefix = tokenizer, _THINK if reasoning else ""
        self._system = system_prompt(reasoning=reasoning)
        self._backend = backend
        self._options: dict[str, Any] = {"profile": profile}
        self._seconds = profile.seconds + EXTRA_SECONDS
        self._context_tokens = profile.context_tokens
        self._idle: queue.SimpleQueue[EnvironmentWorker] = queue.SimpleQueue()
        self._tokens_of([])  # raises if the vocabulary has no chats

    def start(self, item: RepositoryTask) -> SoftwareEpisode:
        """Start an episode on a task.

        Raises:
            WorkerError: The machine cannot be opened.
        """
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = ProcessWorker(self._backend, self._options, self._seconds)
        try:
            request = worker.start(item)
        except BaseException:
            worker.close()
            raise
        return SoftwareEpisode(self, worker, request)

    def close(self) -> None:
        """End the processes that no episode uses."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def __enter__(self) -> Self:
        """Return the task."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _tokens_of(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the tokens of messages and of the beginning of the model's next one."""
        chat = [*messages, {"role": "assistant", "content": self._prefix}]
        tokens: list[int] = self._tokenizer.encode_chat(chat, add_generation_prompt=True)[0].tolist()
        return tokens


class SoftwareEpisode:
    """An `Episode` of a `SoftwareTask`."""

    def __init__(self, task: SoftwareTask, worker: EnvironmentWorker, request: str) -> None:
        """Begin with the system message and the request."""
        self._task, self._worker = task, worker
        self._ended = self._closed = False
        messages = [{"role": "system", "content": task._system}, {"role": "user", "content": request}]
        self.prompt: list[int] = task._tokens_of(messages)
        self._length = len(self.prompt)

    def step(self, tokens: Sequence[int]) -> list[int] | Reward:
        """See `Episode.step`.

        Raises:
            WorkerError: The machine was lost.
            RuntimeError: The episode has ended.
        """
        if self._ended:
            raise RuntimeError("the episode has ended")
        task = self._task
        is_whole = bool(tokens) and tokens[-1] in task.stop_tokens
        # A message without a tool call ends the episode, and what was submitted before is judged.
        action = task._prefix + text_of(task._tokenizer, tokens) if is_whole else ""
        result = self._worker.step(action)
        if not result.done:
            message = {"role": result.role, "content": result.observation}
            observation = task._tokens_of([message])[1:]  # without the token that begins a chat
            self._length += len(tokens) + len(observation)
            if self._length < task._context_tokens:
                return observation
            result = self._worker.step("")
        self._ended = True
        return outcome(result.reward >= 1.0, result.reason)

    def close(self) -> None:
        """Return the process to the task if the episode ended well, or else end it."""
        if self._closed:
            return
        self._closed = True
        if self._ended:
            self._task._idle.put(self._worker)
        else:
            self._worker.close()
