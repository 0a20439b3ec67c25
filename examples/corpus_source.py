"""A corpus source of your own: record sorting programs of your own generator.

    cd examples
    cwm corpus source corpus_source:units 100 --license MIT --tokenizer VOCABULARY -o corpus

From Python: `python corpus_source.py VOCABULARY FOLDER`.
"""

import random
import sys
from collections.abc import Iterator

from cwm_core.corpus.pipeline import make_corpus
from cwm_core.corpus.recording import CorpusSettings
from cwm_core.corpus.unit import Unit
from cwm_core.support.pool import processes

CODE = """\
def insertion_sort(items):
    for i in range(1, len(items)):
        k = i
        while k > 0 and items[k - 1] > items[k]:
            items[k - 1], items[k] = items[k], items[k - 1]
            k -= 1
    return items
"""


def units(count: str = "100") -> Iterator[Unit]:
    """Yield units with ids and calls that are the same in every run. Arguments from the command line are strings."""
    for number in range(int(count)):
        items = random.Random(number).sample(range(100), 4)
        yield Unit(
            id=f"insertion-sort-{number:06}",
            code=CODE,
            calls=(f"insertion_sort({items})",),
            provenance={"source": "sorting", "license": "MIT", "seed": number},
        )


def main() -> None:
    """Make a corpus of ten units."""
    vocabulary, folder = sys.argv[1:]
    with processes(1) as pool:
        summary = make_corpus(
            folder,
            units("10"),
            CorpusSettings(tokenizer=vocabulary),
            description={"source": "sorting", "count": 10},
            pool=pool,
        )
    print(f"{summary.drops.kept} of {summary.drops.total} samples kept, {summary.tokens} tokens")


if __name__ == "__main__":
    main()
