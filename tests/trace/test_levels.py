"""Levels: each coarser trace against a plain reading of its definition, on written and on random programs."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cwm_core as cwm
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from programs import programs

DOCS = Path(__file__).parents[2] / "docs/concepts/trace-format.md"


class Shown(NamedTuple):
    """A frame and its position in the full trace."""

    index: int
    event: str
    locals: dict[str, str] | None
    line: str
    lineno: int | None
    arg: str | None


Activation = list  # of its own frames and of the activations within it, in order


def frames_of(trace: cwm.Trace) -> list[Shown]:
    return [Shown(i, f.event, f.locals, f.line, f.lineno, f.arg) for i, f in enumerate(trace.frames)]


def activations(frames: list[Shown]) -> Activation:
    """Frames outside any activation, with the activations within them."""
    outside: Activation = []
    stack = [outside]
    for frame in frames:
        if frame.event == "call":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        stack[-1].append(frame)
        if frame.event == "return":
            stack.pop()
    return outside


def flat(items: Activation) -> Iterator[Shown]:
    for item in items:
        if isinstance(item, list):
            yield from flat(item)
        else:
            yield item


def calls_only(items: Activation) -> Activation:
    kept: Activation = []
    exception = None
    for item in items:
        if isinstance(item, list):
            kept.append(calls_only(item))
        elif item.event == "line":
            exception = None
        elif item.event == "exception":
            exception = item
        elif item.event == "return" and item.arg == "None" and exception:
            kept += [exception, item]
        else:
            kept.append(item)
    return kept


def max_depth(items: Activation, most: int) -> Activation:
    return [
        max_depth(item, most - 1) if isinstance(item, list) else item
        for item in items
        if most > 0 or not isinstance(item, list)
    ]


def loop_budget(items: Activation, first: int, last: int) -> Activation:
    """Cut the loops of an activation, whose frames are grouped in steps that begin at LINE frames."""
    steps: list[Activation] = [[]]
    for item in items:
        if isinstance(item, list):
            steps[-1].append(loop_budget(item, first, last))
        elif item.event == "line":
            steps.append([item])
        else:
            steps[-1].append(item)
    return [item for step in [steps[0], *cut(steps[1:], first, last)] for item in step]


def cut(steps: list[Activation], first: int, last: int) -> list[Activation]:
    kept = []
    while steps:
        header = steps[0][0]
        length = next((i for i, step in enumerate(steps) if i and not stays(header, step[0])), len(steps))
        loop, steps = steps[:length], steps[length:]
        visits = [i for i, step in enumerate(loop) if i == 0 or is_same(header, step[0])]
        iterations = [loop[a:b] for a, b in itertools.pairwise([*visits, length])]
        iterations = [[visit, *cut(body, first, last)] for visit, *body in iterations]
        end = iterations.pop() if len(iterations[-1]) == 1 else []
        if len(iterations) > first + last:
            iterations[first:-last] = []
        kept += [step for iteration in iterations for step in iteration] + end
    return kept


def is_same(header: Shown, line: Shown) -> bool:
    return line.line != "" and (line.lineno, line.line) == (header.lineno, header.line)


def stays(header: Shown, line: Shown) -> bool:
    """Return whether a loop that begins at `header` continues at `line`."""
    is_header = re.match(r"[ \t]*(for|async[ \t]+for|while)\b", header.line) is not None
    return is_same(header, line) or (is_header and indentation(line) > indentation(header))


def indentation(line: Shown) -> int:
    return len(line.line) - len(line.line.lstrip(" \t"))


def resolve(frames: list[Shown]) -> list[dict[str, str] | None]:
    stack: list[dict[str, str]] = []
    states = []
    for frame in frames:
        if frame.event == "call":
            stack.append({})
        if frame.locals is None:
            states.append(None)
        else:
            written = dict(frame.locals)
            is_partial = next(iter(written.items()), None) == ("..", "..") and ".." not in stack[-1]
            if is_partial:
                del written[".."]
            now = {name: stack[-1].get(name, value) if value == ".." else value for name, value in written.items()}
            stack[-1] = stack[-1] | now if is_partial else now
            states.append(stack[-1])
        if frame.event == "return":
            stack.pop()
    return states


def write(kept: list[Shown], states: list[dict[str, str] | None], changes_only: bool) -> list[Shown]:
    """Return frames with their variables as differences from the previous frame of the same activation."""
    stack: list[dict[str, str]] = []
    out = []
    for frame in kept:
        now = states[frame.index]
        if frame.event == "call":
            stack.append({})
        if now is not None:
            before, stack[-1] = stack[-1], now
            written = {name: ".." if before.get(name) == value else value for name, value in now.items()}
            continues = list(now)[: len(before)] == list(before) and ".." not in now
            if changes_only and continues and ".." in written.values():
                written = {"..": ".."} | {name: value for name, value in now.items() if before.get(name) != value}
        if frame.event == "return":
            stack.pop()
        out.append(frame if now is None else frame._replace(locals=written))
    return out


def check(trace: cwm.Trace, level: dict[str, Any]) -> cwm.Trace:
    """Return the coarser trace, after checking it against the definition."""
    full = frames_of(trace)
    states = resolve(full)
    kept = activations(full)
    if "loop_budget" in level:
        kept = loop_budget(kept, *level["loop_budget"])
    if "max_depth" in level:
        kept = max_depth(kept, level["max_depth"])
    if level.get("calls_only"):
        kept = calls_only(kept)
    expected = write(list(flat(kept)), states, level.get("changes_only", False))
    coarse = trace.coarsen(**level)
    assert [f[1:] for f in frames_of(coarse)] == [f[1:] for f in expected]
    assert coarse.states() == [states[f.index] for f in expected] == resolve(frames_of(coarse))
    assert [coarse.state(i) for i in range(len(coarse))] == coarse.states()
    assert (coarse.context, coarse.result, coarse.exception, coarse.truncated) == (
        trace.context,
        trace.result,
        trace.exception,
        trace.truncated,
    )
    parsed = cwm.Trace.parse(coarse.to_text())
    assert parsed.error is None and parsed.complete == (trace.truncated is None)
    assert [(f.event, f.locals, f.line, f.arg) for f in parsed.frames] == [
        (f.event, f.locals, f.line, f.arg) for f in coarse.frames
    ]
    assert cwm.Trace.from_bytes(coarse.to_bytes()) == coarse
    assert coarse.coarsen(**level) == coarse
    return coarse


PROGRAMS = {
    "nested loops": (
        """
        def g(k):
            while k:
                k -= 1
            return k
        def f(n):
            for i in range(n):
                for j in range(i):
                    t = g(j)
                    del t
            return [i for i in range(n)]
        """,
        "f(6)",
    ),
    "ways out of a loop": (
        """
        def f(n, how):
            try:
                while True:
                    n -= 1
                    if n % 2:
                        continue
                    if not n:
                        if how == 'break':
                            break
                        if how == 'return':
                            return n
                        raise ValueError(n)
            except ValueError as e:
                m = 1
            else:
                m = 2
            for _ in range(5):
                pass
            else:
                m += 3
            return m
        """,
        "[f(9, how) for how in ('break', 'return', 'raise')]",
    ),
    "exceptions in every iteration": (
        """
        class Numbers:
            def __init__(self, n):
                self.n = n
            def __iter__(self):
                return self
            def __next__(self):
                self.n -= 1
                if self.n < 0:
                    raise StopIteration
                return self.n
            def __repr__(self):
                return 'Numbers'
        def f(n):
            for i in Numbers(n):
                try:
                    int('x' * i)
                except ValueError:
                    pass
            for i in Numbers(n): int('x' * i)
        """,
        "f(5)",
    ),
    "one line loops": (
        """
        def f(n):
            for i in range(n): k = i
            for i in range(n): k = i
            while n: n -= 1
            return sum(i for i in range(k)), {i: i for i in range(k)}
        """,
        "f(5)",
    ),
    "generators": (
        """
        def g(n):
            for i in range(n):
                try:
                    yield i
                except KeyError:
                    pass
        def f(n):
            it = g(n)
            seen = [it.throw(KeyError) if i % 2 else next(it) for i in range(4)]
            for i in it:
                seen.append(i)
            return seen
        """,
        "f(9)",
    ),
    "recursion in a loop": (
        """
        def f(n):
            for i in range(n):
                f(i)
        """,
        "f(5)",
    ),
    "coroutines": (
        """
        import asyncio
        class Ticks:
            def __init__(self, n):
                self.n = n
            def __aiter__(self):
                return self
            async def __anext__(self):
                self.n -= 1
                if not self.n:
                    raise StopAsyncIteration
                return self.n
            def __repr__(self):
                return 'Ticks'
        async def g(n):
            async for i in Ticks(n):
                await asyncio.sleep(0)
            async with asyncio.Lock():
                return n
        """,
        "asyncio.run(g(6))",
    ),
    "headers over several lines": (
        """
        def f(n):
            for i in [
                n,
                n + 1,
                n + 2,
                n + 3,
            ]:
                n += len('''
        a''')
            while (n >
                   3):
                n -= 1
            return [
                i
                for i in range(4)
            ]
        """,
        "f(1)",
    ),
    "words that only begin like a loop": (
        """
        def f(format, whilst):
            for(i)in[1, 2, 3]:
                format += i
            while(format):
                format -= 1
            whilst = [
                format]
            return whilst
        """,
        "f(2, 1)",
    ),
    "tabs": ("def f(n):\n\tfor i in range(n):\n\t\tfor j in range(n):\n\t\t\tk = j\n\treturn n\n", "f(4)"),
    "a variable named as the pair": (
        """
        def f(n):
            class C:
                a = 1
                locals()['..'] = n
                b = 2
                for a in range(5):
                    b = a
                del b
            class D:
                locals()['..'] = n
                b = 2
                del b
                c = 3
            return C, D
        """,
        "f(2)",
    ),
    "variables that come and go": (
        """
        def f(n):
            a = b = 1
            for i in range(n):
                if i % 3 == 0:
                    del a
                    a = i
                try:
                    raise ValueError(i)
                except ValueError as e:
                    b = e
            return a
        """,
        "f(7)",
    ),
}
BUDGETS = [(0, 1), (1, 1), (2, 1), (1, 3)]
ALONE = [{"calls_only": True}, {"changes_only": True}]
ALONE += [{"max_depth": depth} for depth in (1, 2, 3)] + [{"loop_budget": budget} for budget in BUDGETS]
COMBINED = [
    {"loop_budget": (1, 1), "changes_only": True},
    {"loop_budget": (1, 1), "max_depth": 2, "changes_only": True},
    {"max_depth": 2, "changes_only": True},
    {"max_depth": 2, "calls_only": True},
    {"loop_budget": (0, 1), "calls_only": True, "changes_only": True},
]


@pytest.mark.parametrize("level", [{}, *ALONE, *COMBINED], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_levels_are_as_defined(name: str, level: dict[str, Any]) -> None:
    code, call = PROGRAMS[name]
    check(cwm.record_source(textwrap.dedent(code), call), level)


levels = st.fixed_dictionaries(
    {},
    optional={
        "calls_only": st.booleans(),
        "max_depth": st.integers(1, 4),
        "loop_budget": st.sampled_from(BUDGETS),
        "changes_only": st.booleans(),
    },
)


def recorded(code: str) -> cwm.Trace:
    try:
        return cwm.record_source(code, "f(1, [2], 's')")
    except SyntaxError:
        assume(False)
        raise


@given(programs, levels)
def test_levels_of_random_programs_are_as_defined(code: str, level: dict[str, Any]) -> None:
    check(recorded(code), level)


@pytest.mark.parametrize("level", [*ALONE, *COMBINED], ids=str)
def test_levels_of_cut_recordings_are_as_defined(level: dict[str, Any]) -> None:
    code, call = PROGRAMS["nested loops"]
    for frames in range(1, 60, 3):
        check(cwm.Recorder(max_frames=frames).record_source(textwrap.dedent(code), call), level)


@given(programs, levels)
def test_one_level_after_the_other_is_all_at_once(code: str, level: dict[str, Any]) -> None:
    """Apply the levels in this order, because loops are recognized only by LINE frames."""
    trace = step_by_step = recorded(code)
    for name in ("loop_budget", "max_depth", "calls_only", "changes_only"):
        if name in level:
            step_by_step = step_by_step.coarsen(**{name: level[name]})
    assert step_by_step == trace.coarsen(**level)


@given(programs, levels)
def test_parsed_traces_are_coarsened_alike(code: str, level: dict[str, Any]) -> None:
    """Except for loops: without line numbers, equal lines are indistinguishable."""
    level.pop("loop_budget", None)
    trace = recorded(code)
    parsed = cwm.Trace.parse(trace.to_text()).trace
    assert parsed.coarsen(**level) == cwm.Trace.parse(trace.coarsen(**level).to_text()).trace


def test_a_budget_of_a_parsed_trace_resolves() -> None:
    code, call = PROGRAMS["nested loops"]
    parsed = cwm.Trace.parse(cwm.record_source(textwrap.dedent(code), call).to_text()).trace
    for budget in BUDGETS:
        assert len(check(parsed, {"loop_budget": budget})) < len(parsed)


def test_the_examples_of_the_documentation() -> None:
    section = DOCS.read_text(encoding="utf-8").partition("## Levels")[2].partition("\n## ")[0]
    trace = cwm.record_source(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], "walk(100)")
    sizes = re.findall(r"\| `coarsen\((.*)\)` \| (\d+) \| (\d+) \|", section)
    assert len(sizes) == 6
    for options, frames, size in sizes:
        coarse = trace.coarsen(**eval(f"dict({options})"))
        text = coarse.to_text().partition("<|frame_sep|>")[2]
        assert (len(coarse), len(text)) == (int(frames), int(size)), options
    examples = re.findall(r"\*\*`(\w+).*?```\n(.*?)```", section.partition("| level |")[2], re.DOTALL)
    options = {"loop_budget": (1, 1), "max_depth": 2, "calls_only": True, "changes_only": True}
    assert [name for name, _ in examples] == list(options)
    for name, example in examples:
        text = trace.coarsen(**{name: options[name]}).to_text()
        for part in example.split("...\n"):
            _, found, text = text.partition(part)
            assert found, part


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
        ({"loop_budget": (1, 0)}, r"loop_budget must be at least \(0, 1\), got \(1, 0\)"),
        ({"loop_budget": (-1, 1)}, r"got \(-1, 1\)"),
    ],
)
def test_impossible_levels_are_errors(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cwm.record_source("", "1").coarsen(**option)
