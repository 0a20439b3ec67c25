import pytest
from reckon import ParseError, evaluate, parse, show, simplify
from reckon.tokens import tokenize


def test_tokens():
    assert tokenize("a1+ 2.5") == [("name", "a1"), ("+", "+"), ("number", "2.5")]


def test_tokens_refuse():
    with pytest.raises(ValueError, match="unexpected '\\$' at 2"):
        tokenize("1 $")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 ^ 3 ^ 2", 512),
        ("10 - 4 - 3", 3),
        ("-2 ^ 2", -4),
        ("12 / 4 / 3", 1.0),
        ("1.5 * 2", 3.0),
        ("max(1, 2 * 3, 4)", 6),
    ],
)
def test_evaluate(text, value):
    assert evaluate(parse(text)) == value


def test_variables():
    assert evaluate(parse("x * (y + 1)"), x=3, y=4) == 15
    with pytest.raises(KeyError):
        evaluate(parse("z"))


@pytest.mark.parametrize("text", ["", "1 +", "(1", "1 2", "max(1", "*", "1 $ 2"])
def test_errors(text):
    with pytest.raises(ParseError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("x + 0", "x"),
        ("0 + x", "x"),
        ("x * 1 - 0", "x"),
        ("0 * x", "0"),
        ("2 * 3 + x", "6 + x"),
        ("--x", "x"),
        ("x / 1", "x"),
        ("1 / 0", "1 / 0"),
        ("max(1 + 1, x)", "max(2, x)"),
    ],
)
def test_simplify(text, simple):
    assert show(simplify(parse(text))) == simple


@pytest.mark.parametrize("text", ["a - (b - c)", "(a + b) * c", "a ^ b ^ c", "(a ^ b) ^ c", "-(a + b)", "f(a, b + c)"])
def test_show(text):
    assert show(parse(text)) == text
