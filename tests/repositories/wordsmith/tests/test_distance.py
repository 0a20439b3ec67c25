import pytest

from wordsmith.distance import closest, common_prefix, levenshtein


@pytest.mark.parametrize(
    ("a", "b", "expected"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0)]
)
def test_levenshtein(a, b, expected):
    assert levenshtein(a, b) == expected


def test_common_prefix():
    assert common_prefix("interview", "internal") == "inter"
    assert common_prefix("a", "b") == ""


def test_closest():
    assert closest("colr", ["column", "color", "cold"]) == "color"
    assert closest("zzzzzz", ["a"]) is None
