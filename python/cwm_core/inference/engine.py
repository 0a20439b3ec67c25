"""Batched generation, one token a step for every running sequence, with a key/value cache.

Sequences occupy slots of one preallocated cache. The running ones always hold the first slots, so that a step works on
views; when a sequence ends, the last one moves into its slot and a waiting prompt takes the end. Local layers keep all
keys and mask those outside their window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Transformer
from ..model.attention.sdpa import causal_attention

# Cache positions that a decoding step reads are rounded up to this, so that few shapes of masks occur.
CACHE_BLOCK = 64

OnToken = Callable[[int, list[int]], list[int] | None]


@dataclass
class Generation:
    """What was generated for one prompt."""

    ids: np.ndarray
    """int32 [n], without the prompt, with the stop token if one ended it."""
    logprobs: np.ndarray
    """float32 [n]: the log probability, in nats at temperature 1, of each token; NaN where it was supplied."""
    supplied: np.ndarray
    """bool [n]: tokens that came from `on_token`, not from the model."""
    finish_reason: str
    """"stop" (a stop token) or "length"."""


@dataclass
class _Sequence:
    index: int
    pending: list[int]
    """Tokens that the cache does not hold yet."""
    limit: int
    uniforms: np.ndarray
    """One random number in [0, 1) for each token to sample, the sequence's own, whatever else is in the batch."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    supplied: list[bool] = field(default_factory=list)
    finish_reason: str = ""

    def append(self, token: int, logprob: float, stop_ids: frozenset[int], supplied: bool = False) -> None:
        if self.finish_reason:
            return
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.supplied.append(supplied)
        self.pending.append(token)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.limit:
            self.finish_reason = "length"

    def generation(self) -> Generation:
        return Generation(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.supplied, bool),
            self.finish_reason,
        )


