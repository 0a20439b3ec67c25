"""A recorded program behaves as it does under a native trace hook that does nothing, and mostly as without any."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import random
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import cwm_core as cwm
import pytest
from cwm_core._native import Recording, call_with_empty_hook

Probe = Callable[[], Any]
PROBES: list[Probe] = []
CHANGED_BY_ANY_HOOK: list[Probe] = []


def probe(function: Probe) -> Probe:
    PROBES.append(function)
    return function


def changed_by_any_hook(function: Probe) -> Probe:
    CHANGED_BY_ANY_HOOK.append(function)
    return function


def plainly(call: Probe) -> None:
    call()


def under_an_empty_hook(call: Probe) -> None:
    call_with_empty_hook(call)


def natively_recorded(call: Probe) -> None:
    """Record at the same stack depth as the two functions above."""
    recording = Recording([__file__], [])
    recording.run(call, ())
    assert recording.finish(lambda name: [], lambda *entry: "")[0].exception is None


def result_under(caller: Callable[[Probe], Any], function: Probe) -> Any:
    results = []
    caller(lambda: results.append(function()))
    return results[0]


class Noisy:
    """An object that reports when it is freed."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def __repr__(self) -> str:
        return f"Noisy({self.name})"

    def __del__(self) -> None:
        self.log.append(self.name)


@probe
def finalizers_run_in_order() -> list[Any]:
    log: list[Any] = []
    a, b = Noisy("a", log), Noisy("b", log)
    both = [a, b]
    a = None
    log.append("a is None")
    both.append(Noisy("c", log))
    both.pop()
    log.append("popped")
    del both
    log.append("deleted both")
    b = 1
    log.append("b is rebound")
    kept = {"k": Noisy("d", log)}
    kept["k"] = None

    def inner(e: Any) -> None:
        log.append("inside")
        e = None  # noqa: F841
        log.append("e is None")

    inner(Noisy("e", log))
    cycle = [Noisy("f", log)]
    cycle.append(cycle)
    del cycle
    log.append("cycle")
    gc.collect()
    return log


@probe
def weak_references_die_with_their_object() -> list[Any]:
    log: list[Any] = []

    class Target:
        pass

    target = Target()
    ref = weakref.ref(target, lambda _: log.append("dead"))
    weakref.finalize(target, log.append, "finalized")
    held = weakref.WeakValueDictionary({"k": target})
    log.append(len(held))
    shown = [target]
    log.append(weakref.getweakrefcount(target))
    del target
    log.append(ref() is None)
    shown[0] = None
    log.append((ref() is None, len(held)))
    return log


def fresh_code(file: str = __file__) -> CodeType:
    """A code object that nothing else holds."""
    return compile("def f(a):\n    b = [a]\n    return lambda: b\n", file, "exec")


@probe
def code_objects_die_with_their_last_use() -> list[Any]:
    log: list[Any] = []
    for file in (__file__, "<elsewhere>"):
        code = fresh_code(file)
        watch = [weakref.ref(code, lambda _: log.append("module dead"))]
        log.append((weakref.getweakrefcount(code), sys.getrefcount(code), code == fresh_code(file)))
        namespace: dict[str, Any] = {}
        exec(code, namespace)
        log.append((weakref.getweakrefcount(code), sys.getrefcount(code), code == fresh_code(file)))
        del code
        f = namespace.pop("f")
        watch.append(weakref.ref(f.__code__, lambda _: log.append("f dead")))
        inner = f(1)
        log.append((inner(), f(2)(), sys.getrefcount(f.__code__), sys.getsizeof(f.__code__)))
        del f
        log.append("f dropped")
        watch.append(weakref.ref(inner.__code__, lambda _: log.append("inner dead")))
        inner = None
        log.append("inner dropped")
    return log


@probe
def code_objects_die_on_another_thread() -> list[Any]:
    namespace: dict[str, Any] = {}
    exec(fresh_code(), namespace)
    namespace["f"](1)
    watch = weakref.ref(namespace["f"].__code__)
    thread = threading.Thread(target=namespace.clear)
    thread.start()
    thread.join()
    return [watch()]


