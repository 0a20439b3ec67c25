from wordsmith.layout import justify, table, wrap


def test_wrap():
    assert wrap("the quick brown fox jumps", 10) == ["the quick", "brown fox", "jumps"]


def test_wrap_exact_width():
    assert wrap("ab cd ef", 5) == ["ab cd", "ef"]


def test_wrap_long_word():
    assert wrap("a incomprehensible b", 5) == ["a", "incomprehensible", "b"]


def test_wrap_empty():
    assert wrap("  ", 5) == []


def test_justify():
    assert justify(["a", "b", "c"], 8) == "a   b  c"
    assert justify(["abc"], 5) == "abc  "


def test_table():
    assert table([["name", "n"], ["x", "10"]]) == "name | n\nx    | 10"
