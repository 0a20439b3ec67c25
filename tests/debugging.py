"""Sources of frames for tests of the debugger, and the expected effects of its commands, derived from events alone."""

from __future__ import annotations

import cwm_core as cwm
import numpy as np

TOKENIZER = cwm.Tokenizer.train([], 256)
FRAME_SEP, END = (TOKENIZER.special_tokens[name] for name in ("<|frame_sep|>", "<|end_of_text|>"))

CODE = """\
def g(n):
    if n == 0:
        raise ValueError(n)
    return n + 1

def f(xs):
    total = 0
    for x in xs:
        try:
            total += g(g(x))
        except ValueError as error:
            total = -total
    for y in gen(total):
        total += y
    return total

def gen(n):
    yield n
    yield n + 1
"""
CALL = "f([1, 0, 3])"


def encoded(trace):
    """Return the tokens of a trace, with an end token even if a limit cut it."""
    ids = TOKENIZER.encode_trace(trace)
    return ids if ids[-1] == END else np.append(ids, np.int32(END))


class Recorded:
    """A model that returns the next frame of a recording, whatever the frames so far are."""

    def __init__(self, trace):
        ids = encoded(trace)
        ends = np.flatnonzero((ids == FRAME_SEP) | (ids == END)) + 1
        self.context, *self.frames = np.split(ids, ends[:-1])
        self.replaced = {}
        self.calls = []

    def next_frame(self, ids, seed, temperature):
        index = int((ids == FRAME_SEP).sum()) - 1
        self.calls.append((index, seed, temperature))
        frame = self.replaced.get((index, temperature), self.replaced.get(index, self.frames[index]))
        return frame, np.full(len(frame), -0.01, np.float32)


def debugger(code=CODE, call=CALL, **options):
    """A debugger whose model knows the program, and the program's trace."""
    trace = cwm.Recorder(max_frames=400, capture_output=True).record_source(code, call)
    return cwm.debugger.Debugger(Recorded(trace), TOKENIZER, code, call, **options), trace


def stacks(trace):
    """Return for each frame the indices of the CALL frames of its open activations, outermost first."""
    found, stack = [], []
    for index, frame in enumerate(trace.frames):
        if frame.event == "call":
            stack = [*stack, index]
        found.append(stack)
        if frame.event == "return":
            stack = stack[:-1]
    return found