@probe
def first_calls_make_no_objects() -> list[int]:
    namespace: dict[str, Any] = {}
    exec(fresh_code(), namespace)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        namespace["f"](1)()
        return [len(gc.get_objects()) - before]
    finally:
        gc.enable()


@probe
def names_of_a_class_of_their_own_die() -> list[str]:
    log: list[str] = []

    class Name(str):
        def __del__(self) -> None:
            log.append(str(self))

    code = (lambda: 1).__code__.replace(co_name=Name("name"), co_filename=Name(__file__))
    eval(code)
    del code
    log.append("code dropped")

    class Body:
        locals()[Name("key")] = 1
        other = 1
        del locals()["key"]
        log.append("key dropped")

    return log


@probe
def generators_are_dropped_at_once() -> list[Any]:
    log: list[Any] = []

    def steps(name: str) -> Iterator[int]:
        own = Noisy(name, log)
        try:
            yield 1
            yield 2
        finally:
            log.append(f"closed {own}")

    it = steps("g")
    next(it)
    it = None
    log.append("dropped")
    unstarted = steps("h")
    unstarted = 1  # noqa: F841
    for value in steps("i"):
        log.append(value)
        break
    log.append("loop left")
    return log


@probe
def reference_counts() -> list[int]:
    class Thing:
        pass

    def of(argument: Any) -> int:
        return sys.getrefcount(argument)

    local = Thing()
    counts = [sys.getrefcount(local), of(local), of(Thing())]
    elements = [local, Thing()]
    counts += [sys.getrefcount(elements), sys.getrefcount(elements[1]), sys.getrefcount(local)]
    table = {"k": elements, local: 1}
    counts += [sys.getrefcount(table), sys.getrefcount(table["k"]), sys.getrefcount(local)]

    def closure() -> int:
        return sys.getrefcount(local)

    counts += [closure(), sys.getrefcount(closure), sys.getrefcount(Thing)]
    text = "".join(["a text", " made here"])
    number = len(text) + 10**6
    counts += [sys.getrefcount(text), sys.getrefcount(number)]
    return counts


@probe
def referrers_and_collector_counts() -> list[Any]:
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        target = [object()]
        around = (target,)
        kinds = sorted(type(r).__name__ for r in gc.get_referrers(target) if type(r).__name__ != "frame")
        after = len(gc.get_objects())
        collected = gc.collect()
        return [after - before, kinds, collected, len(around)]
    finally:
        gc.enable()


def fails_deeply(n: int) -> int:
    local = [n]
    if n == 0:
        return local[1]
    try:
        return fails_deeply(n - 1)
    except IndexError as error:
        raise ValueError(n) from error


@probe
def tracebacks() -> list[Any]:
    try:
        fails_deeply(2)
    except ValueError as error:
        text = traceback.format_exc()
        frames, tb = [], error.__traceback__
        while tb is not None:
            local_names = sorted(tb.tb_frame.f_locals)
            frames.append((tb.tb_lineno, tb.tb_lasti, tb.tb_frame.f_lineno, local_names))
            tb = tb.tb_next
        return [text.split("Traceback", 1)[1], frames, repr(error.__context__), repr(error.__cause__)]
    return []


@probe
def the_handled_exception() -> list[Any]:
    seen = [sys.exc_info()]
    try:
        raise KeyError("k")
    except KeyError as error:
        seen.append(repr(sys.exc_info()[1]))
        try:
            raise TypeError("t")
        except TypeError:
            seen.append(repr(sys.exc_info()[1]))
            seen.append(repr(sys.exc_info()[1].__context__))
        seen.append(repr(sys.exc_info()[1]))
        seen.append(sys.exc_info()[1] is error)
    seen.append(sys.exc_info())
    return seen


def deeper(n: int, reached: list[int]) -> None:
    reached[0] = n
    deeper(n + 1, reached)


@probe
def depth_of_recursion() -> int:
    reached = [0]
    with contextlib.suppress(RecursionError):
        deeper(0, reached)
    return reached[0]


