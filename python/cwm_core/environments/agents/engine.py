"""Agent with a model on the built-in engine, which processes only the new part of a conversation."""

import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...tokenizer.special_tokens import EOT_ID
from ..tasks import Task
from .protocol import Budget, EndReason, Generate, Message, OutOfBudget, Reply, ReplyEnd

if TYPE_CHECKING:
    from ...inference import Engine
    from ...inference.requests import Handle, Request
    from ...tokenizer import Tokenizer


class EngineAgent:
    """Generates replies with an `Engine`, batching the rollouts of several threads.

    A conversation is kept as tokens: a prompt consists of the last prompt, the generated tokens, and the tokens of the
    observation. So an engine with `prefix_bytes` processes only the observation.
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        reasoning: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Set the engine and the sampling.

        Args:
            engine: An engine with a tokenizer. Nothing else may step it while the agent runs.
            temperature: Sampling temperature.
            top_p: Nucleus sampling threshold.
            reasoning: Begin each reply with `<think>`. The system message must ask for it; see `system_prompt`.
            settings: Further settings that replies depend on, such as the name of the model.

        Raises:
            ValueError: The engine has no tokenizer.
        """
        if engine.tokenizer is None:
            raise ValueError("an agent's engine needs a tokenizer")
        self._engine, self._tokenizer = engine, engine.tokenizer
        self._stop_ids = engine.stop_tokens
        self._temperature, self._top_p, self._reasoning = temperature, top_p, reasoning
        self._more = settings or {}
        self._turn_of = threading.Condition()
        self._is_stepping = False
        self._handles: set[Handle] = set()
        """Running requests."""

    @property
    def settings(self) -> dict[str, Any]:
        """See `Agent.settings`."""
        sampling = {"temperature": self._temperature, "top_p": self._top_p, "reasoning": self._reasoning}
        return {"agent": "engine", **sampling, **self._more}

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """See `Agent.start`."""
        return _Conversation(self, seed, budget)

    def interrupt(self) -> None:
        """See `Agent.interrupt`."""
        for handle in list(self._handles):
            self._engine.cancel(handle)

    def _run(self, request: "Request", deadline: float) -> "Handle":
        """Generate a reply. One of the waiting threads steps the engine for all."""
        with self._turn_of:
            handle = self._engine.submit(request)
            self._handles.add(handle)
            try:
                while handle.finish_reason is None:
                    if time.monotonic() >= deadline:
                        raise OutOfBudget(EndReason.SECONDS)
                    if self._is_stepping:
                        self._turn_of.wait(max(deadline - time.monotonic(), 0.0))
                    else:
                        self._step()
            finally:
                self._handles.discard(handle)
                if handle.finish_reason is None:
                    self._engine.cancel(handle)
            if handle.finish_reason == "cancelled":
                raise RuntimeError("the agent was interrupted")
            return handle

    def _step(self) -> None:
        self._is_stepping = True
        self._turn_of.release()
        try:
            self._engine.step()
        finally:
            self._turn_of.acquire()
            self._is_stepping = False
            self._turn_of.notify_all()


class _Conversation:
    """Conversation of a rollout, as tokens."""

    def __init__(self, agent: EngineAgent, seed: int, budget: Budget) -> None:
        self._agent, self._seed, self._budget = agent, seed, budget
        self._deadline = time.monotonic() + budget.seconds
        self._ids, _ = agent._tokenizer.encode_chat([])
        self._messages = 0
        """Number of messages in `_ids`."""
        self._replies = 0

    def __call__(self, messages: Sequence[Message]) -> Reply:
        from ...inference.requests import Request

        agent, budget, tokenizer = self._agent, self._budget, self._agent._tokenizer
        prefix = "<think>\n" if agent._reasoning else ""
        prompt = np.concatenate([self._ids, _continuation(tokenizer, messages[self._messages :], prefix)])
        if self._replies == 0 and len(prompt) > budget.prompt_tokens:
            raise OutOfBudget(EndReason.PROMPT_TOKENS)
        room = min(budget.context_tokens, agent._engine.max_length) - len(prompt)
        if room < 1:
            raise OutOfBudget(EndReason.CONTEXT_TOKENS)
        request = Request(
            prompt,
            min(budget.action_tokens, room),
            agent._stop_ids,
            temperature=agent._temperature,
            top_p=agent._top_p,
            seed=(self._seed, self._replies),
        )
        handle = agent._run(request, self._deadline)
        stopped = handle.finish_reason == "stop"
        said = handle.ids[:-1] if stopped else handle.ids
        # The chat format ends a message with this token, whichever token ended the reply.
        end = tokenizer.special_tokens[EOT_ID]
        self._ids = np.concatenate([prompt, np.array([*said, end], np.int32)])
        self._messages, self._replies = len(messages) + 1, self._replies + 1
        return Reply(
            prefix + tokenizer.decode(said),
            ReplyEnd.STOP if stopped else ReplyEnd.LENGTH,
            tuple(handle.ids),
            tuple(logprob if math.isfinite(logprob) else None for logprob in handle.logprobs),
            len(handle.ids),
            len(prompt),
            handle.reused,
        )


def _continuation(tokenizer: "Tokenizer", messages: Sequence[Message], prefix: str) -> NDArray[np.int32]:
    """Return the tokens of further messages and of the start of the next reply, as int32 [n]."""
    ids, _ = tokenizer.encode_chat([*messages, {"role": "assistant", "content": prefix}], add_generation_prompt=True)
    return ids[1:]  # without the token that begins a chat
