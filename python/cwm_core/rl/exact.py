"""Generate with the forward pass of the trainer, so that both compute the same log probabilities, bit for bit."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch

from ..inference import FinishReason, Handle, Request
from ..inference.sampling import Sampling, choose
from ..model import Transformer
from ..model.loss import chunk_rows
from .generation import Action


class ExactSampler:
    """Samples from the model being trained, with the kernels, shapes, and orders of reduction of its training.

    Each token takes a forward pass over a row of `seq_len` tokens, the row that the trainer computes for the rollout.
    The tokens after a position do not change its result: attention gives them a weight of exactly 0, and all other
    operations work on each position alone. The price is `seq_len` times the operations of an engine with a cache.
    """

    def __init__(self, model: Transformer, seq_len: int, dtype: str) -> None:
        """Sample from `model`, whose trainer has rows of `seq_len` tokens and products of type `dtype`."""
        self.model, self.seq_len, self.autocast = model, seq_len, dtype != "float32"
        self.busy, self.version = 0.0, -1
        self._waiting: deque[Handle] = deque()

    def publish(self, model: Transformer, version: int) -> None:
        """Record the version of the weights, which are those of the trainer."""
        self.version = version

    def close(self) -> None:
        """Do nothing: there are no processes."""

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """See `Engine.refusal`."""
        return None if prompt_tokens < self.seq_len else f"leaves no room within seq_len, {self.seq_len}"

    def submit(self, request: Request) -> Handle:
        """See `Engine.submit`; the request must have token ids, stop tokens, and a temperature, and no constraint."""
        prompt = np.asarray(request.prompt, np.int32)
        if reason := self.refusal(len(prompt), request.max_new_tokens):
            raise ValueError(f"a prompt of {len(prompt)} tokens {reason}")
        limit = min(request.max_new_tokens, self.seq_len - len(prompt))
        uniforms = np.random.default_rng(request.seed).random(limit)
        sampling = Sampling(request.temperature)
        self._waiting.append(Handle(request, prompt, limit, sampling, frozenset(request.stop_ids or ()), uniforms, []))
        return self._waiting[-1]

    @torch.no_grad()
    def step(self) -> list[Action]:
        """Complete the action of one sequence."""
        began = time.monotonic()
        handle = self._waiting.popleft()
        while handle.finish_reason is None:
            logits = self._logits(handle.tokens)
            token = int(choose(logits, [handle.sampling], [float(handle.uniforms[len(handle.ids)])])[0])
            handle.ids.append(token)
            handle.logprobs.append(float(logits.log_softmax(-1)[0, token]))
            if token in handle.stop_ids:
                handle.finish_reason = FinishReason.STOP
            elif len(handle.ids) >= handle.limit:
                handle.finish_reason = FinishReason.LENGTH
        self.busy += time.monotonic() - began
        return [Action(handle, handle.ids, handle.logprobs, [self.version] * len(handle.ids))]

    def _logits(self, tokens: np.ndarray) -> torch.Tensor:
        """Return the logits of the next token, float32 [1, vocab], from the products that the trainer computes."""
        device = self.model.embed_tokens.weight.device
        row = torch.zeros(1, self.seq_len, dtype=torch.int64, device=device)
        row[0, : len(tokens)] = torch.from_numpy(tokens)
        offsets = torch.tensor([0, self.seq_len], dtype=torch.int32)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model.hidden(row, offsets, torch.arange(self.seq_len, device=device)[None])[0]
            weight = self.model.lm_head.weight
            if self.autocast:
                hidden, weight = hidden.bfloat16(), weight.bfloat16()
            size = chunk_rows(len(weight), device)
            begin = (len(tokens) - 1) // size * size
            logits = hidden[begin : begin + size] @ weight.T
        return logits[len(tokens) - 1 - begin, None].float()
