"""Recording only the calls that a function chooses."""

import contextlib

import pytest
from cwm_core._native import Recording
from cwm_core.trace import finish


def f(x):
    return g(x)


def g(x):
    return 1 / x


def h(x):
    try:
        g(x)
    finally:
        x += 1


def k(x):
    with contextlib.suppress(ValueError):
        return None if 1 / x else x


def choosing(choose, run, **limits):
    recording = Recording([__file__], [], **limits, choose=choose)
    recording.start()
    try:
        run()
    finally:
        recording.stop()
        traces = finish(recording)
    return traces


def test_choosing_calls():
    seen = []

    def choose(frame):
        seen.append(frame.f_code.co_name)
        return frame.f_code.co_name != "g"

    def calls():
        pass

    run = compile("f(1), g(1), f(2)", "<elsewhere>", "eval")
    traces = choosing(choose, lambda: eval(run, globals()))
    # The lambda is the outermost call here.
    assert seen == ["<lambda>"] and len(traces) == 1
    seen.clear()
    traces = choosing(choose, eval_in(run))
    assert seen == ["f", "g", "f"] and [trace.result for trace in traces] == ["1.0", "0.5"]
    assert [len(trace) for trace in choosing(choose, eval_in(run), max_frames=3)] == [3, 3]


def eval_in(code):
    import functools

    return functools.partial(eval, code, globals())


def test_exceptions_of_a_choosing_function():
    run = compile("f(1)", "<elsewhere>", "eval")

    def fails(frame):
        raise ValueError

    def interrupts(frame):
        raise KeyboardInterrupt

    assert [len(trace) for trace in choosing(fails, eval_in(run))] == [0]
    with pytest.raises(KeyboardInterrupt):
        choosing(interrupts, eval_in(run))
    for options in ({"split": True}, {"max_seconds": 1.0}):
        with pytest.raises(ValueError, match="choose"):
            Recording([], [], choose=fails, **options)


def test_outcomes_of_chosen_calls():
    code = "try:\n    {}\nexcept ZeroDivisionError:\n    pass\n"
    for call, exception in (
        ("f(0)", "ZeroDivisionError('division by zero')"),
        ("h(0)", "ZeroDivisionError('division by zero')"),
        ("h(1)", None),
        ("k(0)", "ZeroDivisionError('division by zero')"),
        ("k(1)", None),
    ):
        [trace] = choosing(lambda frame: True, eval_exec(code.format(call)))
        assert trace.exception == exception and trace.result == (None if exception else "None")


def eval_exec(code):
    import functools

    return functools.partial(exec, compile(code, "<elsewhere>", "exec"), globals())
