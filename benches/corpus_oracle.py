"""Count the traces of a corpus of functions that a Python trace function records alike.

```
python benches/corpus_oracle.py OUT --paths FOLDER --sample 1000
```

OUT is a corpus of `cwm corpus functions`; FOLDER is where the packages are installed. Each call of the sample runs in a
process of its own, in the sandbox, under the tracer of `tests/oracle.py`. Events, lines, variables, and values must be
those of the stored trace; the order of the variables of a frame does not matter. Calls that this tracer disturbs have
no verdict.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import cwm_core as cwm
from cwm_core.corpus import sandbox
from cwm_core.corpus.sandbox import RecordingSandbox, Run
from python_tracer import oracle

HERE = Path(__file__).parent


class OracleSandbox(RecordingSandbox):
    """A recording sandbox around the Python tracer, whose results are texts."""

    _arguments = (str(HERE / "python_tracer.py"), str(Path(cwm.__file__).parents[1]))


def sample(folder: Path, size: int, seed: int) -> list[tuple[str, str, str, str]]:
    """Return stored traces: the module, the key, the call, and the text of the frames."""
    stores = [cwm.TraceReader(path) for path in sorted((folder / "traces").iterdir())]
    places = [(store, index) for store in stores for index in range(len(store))]
    chosen = random.Random(seed).sample(places, min(size, len(places)))
    return sorted(entry(store, index) for store, index in chosen)


def entry(store: cwm.TraceReader, index: int) -> tuple[str, str, str, str]:
    facts, frames = store.metadata(index), store[index].frames
    text = "".join(oracle.frame_text(oracle.OracleFrame(f.event, f.locals, f.line, f.arg)) for f in frames)
    return facts["module"], store.key(index), facts["call"], text


def verdicts(entries: list[tuple[str, str, str, str]], paths: list[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and verdicts."""
    sandbox._result = lambda run, header, text: text.decode("utf-8", "surrogatepass") or header["reason"]
    for module, group in groupby(entries, lambda one: one[0]):
        of_module = list(group)
        with OracleSandbox(paths=[str(HERE), str(HERE.parent / "tests"), *paths], preload=module) as worker:
            results = worker.run(Run("", call, module=module) for _, _, call, _ in of_module)
            for (_, key, _, text), answer in zip(of_module, results, strict=True):
                if same(answer, text):
                    yield key, "equal"
                else:
                    yield key, "different" if answer.startswith("<|") else f"no verdict: {answer}"


def same(one: str, other: str) -> bool:
    """Return whether two texts hold the same frames."""
    if one == other:
        return True
    facts = [[(f.event, f.locals, f.line, f.arg) for f in cwm.Trace.parse(text).frames] for text in (one, other)]
    return facts[0] == facts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="OUT")
    parser.add_argument("--paths", action="append", default=[], help="where the packages are installed")
    parser.add_argument("--sample", type=int, default=1000, help="number of traces to compare")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for key, verdict in verdicts(sample(arguments.corpus, arguments.sample, arguments.seed), arguments.paths):
        counts[verdict] += 1
        if verdict != "equal":
            print(f"{verdict}: {key}")
    for verdict, count in counts.most_common():
        print(f"{count:6} {verdict}")


if __name__ == "__main__":
    main()
