"""Sets of generated programs: to train on and held out, without a program in common, even up to names."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from secrets import token_hex
from shutil import rmtree

from ..trace import Recorder, TraceWriter
from .algorithms import ALGORITHMS
from .generator import GeneratedProgram, generate, generate_unseen, generate_wide
from .split import distinct

# Seeds from here on generate programs for evaluation.
HELD_OUT_SEEDS = 10**9
MAX_FRAMES = 60
HELD_OUT_ALGORITHMS = ("is_prime", "binary_search", "selection_sort", "rotate", "count_letters", "square_root")

GENERATORS: dict[str, Callable[[int], GeneratedProgram]] = {
    "basic": generate,
    "wide": generate_wide,
    "unseen": generate_unseen,
}


@dataclass(frozen=True)
class ProgramCounts:
    """Numbers of programs to train on."""

    basic: int = 0
    """Programs of `generate`."""
    wide: int = 0
    """Programs of `generate_wide`."""
    algorithm_calls: int = 0
    """Calls of each classic algorithm that is not in `HELD_OUT_ALGORITHMS`."""


def held_out_programs(number: int) -> dict[str, list[GeneratedProgram]]:
    """Return `number` programs for evaluation of each distribution: "basic", "wide", and "unseen", and "algorithms".

    No two programs, across all lists, have the same text, even with renamed variables. Only the calls of one algorithm
    share its code. A list begins with the list of a smaller `number`.
    """
    seen: dict[str, set[str]] = {name: set() for name in GENERATORS}
    sets = {
        name: list(islice(distinct(map(make, count(HELD_OUT_SEEDS)), seen[name]), number))
        for name, make in GENERATORS.items()
    }
    return sets | {"algorithms": _calls(HELD_OUT_ALGORITHMS, HELD_OUT_SEEDS, -(-number // len(HELD_OUT_ALGORITHMS)))}


def training_programs(counts: ProgramCounts, seed: int = 0, held_out: int = 500) -> dict[str, list[GeneratedProgram]]:
    """Return programs to train on: "basic", "wide", and "algorithms".

    They have no program in common with `held_out_programs(held_out)`, even up to names, and no two of them are equal,
    but for the calls of an algorithm, which share its code.

    Args:
        counts: Number of programs of each kind.
        seed: Seeds with different numbers give different programs; from 0 to 99.
        held_out: Number of programs of each distribution to keep for evaluation.

    Raises:
        ValueError: The seed is out of range.
    """
    if not 0 <= seed < 100:
        raise ValueError(f"seed must be from 0 to 99, got {seed}")
    first = seed * 10**7
    seen: set[str] = set()
    for programs in held_out_programs(held_out).values():
        list(distinct(programs, seen))
    sets = {}
    for name, number in (("basic", counts.basic), ("wide", counts.wide)):
        sets[name] = list(islice(distinct(map(GENERATORS[name], count(first)), seen), number))
    names = [algorithm.name for algorithm in ALGORITHMS if algorithm.name not in HELD_OUT_ALGORITHMS]
    return sets | {"algorithms": _calls(names, first, counts.algorithm_calls)}


def record_programs(
    folder: Path, counts: ProgramCounts, seed: int, held_out: int, on_progress: Callable[[int], None]
) -> dict[str, int]:
    """Record training programs and held-out programs to a new folder, which appears when all of them are recorded.

    The folder gets the stores `train/NAME.cwmtraces` in random order and `held-out/NAME.cwmtraces`. Executions of more
    than `MAX_FRAMES` frames are left out. The source of a trace is the name of its store.

    Args:
        folder: Folder to create.
        counts: Number of programs of each kind to train on.
        seed: Seed of the training programs.
        held_out: Number of programs of each distribution to keep for evaluation.
        on_progress: Function called with the number of recorded programs.

    Returns:
        The number of traces in each store, by its path in the folder.

    Raises:
        FileExistsError: The folder exists.
        OSError: A file cannot be written.
    """
    if folder.exists():
        raise FileExistsError(errno.EEXIST, "expected a new folder for the corpus", str(folder))
    sets = {f"train/{name}": programs for name, programs in training_programs(counts, seed, held_out).items()}
    sets |= {f"held-out/{name}": programs for name, programs in held_out_programs(held_out).items()}
    partial = folder.with_name(f".{folder.name}.{token_hex(4)}.partial")
    recorder = Recorder()
    recorded: dict[str, int] = {}
    done = 0
    try:
        for name, programs in sets.items():
            random.Random(seed).shuffle(programs)
            store = partial / f"{name}.cwmtraces"
            store.parent.mkdir(parents=True, exist_ok=True)
            with TraceWriter(store) as writer:
                for program in programs:
                    trace = recorder.record_source(program.code, program.call)
                    if len(trace) <= MAX_FRAMES:
                        writer.add(trace, source=store.stem, license="Apache-2.0")
                    done += 1
                    on_progress(done)
                recorded[f"{name}.cwmtraces"] = len(writer)
        partial.rename(folder)
    except BaseException:
        rmtree(partial, ignore_errors=True)
        raise
    return recorded


def _calls(names: list[str] | tuple[str, ...], first: int, number: int) -> list[GeneratedProgram]:
    """Return up to `number` different calls of each algorithm."""
    calls: list[GeneratedProgram] = []
    for algorithm in ALGORITHMS:
        if algorithm.name in names:
            calls += sorted({algorithm.program(first + i) for i in range(number)})
    return calls
