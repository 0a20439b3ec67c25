"""Filters of your own: a function, and an object with settings.

    cd examples
    cwm corpus functions toolz --filter corpus_filter:no_prints --filter corpus_filter:varied --tokenizer V -o corpus

From Python, give them to `make_corpus(..., filters=[no_prints, DistinctLines(5)])`.
"""

from dataclasses import dataclass

from cwm_core.corpus.sample import Drop, Sample


def no_prints(sample: Sample) -> Drop | None:
    """Drop samples whose code prints."""
    return Drop("prints", sample.id) if "print(" in sample.code else None


@dataclass(frozen=True)
class DistinctLines:
    """Drops traces that run few different lines."""

    at_least: int

    def __call__(self, sample: Sample) -> Drop | None:
        """Return why to drop the sample, or None to keep it."""
        lines = {frame.lineno for frame in sample.trace.frames}
        return Drop("few lines", f"{len(lines)} < {self.at_least}") if len(lines) < self.at_least else None


varied = DistinctLines(5)
