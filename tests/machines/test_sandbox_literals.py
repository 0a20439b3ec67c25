"""Literals against `repr`, `==` and hostile text."""

import math

import pytest
from cwm_core.machines import evaluate_literal, literals_equal
from hypothesis import given
from hypothesis import strategies as st

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(
    allow_nan=False, allow_infinity=False
)  # fmt: skip
keys = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(keys, min_size=1, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def strictly_equal(a, b):
    """Compare by the slow definition: equal types, and pairs found one by one."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(strictly_equal, a, b))
    if isinstance(a, dict):
        a, b = list(a.items()), list(b.items())
    elif isinstance(a, set):
        a, b = list(a), list(b)
    else:
        return a == b
    for item in a:
        for at, other in enumerate(b):
            if strictly_equal(item, other):
                del b[at]
                break
        else:
            return False
    return not b


@given(values)
def test_a_literal_equals_itself_and_reads_back(value):
    assert literals_equal(repr(value), f"  {value!r}\n")
    assert strictly_equal(evaluate_literal(repr(value)), value)


@given(values, values)
def test_equality_is_the_slow_definition(a, b):
    assert literals_equal(repr(a), repr(b)) == strictly_equal(a, b)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("1", "True", False),
        ("1", "1.0", False),
        ("[1, (2,)]", "[1,(2,)]", True),
        ("(1, 2)", "[1, 2]", False),
        ("{1: 2, 3: 4}", "{3: 4, 1: 2}", True),
        ("{True}", "{1}", False),
        ("[nan, inf, -inf]", "[nan,inf,-inf]", True),
        ("nan", "inf", False),
        ("[inf]", "[float('inf')]", True),
        ("-inf", "float('-inf')", True),
        ("nan", "float('nan')", True),
        ("1.5", "float('1.5')", True),
        ("'inf'", "float('inf')", False),
        ("nan", "float('x')", False),
        ("0.0", "-0.0", True),
        ("'a' 'b'", '"ab"', True),
        ("<object at 1>", "<object at 1>", True),
        ("<object at 1>", "<object at 2>", False),
        ("f(1)", "f( 1)", False),
        ("1", "one", False),
        ("set()", "set( )", True),
        ("__import__('os')", "__import__('os') ", True),
    ],
)
def test_examples(a, b, equal):
    assert literals_equal(a, b) is equal
    assert literals_equal(b, a) is equal


@pytest.mark.parametrize(
    "text",
    [
        "", "1 +", "x", "f()", "__import__('os').system('true')", "[i for i in 'a']", "f'{1}'", "2 ** 9", "{[]}",
        "{}[0]", "1\0", "\ud800", "9" * 5000, "[" * 150 + "]" * 150,
        "(" * 5000, "-" * 100_000 + "1", "1" + "+1j" * 50_000,
        "[" * 120 + "]" * 120, "'" + "a" * 1_000_001 + "'", "lambda: 1", "1; 2", "a.b" * 10_000, "{" * 90_000,
    ],
    ids=lambda text: f"{text[:12]!a}-{len(text)}",
)  # fmt: skip
def test_other_text_than_literals_is_an_error_and_compares_as_text(text):
    with pytest.raises(ValueError, match="literal"):
        evaluate_literal(text)
    assert literals_equal(text, text)
    assert not literals_equal(text, "1")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("frozenset({1, 2})", "frozenset({2, 1})"),
        ("frozenset()", "frozenset([])"),
        ("set()", "set([])"),
        ("Counter({'a': 2, 'b': 1})", 'collections.Counter({"b": 1, "a": 2})'),
        ("Counter()", "Counter({})"),
        ("deque([1, 2], maxlen=3)", "deque([1,2],maxlen=3)"),
        ("OrderedDict([('a', 1), ('b', 2)])", "OrderedDict({'a': 1, 'b': 2})"),
        ("defaultdict(<class 'int'>, {'a': 1, 'b': 2})", "defaultdict(int, {'b': 2, 'a': 1})"),
        ("dict_keys(['a', 'b'])", 'dict_keys(["a","b"])'),
        ("mappingproxy({'a': 1, 'b': 2})", "mappingproxy({'b': 2, 'a': 1})"),
        ("datetime.date(2020, 1, 2)", "datetime.date(2020,1,2)"),
        ("[Decimal('1.5'), Fraction(1, 2)]", '[Decimal("1.5"),Fraction(1,2)]'),
        ("Point(x={1, 2}, y=-1)", "Point(x={2, 1}, y=-1)"),
        ("{frozenset({1, 2}): deque([])}", "{frozenset({2,1}): deque()}"),
        ("[<Color.RED: 1>, {2, 1}]", "[<Color.RED: 1>, {1, 2}]"),
        ("['<a>', \"it's\"]", "[\"<a>\", 'it\\'s']"),
        (r"'\\d'", r"r'\d'"),
        ("'a{3'", "f'a{{{3}'"),
    ],
)
def test_values_that_repr_writes_as_calls_are_equal(a, b):
    assert literals_equal(a, b) and literals_equal(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("frozenset({1})", "{1}"),
        ("frozenset({1})", "frozenset({True})"),
        ("Counter({'a': 1})", "{'a': 1}"),
        ("Counter({'a': 1})", "Counter({'a': 1.0})"),
        ("deque([1, 2])", "deque([2, 1])"),
        ("deque([1])", "deque([1], maxlen=1)"),
        ("OrderedDict([('a', 1), ('b', 2)])", "OrderedDict([('b', 2), ('a', 1)])"),
        ("defaultdict(<class 'int'>, {})", "defaultdict(<class 'list'>, {})"),
        ("set()", "{}"),
        ("[<A>]", "[<B>]"),
        ("'<class >'", "<class >"),
    ],
)
def test_values_that_repr_writes_as_calls_differ(a, b):
    assert not literals_equal(a, b) and not literals_equal(b, a)


@pytest.mark.parametrize(
    "text",
    ["f(*a)", "Counter(*a)", "OrderedDict(1)", "deque(maxlen=1)", "defaultdict()", "{**{}}", "f'{x}'", "lambda: 0"],
)
def test_other_calls_are_compared_as_text(text):
    assert literals_equal(text, f" {text}\n")
    assert not literals_equal(text, "1")
