"""CPython's own tests under the recorder: they end as they do unrecorded, and their frames are those of the oracle.

A few of the modules by default, all of them under ``HYPOTHESIS_PROFILE=long``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAST = ["test_genexps", "test_listcomps", "test_raise", "test_scope", "test_with", "test_yield_from"]
LONG = [
    *("test_abc", "test_asyncgen", "test_augassign", "test_baseexception", "test_binop", "test_bool", "test_builtin"),
    *("test_call", "test_class", "test_code", "test_collections", "test_compare", "test_complex", "test_contains"),
    *("test_context", "test_contextlib", "test_contextlib_async", "test_copy", "test_coroutines", "test_dataclasses"),
    *("test_decorators", "test_defaultdict", "test_deque", "test_descr", "test_dict", "test_dictcomps"),
    *("test_dictviews", "test_dynamic", "test_enum", "test_enumerate", "test_except_star", "test_exception_group"),
    *("test_exceptions", "test_format", "test_fractions", "test_fstring", "test_funcattrs", "test_functools"),
    *("test_generator_stop", "test_generators", "test_global", "test_grammar", "test_graphlib", "test_int"),
    *("test_isinstance", "test_iter", "test_itertools", "test_keywordonlyarg", "test_list", "test_metaclass"),
    *("test_named_expressions", "test_opcodes", "test_operator", "test_ordered_dict", "test_patma"),
    *("test_positional_only_arg", "test_property", "test_range", "test_reprlib", "test_richcmp", "test_set"),
    *("test_setcomps", "test_sort", "test_string", "test_subclassinit", "test_super", "test_textwrap", "test_tuple"),
    *("test_type_aliases", "test_type_params", "test_types", "test_typing", "test_unpack", "test_userdict"),
    *("test_userlist", "test_weakset"),
]
MODULES = sorted(FAST + LONG) if os.environ.get("HYPOTHESIS_PROFILE") == "long" else FAST

# Tests that end otherwise when they are recorded, though not under an empty hook.
SHOWN = "the test notices what a __repr__ asks of its methods, and a recording shows values by it"
SIGNAL = "the __repr__ of a value handles a pending signal before the program does"
SLOW = "the test steps through a value that is large or deep, which is shown at each step: the time is over"
TIMED = "the test compares times, which another load changes"
CHANGED_BY_THE_RECORDER = {
    "test_class.ClassTests.testBinaryOps": SHOWN,
    "test_class.ClassTests.testGetSetAndDel": SHOWN,
    "test_class.ClassTests.testInit": SHOWN,
    "test_class.ClassTests.testListAndDictOps": SHOWN,
    "test_class.ClassTests.testMisc": SHOWN,
    "test_class.ClassTests.testUnaryOps": SHOWN,
    "test_dataclasses.TestDescriptors.test_getting_field_calls_get": SHOWN,
    "test_deque.TestBasic.test_big_queue_popleft": SLOW,
    "test_deque.TestBasic.test_big_queue_popright": SLOW,
    "test_deque.TestBasic.test_big_stack_left": SLOW,
    "test_deque.TestBasic.test_big_stack_right": SLOW,
    "test_deque.TestBasic.test_long_steadystate_queue_popleft": SLOW,
    "test_deque.TestBasic.test_long_steadystate_queue_popright": SLOW,
    "test_descr.ClassPropertiesAndMethods.test_module_subclasses": SHOWN,
    "test_functools.TestPartialC.test_keystr_replaces_value": SHOWN,
    "test_functools.TestPartialCSubclass.test_keystr_replaces_value": SHOWN,
    "test_ordered_dict.PySimpleLRUCacheTests.test_add_after_full": SHOWN,
    "test_ordered_dict.PySimpleLRUCacheTests.test_change_order_on_get": SHOWN,
    "test_ordered_dict.PySimpleLRUCacheTests.test_pop": SHOWN,
    "test_ordered_dict.PySimpleLRUCacheTests.test_popitem": SHOWN,
    "test_generators.SignalAndYieldFromTest.test_raise_and_yield_from": SIGNAL,
    "test_collections.TestNamedTuple.test_odd_sizes": SLOW,
    "test_dictviews.DictSetTest.test_deeply_nested_repr": SLOW,
    "test_exception_group.DeepRecursionInSplitAndSubgroup.test_deep_split": SLOW,
    "test_exception_group.DeepRecursionInSplitAndSubgroup.test_deep_subgroup": SLOW,
    "test_int.IntStrDigitLimitsTests.test_denial_of_service_prevented_int_to_str": TIMED,
    "test_int.IntSubclassStrDigitLimitsTests.test_denial_of_service_prevented_int_to_str": TIMED,
    "test_ordered_dict.CSimpleLRUCacheTests.test_add_after_full": SHOWN,
    "test_ordered_dict.CSimpleLRUCacheTests.test_change_order_on_get": SHOWN,
    "test_ordered_dict.CSimpleLRUCacheTests.test_pop": SHOWN,
    "test_ordered_dict.CSimpleLRUCacheTests.test_popitem": SHOWN,
}

# Where the oracle disturbs a test in the same way each time, so that two runs of it agree on what the program does not
# do by itself.
TRACES = "the test sets a trace function and puts back the earlier one"
DEEP = "the stack is too deep to call a Python tracer: its frames end there"
KEPT = "a Python tracer keeps values alive in the frame's dict of locals, and counts as a reference to them"
ORDER = "a Python tracer makes the dict that locals() gives, so that its order is another"
BUILTINS = "the test replaces the builtin `len`, which linecache uses"
# Runs of the oracle agree on these by chance only.
PLACES = "a set lies in the order of its elements' addresses, which no two runs share"
# On one code object the recorder does too: test_recorder_lines.py.
UNWRITTEN = "CPython 3.11 takes the lines of code past the end of its line table from memory that nobody wrote"
DISTURBED_BY_THE_ORACLE = {
    "test_scope.ScopeTests.testInteractionWithTraceFunc": TRACES,
    "test_scope.ScopeTests.testLocalsClass_WithTrace": TRACES,
    "test_functools.TestPartialPy.test_recursive_pickle": DEEP,
    "test_functools.TestPartialPySubclass.test_recursive_pickle": DEEP,
    "test_typing.ForwardRefTests.test_forward_recursion_actually": DEEP,
    "test_asyncgen.AsyncGenAsyncioTest.test_anext_return_generator": KEPT,
    "test_asyncgen.AsyncGenAsyncioTest.test_async_gen_aclose_compatible_with_get_stack": PLACES,
    "test_class.ClassTests.testDel": KEPT,
    "test_code.CoExtra.test_free_called": KEPT,
    "test_code.CoExtra.test_get_set": KEPT,
    "test_code.CodeTest.test_closure_injection": UNWRITTEN,
    "test_code.CodeWeakRefTest.test_basic": KEPT,
    "test_collections.TestOneTrickPonyABCs.test_Awaitable": KEPT,
    "test_collections.TestOneTrickPonyABCs.test_Coroutine": KEPT,
    "test_coroutines.CoroutineTest.test_for_2": KEPT,
    "test_coroutines.CoroutineTest.test_for_3": KEPT,
    "test_coroutines.CoroutineTest.test_for_4": KEPT,
    "test_coroutines.CoroutineTest.test_for_6": KEPT,
    "test_coroutines.OriginTrackingTest.test_unawaited_warning_when_module_broken": KEPT,
    "test_descr.ClassPropertiesAndMethods.test_delete_hook": KEPT,
    "test_descr.ClassPropertiesAndMethods.test_set_class": KEPT,
    "test_descr.ClassPropertiesAndMethods.test_subtype_resurrection": KEPT,
    "test_descr.ClassPropertiesAndMethods.test_weakref_segfault": KEPT,
    "test_dynamic.RebindBuiltinsTests.test_modify_builtins": BUILTINS,
    "test_dynamic.RebindBuiltinsTests.test_modify_builtins_from_leaf_function": BUILTINS,
    "test_dynamic.RebindBuiltinsTests.test_modify_builtins_while_generator_active": BUILTINS,
    "test_enumerate.TestReversed.test_bug1229429": KEPT,
    "test_generators.FinalizationTest.test_frame_resurrect": KEPT,
    "test_generators.GeneratorTest.test_handle_frame_object_in_creation": KEPT,
    "test_generators.GeneratorTest.test_name": KEPT,
    "test_iter.TestCase.test_ref_counting_behavior": KEPT,
    "test_positional_only_arg.PositionalOnlyTestCase.test_generator": KEPT,
    "test_raise.TestContext.test_3118": KEPT,
    "test_raise.TestContext.test_3611": KEPT,
    "test_scope.ScopeTests.testCellLeak": KEPT,
    "test_scope.ScopeTests.testLocalsFunction": ORDER,
    "test_yield_from.TestPEP380Operation.test_broken_getattr_handling": KEPT,
    "test_yield_from.TestPEP380Operation.test_catching_exception_from_subgen_and_returning": KEPT,
}


def run_suite(module: str, mode: str, folder: Path) -> dict[str, str]:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(f"test.{module}") is None:
        pytest.skip(f"this interpreter has no test.{module}")
    script = Path(__file__).parents[1].joinpath("cpython_suite.py")
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, str(script), module, mode],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def differing(some: dict[str, str], others: dict[str, str]) -> set[str]:
    return {name.removeprefix("test.") for name in {*some, *others} if some.get(name) != others.get(name)}


@pytest.mark.parametrize("module", MODULES)
def test_tests_end_as_unrecorded(module: str, tmp_path: Path) -> None:
    run = functools.partial(run_suite, module, folder=tmp_path)
    plain, recorded = run("plain"), run("recorded")
    assert "passed" in plain.values()
    changed = differing(plain, recorded)
    if changed - set(CHANGED_BY_THE_RECORDER):
        assert differing(run("empty"), recorded) <= set(CHANGED_BY_THE_RECORDER)


@pytest.mark.parametrize("module", MODULES)
def test_frames_of_tests_equal_the_oracle(module: str, tmp_path: Path) -> None:
    verdicts = run_suite(module, "verdicts", tmp_path)
    assert "agree" in verdicts.values()
    differ = {name.removeprefix("test."): verdict for name, verdict in verdicts.items() if verdict.startswith("differ")}
    on_this = (TRACES, DEEP, PLACES)
    # From 3.13 on, a tracer reads the variables where they lie.
    if sys.version_info < (3, 13):
        on_this = (*on_this, KEPT, ORDER, BUILTINS)
    if sys.version_info < (3, 12):
        on_this = (*on_this, UNWRITTEN)
    excused = {name for name, reason in DISTURBED_BY_THE_ORACLE.items() if reason in on_this}
    assert {name: differ[name] for name in differ if name not in excused} == {}
