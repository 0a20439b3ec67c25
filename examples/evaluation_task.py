"""Evaluate with a task of your own: does the model write Python that compiles?

    cwm eval run evaluation_task:compiles MODEL problems.jsonl -o results/compiles

The model continues the first line of each program. Each score of the returned dicts becomes a measure of the report.
"""

from collections.abc import Sequence

from cwm_core.evaluation import Problem, Scores
from cwm_core.inference import Engine, completion_prompt


def compiles(engine: Engine, problems: Sequence[Problem], seed: int) -> list[Scores | str]:
    """Return, for each problem, whether the continuation of the first line compiles, and its length in tokens."""
    first_lines = [problem.code.splitlines(keepends=True)[0] for problem in problems]
    prompts = [completion_prompt(engine.tokenizer, line) for line in first_lines]
    generations = engine.generate(prompts, 64, temperature=0.8, seed=seed)
    results: list[Scores | str] = []
    for problem, line, generation in zip(problems, first_lines, generations, strict=True):
        if len(problem.code) == len(line):
            results.append("the program has only one line")
            continue
        text = line + engine.tokenizer.decode(generation.ids.tolist())
        results.append({"compiles": is_python(text), "tokens": float(len(generation.ids))})
    return results


def is_python(text: str) -> bool:
    """Return whether `text` compiles."""
    try:
        compile(text, "<model>", "exec")
    except (SyntaxError, ValueError):
        return False
    return True
