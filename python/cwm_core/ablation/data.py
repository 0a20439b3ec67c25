"""Make the programs of a seed: documents to train on, and held-out sets."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree

from ..corpus.generator import GeneratedProgram
from ..corpus.programs import ProgramCounts, held_out_programs, training_programs
from ..data import ShardWriter
from ..data.traces import encode_for_training, training_texts
from ..demo.recipe import PATTERN, SPECIAL_TOKENS
from ..support.files import write_file
from ..tokenizer import Tokenizer
from ..trace import Recorder, Trace, TraceReader, TraceWriter
from .recipe import FORMS, REPAIR_SETS, SETS, AblationRecipe
from .repair import RepairTask, break_program, repair_document

# Programs to generate for each one in a held-out set: about a third of them have long executions.
_CANDIDATES = 5
# Longest execution of a held-out set, as a multiple of the longest one to train on.
_LONGER = 3
# Programs from which the vocabulary is trained.
_FOR_VOCABULARY = 2000

Recorded = tuple[GeneratedProgram, Trace]


def prepare_vocabulary(folder: Path, recipe: AblationRecipe) -> None:
    """Train the vocabulary of all arms, unless the folder holds it."""
    if (folder / "tokenizer.json").exists():
        return
    half = min(recipe.programs, _FOR_VOCABULARY) // 2
    programs = training_programs(ProgramCounts(half, half), held_out=_candidates(recipe, 0))
    traces = [trace for _, trace in _recorded([*programs["basic"], *programs["wide"]], recipe.max_frames)]
    forms = (trace.coarsen(**FORMS[form]) for trace in traces for form in ("traces", "changes"))
    texts = (text for trace in forms for text in training_texts(trace))
    Tokenizer.train(texts, recipe.vocabulary, pattern=PATTERN, special_tokens=SPECIAL_TOKENS).save(folder)


def prepare_seed(folder: Path, recipe: AblationRecipe, seed: int, tokenizer: Tokenizer) -> None:
    """Write shards of each form, held-out traces, and tasks of repair, unless the folder exists.

    Programs that raise are left out, and so are executions that are too long or do not fit into a row in one of the
    forms: all arms train on the same programs.
    """
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    rmtree(partial, ignore_errors=True)
    (partial / "held-out").mkdir(parents=True)
    rng = random.Random(seed)
    for name, recorded in _held_out(recipe, seed).items():
        with TraceWriter(partial / "held-out" / f"{name}.cwmtraces") as writer:
            for _, trace in recorded:
                writer.add(trace)
        if name in REPAIR_SETS:
            tasks = [task for program, trace in recorded if (task := break_program(program, trace, rng))]
            rows = "".join(f"{json.dumps(asdict(task))}\n" for task in tasks)
            write_file(partial / "held-out" / f"{name}.jsonl", rows)
    _write_shards(partial / "shards", tokenizer, _to_train_on(recipe, seed), recipe, rng)
    partial.rename(folder)


def read_held_out(folder: Path, name: str) -> list[Trace]:
    """Return the traces of a held-out set."""
    with TraceReader(folder / "held-out" / f"{name}.cwmtraces") as reader:
        return [stored for stored in reader]


def read_repairs(folder: Path, name: str) -> list[RepairTask]:
    """Return the tasks of repair of a held-out set."""
    lines = (folder / "held-out" / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [RepairTask.from_json(json.loads(line)) for line in lines]


def _candidates(recipe: AblationRecipe, seed: int) -> int:
    """Return how many programs of each distribution the held-out sets up to this seed are chosen from."""
    return _CANDIDATES * recipe.problems * (seed + 1)


def _held_out(recipe: AblationRecipe, seed: int) -> dict[str, list[Recorded]]:
    """Return the held-out sets of a seed, which no other seed has.

    The intervals over seeds then cover the choice of programs, too.
    """
    share = slice(_candidates(recipe, seed - 1), _candidates(recipe, seed))
    programs = {name: candidates[share] for name, candidates in held_out_programs(_candidates(recipe, seed)).items()}
    most = _LONGER * recipe.max_frames
    # The families alternate, as in training they are equally frequent.
    familiar = [one for pair in zip(programs["basic"], programs["wide"], strict=True) for one in pair]
    known, unseen = list(_recorded(familiar, most)), _recorded(programs["unseen"], recipe.max_frames)
    sets = {
        "familiar": [one for one in known if len(one[1]) <= recipe.max_frames],
        "unseen": list(unseen),
        "longer": [one for one in known if len(one[1]) > recipe.max_frames],
    }
    return {name: sets[name][: recipe.problems] for name in SETS}


def _to_train_on(recipe: AblationRecipe, seed: int) -> Iterator[Recorded]:
    counts = ProgramCounts(basic=recipe.programs // 2, wide=recipe.programs - recipe.programs // 2)
    programs = training_programs(counts, seed, held_out=_candidates(recipe, seed))
    mixed = [*programs["basic"], *programs["wide"]]
    random.Random(seed).shuffle(mixed)
    return _recorded(mixed, recipe.max_frames)


def _recorded(programs: Iterable[GeneratedProgram], max_frames: int) -> Iterator[Recorded]:
    """Yield the programs that return within `max_frames` frames, with their traces."""
    recorder = Recorder()
    for program in programs:
        trace = recorder.record_source(program.code, program.call)
        if trace.result is not None and len(trace) <= max_frames:
            yield program, trace


def _write_shards(
    folder: Path, tokenizer: Tokenizer, recorded: Iterable[Recorded], recipe: AblationRecipe, rng: random.Random
) -> None:
    repairs = 0
    with ExitStack() as stack:
        writers = {name: stack.enter_context(ShardWriter(folder / name, tokenizer)) for name in (*FORMS, "repair")}
        for program, trace in recorded:
            documents = {form: encode_for_training(tokenizer, trace.coarsen(**level)) for form, level in FORMS.items()}
            if any(len(document.ids) > recipe.seq_len for document in documents.values()):
                continue
            for form, (ids, loss_mask, spans) in documents.items():
                writers[form].add(ids, loss_mask, form, spans)
            if repairs < recipe.repairs and (task := break_program(program, trace, rng)):
                ids, loss_mask = repair_document(tokenizer, task)
                if len(ids) <= recipe.seq_len:
                    writers["repair"].add(ids, loss_mask, "repair")
                    repairs += 1