@probe
def the_stack_of_frames() -> list[str]:
    def names() -> list[str]:
        frame, found = sys._getframe(), []
        while frame is not None and len(found) < 3:
            found.append(f"{frame.f_code.co_name} {frame.f_lineno} {frame.f_trace}")
            frame = frame.f_back
        return found

    return [*names(), *[name for _ in range(1) for name in names()]]


@probe
def held_locals() -> list[Any]:
    a = 1
    held = locals()
    seen = [sorted(held)]
    b = 2
    seen.append(sorted(held))
    a = 3
    seen.append(held["a"])
    again = locals()
    seen += [again is held, sorted(again), held["a"]]
    held["a"] = 9
    seen.append((a, b))
    seen.append(sorted(locals()))
    return seen


@probe
def locals_of_a_closure_and_a_class() -> list[Any]:
    captured = 1

    def inner() -> list[str]:
        mine = captured
        first = locals()
        more = mine
        return [*first, more]

    class Body:
        x = captured
        names = sorted(name for name in locals() if not name.startswith("__"))

    return [inner(), Body.names]


@probe
def locals_seen_by_another_frame() -> list[Any]:
    def outer() -> list[Any]:
        value = 1
        first = look()
        value = 2
        second = look()
        return [first, second, value]

    def look() -> int:
        return sys._getframe(1).f_locals["value"]

    return outer()


@probe
def profile_functions() -> list[Any]:
    events: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: events.append(event))
    try:
        len([])
        (lambda: 1)()  # noqa: PLC3002
    finally:
        sys.setprofile(before)
    return [before, events]


@probe
def warnings_once() -> list[str]:
    def old() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        filters = list(warnings.filters)
        for _ in range(3):
            old()
        return [f"{w.message} {w.lineno}" for w in caught] + [str(warnings.filters == filters)]


variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


@probe
def context_variables() -> list[Any]:
    before = len(contextvars.copy_context())
    token = variable.set(5)
    seen = [contextvars.copy_context().run(lambda: (variable.set(6), variable.get())[1]), variable.get()]
    variable.reset(token)
    return [*seen, variable.get(), len(contextvars.copy_context()) - before]


@probe
def random_numbers() -> list[float]:
    random.seed(7)
    return [random.random() for _ in range(3)] + [hash(random.getstate())]


@probe
def dicts_and_interned_strings() -> list[Any]:
    class Keyed:
        def __init__(self) -> None:
            self.first, self.second = 1, 2

    one, other = Keyed(), Keyed()
    sizes = [sys.getsizeof(one.__dict__), sys.getsizeof(other.__dict__)]
    del one.first
    one.first = 3
    name = "".join(["inter", "ned"])
    return [sizes, list(vars(one)), list(vars(other)), sys.intern(name) is name]


@probe
def asyncio_loop() -> list[Any]:
    log: list[Any] = []

    async def worker(n: int) -> int:
        for i in range(2):
            log.append((n, i))
            await asyncio.sleep(0)
        return n

    async def main() -> list[int]:
        results = await asyncio.gather(worker(1), worker(2))
        task = asyncio.create_task(worker(3))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            log.append("cancelled")
        return results

    return [asyncio.run(main()), log]


@probe
def other_threads() -> list[Any]:
    log: list[Any] = []
    local = threading.local()
    local.value = 1

    def work(n: int) -> None:
        log.append((n, getattr(local, "value", None), sys.gettrace(), sys.getprofile()))

    for n in range(2):
        thread = threading.Thread(target=work, args=(n,))
        thread.start()
        thread.join()
    return log


@probe
def errors_that_nobody_sees() -> str:
    class Bad:
        def __del__(self) -> None:
            raise ValueError("in del")

    seen: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda args: seen.append(repr(args.exc_value))
    try:
        bad = Bad()
        del bad
    finally:
        sys.unraisablehook = before
    return seen[0]


@changed_by_any_hook
def live_objects() -> int:
    gc.collect()
    before = len(gc.get_objects())
    kept = [[], {}, (lambda: 1)]
    return len(gc.get_objects()) - before - len(kept)


