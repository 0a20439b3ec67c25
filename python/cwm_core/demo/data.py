"""Turn seeds into recorded executions, a vocabulary, and token shards."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path

from ..corpus.algorithms import ALGORITHMS
from ..corpus.generator import GeneratedProgram, generate
from ..corpus.split import distinct
from ..data import ShardWriter
from ..data.traces import encode_for_training, training_texts
from ..tokenizer import Tokenizer
from ..trace import Recorder, Trace
from .recipe import PATTERN, SPECIAL_TOKENS, Recipe

# Seeds from here on generate programs for evaluation.
HELD_OUT_SEEDS = 10**9
MAX_FRAMES = 200


def programs(recipe: Recipe) -> tuple[list[GeneratedProgram], list[GeneratedProgram]]:
    """Return programs to train on and programs to predict.

    No two of them, across both lists, have the same text, even with renamed variables. The calls of a classic algorithm
    share its code; all of them are in the first list.
    """
    seen: set[str] = set()
    offset = recipe.seed * 10**6
    generated = distinct(map(generate, count(offset)), seen)
    train = list(islice(generated, recipe.programs))
    unseen = distinct(map(generate, count(HELD_OUT_SEEDS + offset)), seen)
    held_out = list(islice(unseen, recipe.held_out))
    for algorithm in ALGORITHMS:
        calls = {algorithm.program(offset + i) for i in range(recipe.algorithm_calls)}
        train += sorted(calls)
    random.Random(recipe.seed).shuffle(train)
    return train, held_out


def record(programs: Iterable[GeneratedProgram]) -> list[Trace]:
    """Record the executions of programs."""
    recorder = Recorder(max_frames=MAX_FRAMES)
    return [recorder.record_source(program.code, program.call) for program in programs]


def train_vocabulary(traces: Iterable[Trace], recipe: Recipe) -> Tokenizer:
    """Train a byte-level BPE vocabulary on the parts of traces."""
    texts = (text for trace in traces for text in training_texts(trace))
    return Tokenizer.train(texts, recipe.vocabulary, pattern=PATTERN, special_tokens=SPECIAL_TOKENS)


def write_shards(folder: Path, tokenizer: Tokenizer, traces: Iterable[Trace], recipe: Recipe) -> int:
    """Write token shards of the traces, with a loss after each first frame, and return the number of traces written.

    Traces longer than a sequence are left out: the second half of a cut trace would be an execution without its
    program.
    """
    written = 0
    with ShardWriter(folder, tokenizer) as shards:
        for trace in traces:
            ids, loss_mask, spans = encode_for_training(tokenizer, trace)
            if len(ids) <= recipe.seq_len:
                shards.add(ids, loss_mask, "traces", spans)
                written += 1
    return written
