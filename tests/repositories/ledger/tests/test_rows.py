import pytest

from ledger.rows import cents, join, split


@pytest.mark.parametrize(
    "line, fields",
    [("a,b,,c", ["a", "b", "", "c"]), ('"a,b",c', ["a,b", "c"]), ('"say ""hi""",x', ['say "hi"', "x"]), ("", [""])],
)
def test_split(line, fields):
    assert split(line) == fields


def test_split_open_quote():
    with pytest.raises(ValueError):
        split('"abc')


def test_join():
    fields = ["plain", "with, comma", 'with "quotes"']
    assert join(fields) == 'plain,"with, comma","with ""quotes"""'
    assert split(join(fields)) == fields


def test_separator():
    assert split("a;b", separator=";") == ["a", "b"]


@pytest.mark.parametrize("text, amount", [("12.5", 1250), ("-3", -300), ("1,000.25", 100025), (".07", 7)])
def test_cents(text, amount):
    assert cents(text) == amount


def test_cents_refuses():
    with pytest.raises(ValueError):
        cents("1.234")