@pytest.mark.parametrize("function", PROBES, ids=lambda function: function.__name__)
def test_probe(function: Probe) -> None:
    result_under(natively_recorded, function)  # caches that the first run fills
    recorded = result_under(natively_recorded, function)
    assert recorded == result_under(under_an_empty_hook, function)
    assert recorded == result_under(plainly, function)


@pytest.mark.parametrize("function", CHANGED_BY_ANY_HOOK, ids=lambda function: function.__name__)
def test_probe_that_any_hook_changes(function: Probe) -> None:
    result_under(natively_recorded, function)
    assert result_under(natively_recorded, function) == result_under(under_an_empty_hook, function)


def test_frames_keep_no_dict_of_locals() -> None:
    """On 3.11 and 3.12 a frame object whose ``f_locals`` was asked for holds a dict."""

    def sized() -> tuple[int, int]:
        value = [1]
        before = sum(type(r) is dict and "value" in r for r in gc.get_referrers(value))
        return before, sys.getrefcount(value)

    recorded = result_under(natively_recorded, sized)
    assert recorded == result_under(plainly, sized) and recorded[0] == 0


# ---- what was set before a recording is there after it


class Ends:
    """The ways in which a recorded function ends."""

    @staticmethod
    def normal() -> None:
        pass

    @staticmethod
    def exception() -> None:
        raise ValueError

    @staticmethod
    def interrupt() -> None:
        raise KeyboardInterrupt

    @staticmethod
    def exit() -> None:
        sys.exit(1)

    @staticmethod
    def limit() -> None:
        while True:
            pass


@pytest.mark.parametrize("end", ["normal", "exception", "interrupt", "exit", "limit"])
def test_trace_and_profile_functions_are_restored(end: str) -> None:
    def tracer(frame: Any, event: str, arg: Any) -> None: ...

    def profiler(frame: Any, event: str, arg: Any) -> None: ...

    before = sys.gettrace(), sys.getprofile(), threading.gettrace()
    sys.settrace(tracer)
    sys.setprofile(profiler)
    threading.settrace(tracer)
    try:
        try:
            cwm.Recorder(max_frames=100).record(getattr(Ends, end))
        except KeyboardInterrupt:
            assert end == "interrupt"
        now = sys.gettrace(), sys.getprofile(), threading.gettrace()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        threading.settrace(before[2])
    assert now == (tracer, profiler, tracer)


@pytest.mark.parametrize("end", ["normal", "exception", "interrupt", "exit", "limit"])
def test_a_block_restores_the_trace_function(end: str) -> None:
    def tracer(frame: Any, event: str, arg: Any) -> None: ...

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with cwm.Recorder(max_frames=100) as traces:
            getattr(Ends, end)()
    except (ValueError, KeyboardInterrupt, SystemExit, cwm.RecordingLimit):
        assert end != "limit"
    finally:
        now = sys.gettrace()
        sys.settrace(before)
    assert now is tracer and len(traces) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_monitoring_tools_keep_working() -> None:
    monitoring = sys.monitoring

    def run(caller: Callable[[Probe], Any]) -> list[str]:
        seen: list[str] = []
        monitoring.use_tool_id(3, "test")
        monitoring.register_callback(3, monitoring.events.PY_START, lambda code, _: seen.append(code.co_name))
        monitoring.register_callback(3, monitoring.events.LINE, lambda code, line: seen.append(f"line {line}"))

        def watched() -> int:
            a = 1
            return fails_deeply.__code__.co_argcount + a

        events = monitoring.events.PY_START | monitoring.events.LINE
        monitoring.set_local_events(3, watched.__code__, events)
        try:
            caller(watched)
            watched()
            assert monitoring.get_tool(3) == "test"
            assert monitoring.get_local_events(3, watched.__code__) == events
            assert monitoring.get_events(3) == 0
        finally:
            monitoring.set_local_events(3, watched.__code__, 0)
            monitoring.free_tool_id(3)
        return seen

    assert run(natively_recorded) == run(under_an_empty_hook) == run(plainly)
