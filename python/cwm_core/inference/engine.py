"""Generate with a key-value cache and continuous batching.

Sequences join and leave between steps; each step appends one token to every running sequence. Running sequences occupy
the first slots of one cache, so that a step works on views: when a sequence ends, the last one moves into its slot.
Long prompts are processed in pieces, between the steps of other sequences.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model import Transformer
from ..support.arguments import reject_unordered
from .cache import KeyValueCache, cache_bytes
from .constraint import Constraint
from .prefixes import Prefixes, common_prefix
from .quantize import quantize_weights
from .requests import Event, FinishReason, Generation, Handle, Request
from .runner import ModelRunner, Piece, power_of_two
from .sampling import Sampling, choose

# Prompt tokens in one pass. Products of this many rows are compute-bound on every GPU, and the activations of the 32 B
# model take less than 1 GB. Its weights and a cache of 131,072 tokens leave only 4 of 80 GB.
PREFILL_CHUNK = 2048

# Recomputing a prefix shorter than this is cheaper than copying it.
SHORTEST_PREFIX = 16

OnToken = Callable[[int, list[int]], list[int] | None]
"""Callback with the index of a prompt and the tokens after it; returns tokens to append, or None."""


class Engine:
    """Generate with a model, up to `max_batch` sequences at a time.

    Call `submit`, `fork` and `cancel` from any thread and from callbacks, and `step` and `generate` from one thread at
    a time.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        max_batch: int = 64,
        *,
        max_length: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        max_cache_bytes: int | None = None,
        prefix_bytes: int = 0,
        quantize: str | None = None,
    ) -> None:
        """Prepare to generate.

        Args:
            model: The model.
            tokenizer: The model's vocabulary, which text prompts need.
            device: Device to move the model to; None leaves it in place.
            max_batch: Maximum number of running sequences.
            max_length: Maximum number of tokens in a prompt and its continuation. Defaults to the model's.
            prefill_chunk: Maximum number of prompt tokens in one step.
            max_cache_bytes: Maximum size of the cache; a sequence waits until it fits. None for no limit.
            prefix_bytes: Maximum size of the copies of keys and values for later prompts with the same prefix.
            quantize: "int8" or "float8" to quantize the model's weights in place; see `quantize_weights`.

        Raises:
            ValueError: A size is below 1 or `quantize` is unknown.
            ModuleNotFoundError: `quantize` needs torchao, which is not installed.
        """
        self.model = model
        self.tokenizer = tokenizer
        # The configuration of a model in Meta's layout names no stop tokens; its tokenizer does.
        self.stop_tokens = frozenset([*model.config.eos_token_id, *getattr(tokenizer, "stop_tokens", ())])
        """Stop tokens of requests without `stop_ids`: those of the configuration and of the tokenizer."""
        self.max_batch = max_batch
        self.max_length = max_length or model.config.max_position_embeddings
        self.prefill_chunk = prefill_chunk
        self.max_cache_bytes = max_cache_bytes
        if min(max_batch, prefill_chunk, self.max_length) < 1 or prefix_bytes < 0:
            raise ValueError(
                "expected max_batch, prefill_chunk and max_length >= 1 and prefix_bytes >= 0, "
                f"got {max_batch}, {prefill_chunk}, {self.max_length} and {prefix_bytes}"
            )
        if quantize is not None:
            quantize_weights(model, quantize, device)
        if device is not None:
            model.to(device)
        weight = model.embed_tokens.weight
        self._cache = KeyValueCache(model.config, weight.dtype, weight.device)
        self._runner = ModelRunner(self.model, self._cache)
        self._prefixes = Prefixes(self._cache, prefix_bytes)
        self._waiting: deque[Handle] = deque()
        self._running: list[Handle] = []
        self._stepping = threading.Lock()

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
        constraints: Sequence[Constraint | None] | None = None,
    ) -> list[Generation]:
        """Continue each prompt.

        Args:
            prompts: Token ids, or texts if the engine has a tokenizer.
            max_new_tokens: Limit of the tokens after each prompt.
            stop_ids: Tokens that end a sequence; None uses `stop_tokens`.
            temperature: Divisor of the logits; 0 takes the most likely token.
            top_p: Nucleus sampling threshold.
            seed: Seed of the samples. They depend on it and on the index of the prompt, not on `max_batch`.
            on_token: Callback `on_token(i, ids)`, called after each token that the model chose for prompt `i` with all
                tokens after the prompt. Tokens that it returns are appended as if the model had chosen them, and
                count towards `max_new_tokens`.
            constraints: A constraint or None for each prompt. Reported log probabilities ignore it.

        Returns:
            The continuations, in the order of the prompts.

        Raises:
            ValueError: A prompt is empty, a token is outside the vocabulary, or a setting is out of range.
        """
        prompts = reject_unordered(prompts, "prompts")
        stops = None if stop_ids is None else frozenset(stop_ids)
        handles: list[Handle] = []
        try:
            for i, prompt in enumerate(prompts):
                supply = None if on_token is None else partial(on_token, i)
                tokens = self._tokens(prompt, f"prompt {i}")
                request = Request(
                    tokens,
                    max_new_tokens,
                    stops,
                    temperature,
                    top_p,
                    seed=(seed, i),
                    constraint=None if constraints is None else constraints[i],
                    on_token=supply,
                )
                handles.append(self.submit(request))
            while any(handle.finish_reason is None for handle in handles):
                self.step()
        finally:
            for handle in handles:
                self.cancel(handle)
        return [handle.generation() for handle in handles]

    def submit(self, request: Request) -> Handle:
        """Queue a request; steps include it as soon as a slot and memory are free.

        Raises:
            ValueError: The prompt is empty or leaves no token within `max_length`, a token is outside the vocabulary, a
                setting is out of range, or the cache of this sequence alone exceeds `max_cache_bytes`.
        """
        sampling = Sampling(request.temperature, request.top_p, request.top_k)
        if request.max_new_tokens < 1 or not 0 <= request.top_logprobs <= self.model.config.vocab_size:
            raise ValueError(
                "expected max_new_tokens >= 1 and top_logprobs between 0 and the vocabulary's size, "
                f"got {request.max_new_tokens} and {request.top_logprobs}"
            )
        prompt = self._tokens(request.prompt, "the prompt")
        if reason := self.refusal(len(prompt), request.max_new_tokens):
            raise ValueError(f"a prompt of {len(prompt)} tokens {reason}")
        limit = min(request.max_new_tokens, self.max_length - len(prompt))
        stop_ids = self.stop_tokens if request.stop_ids is None else request.stop_ids
        uniforms = np.random.default_rng(request.seed).random(limit if request.temperature else 0)
        handle = Handle(request, prompt, limit, sampling, frozenset(stop_ids), uniforms, prompt.tolist())
        self._waiting.append(handle)
        return handle

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """Return why `submit` refuses a prompt of this length, as the predicate of a sentence; None if it does not."""
        if prompt_tokens >= self.max_length:
            return f"leaves no room within max_length, {self.max_length}"
        tokens = min(prompt_tokens + max_new_tokens, self.max_length)
        if not self._fits(1, tokens):
            return f"and {max_new_tokens} more tokens need a cache of more than {self.max_cache_bytes} bytes"
        return None

    def cancel(self, handle: Handle) -> None:
        """Cancel a sequence that has not ended, and free its slot: now, or after the running step.

        No event reports the cancellation.
        """
        if handle.finish_reason is None:
            handle.finish_reason = FinishReason.CANCELLED
        if self._stepping.acquire(blocking=False):
            try:
                with suppress(ValueError):
                    self._waiting.remove(handle)
                self._remove_finished()
            finally:
                self._stepping.release()

    def fork(self, handle: Handle, at: int, **changes: Any) -> Handle:
        """Submit a copy of the first `at` tokens of a sequence, which itself keeps running.

        The engine copies the cached keys and values where it still has them, and recomputes the rest.

        Args:
            handle: The sequence.
            at: Number of tokens to copy, prompt included.
            changes: Fields of the request to replace. A constraint cannot be shared: if the sequence has one, pass
                `constraint`, which may be None.

        Returns:
            The new sequence.

        Raises:
            ValueError: `at` is out of range, the constraint is missing, or `submit` refuses the request.
        """
        tokens = handle.tokens
        if not 1 <= at <= len(tokens):
            raise ValueError(f"cannot fork at {at}: the sequence has {len(tokens)} tokens")
        if handle.request.constraint is not None and "constraint" not in changes:
            raise ValueError("a fork of a constrained sequence needs a constraint of its own")
        return self.submit(replace(handle.request, **{"prompt": tokens[:at]} | changes))

    def forget_prefixes(self) -> None:
        """Drop the copies of keys and values of earlier prompts. Call this after replacing weights."""
        self._prefixes = Prefixes(self._cache, self._prefixes.limit)

    @property
    def unfinished(self) -> int:
        """Return the number of sequences that run or wait."""
        return sum(handle.finish_reason is None for handle in [*self._running, *self._waiting])

    @property
    def running(self) -> int:
        """Return the number of sequences with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Return the number of sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Return the allocated size of the cache in bytes."""
        return sum(layer.nbytes for layer in self._cache.layers)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Process up to `prefill_chunk` prompt tokens, then append a token to each sequence whose prompt is complete.

        An exception of a callback cancels its sequence and propagates.

        Returns:
            The appended tokens, in order for each sequence: the model's, then those that `on_token` supplied.

        Raises:
            RuntimeError: Another step is running.
        """
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError("another step of this engine is running")
        try:
            self._remove_finished()
            self._admit()
            self._prefill()
            ready = [i for i, handle in enumerate(self._running) if len(handle.pending) == 1]
            events = self._decode(ready) if ready else []
            self._remove_finished()
            return events
        finally:
            self._stepping.release()

    def _tokens(self, prompt: Sequence[int] | np.ndarray | str, name: str) -> np.ndarray:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"{name} is text, but the engine has no tokenizer: pass one, or pass token ids")
            prompt = self.tokenizer.encode(prompt)
        ids = np.asarray(prompt)
        if not len(ids):
            raise ValueError(f"{name} is empty")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name}: expected a list of token ids, got {ids.dtype} of shape {list(ids.shape)}")
        for token in (ids.min(), ids.max()):
            self._check(token)
        return ids.astype(np.int32)

    def _check(self, token: int) -> None:
        if not 0 <= token < self.model.config.vocab_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.model.config.vocab_size}")

    def _bytes(self, slots: int, capacity: int) -> int:
        return cache_bytes(self.model.config, capacity, slots, self._cache.dtype)

    @torch.inference_mode()
    def _remove_finished(self) -> None:
        """Free the slots of ended sequences, and move the last running ones into them."""
        for slot in reversed(range(len(self._running))):
            handle = self._running[slot]
            if handle.finish_reason is not None:
                last = self._running.pop()
                self._cache.move(len(self._running), slot)
                if last is not handle:
                    self._running[slot] = last

    def _admit(self) -> None:
        """Start waiting sequences while slots and memory last, and grow the cache for them."""
        if self._waiting and not self._running:
            self._runner.join_weights()
        capacity = max((len(handle.prompt) + handle.limit for handle in self._running), default=0)
        while self._waiting and len(self._running) < self.max_batch:
            handle = self._waiting[0]
            if handle.finish_reason is None:
                larger = max(capacity, len(handle.prompt) + handle.limit)
                fits = self._fits(len(self._running) + 1, larger)
                if self._running and not fits:
                    break
                capacity = larger
                self._running.append(handle)
            self._waiting.popleft()
        slots, cache = len(self._running), self._cache
        if slots > cache.slots or capacity > cache.capacity:
            # Larger than needed, so that the cache seldom moves, unless that exceeds the limit.
            ahead = max(cache.slots, min(power_of_two(slots), self.max_batch)), max(cache.capacity, capacity)
            self._runner.resize(*(ahead if self._fits(*ahead) else (slots, capacity)))

    def _fits(self, slots: int, capacity: int) -> bool:
        return self.max_cache_bytes is None or self._bytes(slots, capacity) <= self.max_cache_bytes

    def _prefill(self) -> None:
        """Process pending tokens of sequences up to the last one, which `_decode` takes."""
        room, pieces = self.prefill_chunk, []
        for slot, handle in enumerate(self._running):
            if len(handle.pending) == 1 or not room:
                continue
            if not self._cache.lengths[slot] and not handle.ids and not self._copy_prefix(slot):
                continue
            count = min(room, len(handle.pending) - 1)
            if self._prefixes.limit:  # copy a block before a ring overwrites its beginning
                whole = int(self._cache.lengths[slot]) % self._cache.block
                count = min([count, *(ring - whole for ring in self._cache.rings)])
            if count:
                pieces.append(Piece(slot, handle.pending[:count]))
                room -= count
        if pieces:
            self._runner.prefill(pieces)
        for piece in pieces:
            handle = self._running[piece.slot]
            del handle.pending[: len(piece.tokens)]
            self._keep_blocks(piece.slot, len(piece.tokens))

    def _copy_prefix(self, slot: int) -> bool:
        """Fill an empty slot with cached keys and values of the same tokens.

        Returns:
            False if another sequence is processing the same tokens now, so that waiting is cheaper.
        """
        handle, cache = self._running[slot], self._cache
        wanted = handle.prompt[:-1]
        length = self._prefixes.find(wanted)
        source, soon = None, 0
        for other, running in enumerate(self._running):
            if other != slot:
                prefix = common_prefix(running.tokens if running.ids else running.prompt, wanted)
                cached = min(prefix, int(cache.lengths[other]))
                if other < slot and len(running.pending) > 1:
                    soon = max(soon, min(prefix, len(running.prompt) - 1))
                if cached > length and cache.reusable(other, cached):
                    source, length = other, cached
        if soon >= SHORTEST_PREFIX and soon > length:
            return False
        if length >= SHORTEST_PREFIX:
            if source is not None:
                cache.copy(source, slot, length)
            else:
                self._prefixes.restore(slot, wanted[:length])
            handle.reused = length
            del handle.pending[:length]
        return True

    def _keep_blocks(self, slot: int, new: int) -> None:
        """Copy the blocks that the last `new` tokens of a slot completed, if prefixes are kept."""
        length = int(self._cache.lengths[slot])
        if self._prefixes.limit and length % self._cache.block < new:
            self._prefixes.keep(slot, self._running[slot].tokens[:length], length - new)

    def _decode(self, ready: list[int]) -> list[Event]:
        """Append one token to the sequence in each of the slots `ready`."""
        count = ready[-1] + 1
        logits = self._runner.decode([handle.pending[0] for handle in self._running[:count]])
        self._cache.lengths[ready] += 1
        for slot in ready:
            self._keep_blocks(slot, 1)
        handles = [self._running[slot] for slot in ready]
        logits = (logits if len(ready) == count else logits[ready]).float()
        allowed, ended = self._constrained(logits, handles)
        uniforms = [float(h.uniforms[len(h.ids)]) if h.sampling.temperature else 0.0 for h in handles]
        tokens = choose(allowed, [handle.sampling for handle in handles], uniforms)
        logprobs = logits.log_softmax(-1)
        tops = top_tokens(logprobs, [handle.request.top_logprobs for handle in handles])
        chosen = zip(handles, tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist(), strict=True)
        events: list[Event] = []
        for i, (handle, token, logprob) in enumerate(chosen):
            handle.pending.clear()
            if i in ended:
                handle.finish_reason = FinishReason.CONSTRAINT
                events.append(Event(handle, None, float("nan"), False, [], handle.finish_reason))
            elif handle.finish_reason is None:  # a callback may have canceled it
                self._append(handle, token, logprob, tops[i], events)
        return events

    def _constrained(self, logits: Tensor, handles: list[Handle]) -> tuple[Tensor, set[int]]:
        """Return the logits with forbidden tokens at -inf, and the rows whose constraints allow no token."""
        rows, masks, ended = [], [], set()
        for i, handle in enumerate(handles):
            if handle.request.constraint is not None:
                allowed = handle.request.constraint.allowed()
                if allowed is None:
                    continue
                mask = torch.as_tensor(allowed, dtype=torch.bool)
                if mask.any():
                    rows.append(i)
                    masks.append(mask)
                else:
                    ended.add(i)
        if not rows:
            return logits, ended
        forbidden = ~torch.stack(masks).to(logits.device)
        logits = logits.clone()
        logits[rows] = logits[rows].masked_fill(forbidden, float("-inf"))
        return logits, ended

    def _append(
        self, handle: Handle, token: int, logprob: float, top: list[tuple[int, float]], events: list[Event]
    ) -> None:
        """Append the model's token to a sequence, and the tokens that its callback supplies."""
        try:
            self._append_one(handle, token, logprob, top, events)
            if handle.request.on_token and handle.finish_reason is None:
                for supplied in handle.request.on_token(list(handle.ids)) or ():
                    if handle.finish_reason is None:
                        self._check(supplied)
                        self._append_one(handle, int(supplied), float("nan"), None, events)
        except BaseException:
            handle.finish_reason = FinishReason.CANCELLED
            raise

    def _append_one(
        self, handle: Handle, token: int, logprob: float, top: list[tuple[int, float]] | None, events: list[Event]
    ) -> None:
        handle.ids.append(token)
        handle.logprobs.append(logprob)
        handle.supplied.append(top is None)
        handle.pending.append(token)
        if token in handle.stop_ids:
            handle.finish_reason = FinishReason.STOP
        elif len(handle.ids) >= handle.limit:
            handle.finish_reason = FinishReason.LENGTH
        if handle.request.constraint is not None:
            handle.request.constraint.advance(token)
        events.append(Event(handle, token, logprob, top is None, top or [], handle.finish_reason))


def top_tokens(logprobs: Tensor, counts: list[int]) -> list[list[tuple[int, float]]]:
    """Return, for each row of `logprobs` [n, vocab], its `counts` most likely tokens and their log probabilities."""
    most = max(counts)
    if not most:
        return [[]] * len(counts)
    values, tokens = logprobs.topk(most, -1)
    rows = zip(tokens.tolist(), values.tolist(), counts, strict=True)
    return [list(zip(ids[:n], of_ids[:n], strict=True)) for ids, of_ids, n in rows]