class Engine:
    """Generates with a model, `max_batch` sequences at a time."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        max_batch: int = 64,
    ) -> None:
        """Move `model` to `device` (None: where it is); with a `tokenizer`, prompts may be texts."""
        self.model = model.to(device) if device is not None else model
        self.tokenizer = tokenizer
        self.max_batch = max_batch

    @torch.inference_mode()
    def generate(
        self,
        prompts: Iterable[Sequence[int] | np.ndarray | str],
        max_new_tokens: int,
        stop_ids: Iterable[int] | None = None,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_token: OnToken | None = None,
    ) -> list[Generation]:
        """Continue each prompt until a token of `stop_ids` (None: the model's own) or `max_new_tokens` tokens.

        `temperature` 0 takes the most likely token; otherwise tokens are drawn from the smallest set of most likely
        ones whose probability reaches `top_p`, repeatably for a `seed` and a prompt's place among the prompts,
        whatever `max_batch` is.

        `on_token(i, ids)` is called after each token the model chose for prompt i, with all tokens after the prompt so
        far; tokens it returns are appended as if the model had chosen them, and count towards `max_new_tokens`.

        Raises ValueError for an empty prompt, a token outside the vocabulary, or settings out of range.
        """
        if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"need max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, "
                f"got {max_new_tokens}, {temperature} and {top_p}"
            )
        stops = frozenset(self.model.config.stop_tokens if stop_ids is None else stop_ids)
        sequences = [
            _Sequence(
                i, self._prompt(i, prompt), max_new_tokens, np.random.default_rng([seed, i]).random(max_new_tokens)
            )
            for i, prompt in enumerate(prompts)
        ]
        if not sequences:
            return []
        capacity = max(len(sequence.pending) for sequence in sequences) + max_new_tokens
        cache = KeyValueCache(self.model, min(self.max_batch, len(sequences)), capacity)
        waiting, running = sequences[::-1], []
        was_training = self.model.training
        self.model.eval()
        try:
            while waiting or running:
                while waiting and len(running) < cache.slots:
                    cache.lengths[len(running)] = 0
                    running.append(waiting.pop())
                cache.catch_up(self.model, [sequence.pending[:-1] for sequence in running])
                logits = cache.decode(self.model, [sequence.pending[-1] for sequence in running])
                tokens, logprobs = _sample(logits, running, temperature, top_p)
                for sequence, token, logprob in zip(running, tokens, logprobs, strict=True):
                    sequence.pending.clear()
                    sequence.append(token, logprob, stops)
                    if on_token and not sequence.finish_reason:
                        for supplied in on_token(sequence.index, list(sequence.ids)) or ():
                            sequence.append(self._checked(supplied), float("nan"), stops, supplied=True)
                for slot in reversed(range(len(running))):
                    if running[slot].finish_reason:
                        cache.move(len(running) - 1, slot)
                        running[slot] = running[-1]
                        running.pop()
        finally:
            self.model.train(was_training)
        return [sequence.generation() for sequence in sequences]

    def _prompt(self, index: int, prompt: Sequence[int] | np.ndarray | str) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"prompt {index} is a text, but the engine has no tokenizer")
            prompt = self.tokenizer.encode(prompt)
        ids = [self._checked(token) for token in prompt]
        if not ids:
            raise ValueError(f"prompt {index} is empty")
        return ids

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.model.config.vocab_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.model.config.vocab_size}")
        return int(token)


class KeyValueCache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens each.

    Memory is 2 x layers x slots x kv_heads x capacity x head_size values of the model's type.
    """

    def __init__(self, model: Transformer, slots: int, capacity: int) -> None:
        """An empty cache, on the device and in the type of the model's weights."""
        config, weight = model.config, model.lm_head.weight
        self.slots = slots
        capacity = -(-capacity // CACHE_BLOCK) * CACHE_BLOCK
        shape = (config.layers, slots, config.kv_heads, capacity, config.head_size)
        # Zeros, not uninitialized: masked positions get weight 0, and 0 times a stray NaN would still be NaN.
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = np.zeros(slots, np.int64)
        self._windows = sorted({w for w in config.layer_windows if w is not None})
        self._attend: Callable[..., Tensor]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Called by the model's layers; see `cwm_core.model.transformer.Cache`."""
        return self._attend(layer, q, k, v, window)

    def move(self, source: int, target: int) -> None:
        """Copy the sequence in slot `source` over slot `target`."""
        if source != target:
            length = self.lengths[target] = self.lengths[source]
            self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
            self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def catch_up(self, model: Transformer, tokens: list[list[int]]) -> None:
        """Append `tokens[slot]`, of any lengths and possibly none, to the first slots, all in one pass."""
        slots = [slot for slot, new in enumerate(tokens) if new]
        if not slots:
            return
        counts = [len(tokens[slot]) for slot in slots]
        starts = self.lengths[slots]
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            outputs = []
            splits = zip(slots, starts, q.split(counts, -2), k.split(counts, -2), v.split(counts, -2), strict=True)
            for slot, start, queries, new_keys, new_values in splits:
                end = start + queries.shape[-2]
                keys, values = self.keys[layer, slot, :, :end], self.values[layer, slot, :, :end]
                keys[:, start:] = new_keys[0]
                values[:, start:] = new_values[0]
                outputs.append(causal_attention(queries, keys[None], values[None], window))
            return torch.cat(outputs, -2)

        self._attend = attend
        flat = torch.tensor([[token for slot in slots for token in tokens[slot]]], device=self.keys.device)
        model.hidden(flat, position_ids=torch.from_numpy(positions).to(flat.device)[None], cache=self)
        self.lengths[slots] += counts

    def decode(self, model: Transformer, tokens: list[int]) -> Tensor:
        """Append one token to each of the first `len(tokens)` slots; returns the next tokens' logits [slots, vocab]."""
        n, device = len(tokens), self.keys.device
        longest = int(self.lengths[:n].max()) + 1
        span = min(-(-longest // CACHE_BLOCK) * CACHE_BLOCK, self.keys.shape[3])
        positions = torch.from_numpy(self.lengths[:n]).to(device)
        masks = self._decode_masks(positions, span)
        rows = torch.arange(n, device=device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
            keys, values = self.keys[layer, :n], self.values[layer, :n]
            keys[rows, :, positions] = k[:, :, 0]
            values[rows, :, positions] = v[:, :, 0]
            # The query heads that share a key head look at the same keys under the same mask: as a sequence of queries
            # they need no copy of the keys.
            grouped = q.view(n, keys.shape[1], -1, q.shape[-1])
            out = F.scaled_dot_product_attention(
                grouped, keys[:, :, :span], values[:, :, :span], attn_mask=masks[window]
            )
            return out.reshape(q.shape)

        self._attend = attend
        logits = model(torch.tensor(tokens, device=device)[:, None], position_ids=positions[:, None], cache=self)
        self.lengths[:n] += 1
        return logits[:, 0]

    def _decode_masks(self, positions: Tensor, span: int) -> dict[int | None, Tensor]:
        """For each window, what is added to the scores [n, 1, 1, span] of a query at `positions` [n]."""
        distance = positions[:, None, None, None] - torch.arange(span, device=positions.device)
        zero = torch.zeros((), dtype=self.keys.dtype, device=positions.device)
        masks: dict[int | None, Tensor] = {None: torch.where(distance >= 0, zero, float("-inf"))}
        for window in self._windows:
            masks[window] = (
                masks[None] if span <= window else masks[None].masked_fill(distance >= window, float("-inf"))
            )
        return masks


def _sample(
    logits: Tensor, sequences: list[_Sequence], temperature: float, top_p: float
) -> tuple[list[int], list[float]]:
    """Choose a token for each row of `logits` [n, vocab]; returns tokens and log probabilities at temperature 1."""
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
        cumulative = probabilities.double().cumsum(-1)
        # A token belongs to the set while the probability before it has not reached top_p.
        kept = (cumulative - probabilities < top_p).sum(-1, keepdim=True)
        total = cumulative.gather(1, kept - 1)
        drawn = torch.tensor([[s.uniforms[len(s.ids)]] for s in sequences], device=logits.device) * total
        rank = torch.searchsorted(cumulative, drawn, right=True).minimum(kept - 1)
        tokens = order.gather(1, rank)[:, 0]
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), logprobs.tolist()
