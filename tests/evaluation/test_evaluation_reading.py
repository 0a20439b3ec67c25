"""Test reading values and arguments from answers of chat models, whatever surrounds them."""

import pytest
from cwm_core.evaluation.reading import answer_of_chat, arguments_of_answer, output_of_answer
from cwm_core.machines import literals_equal

OUTPUTS = [
    ("[ANSWER]```python\n[1, 2]\n```[/ANSWER]", "[1, 2]"),
    ("[ANSWER]\n```\n3\n```\n[/ANSWER]", "3"),
    ("[ANSWER]`3`[/ANSWER]", "3"),
    ("[ANSWER]``'a'``[/ANSWER]", "'a'"),
    ("[ANSWER]```3```[/ANSWER]", "3"),
    ("The output is:\n```python\n[1,\n 2]\n```", "[1,\n 2]"),
    ("```\n'x'\n```", "'x'"),
    ("[ANSWER]\n[1, 2]", "[1, 2]"),
    ("[ANSWER]3", "3"),
    ("3[/ANSWER]", "3"),
    ("The answer is 3[/ANSWER]", "3"),
    ("[ANSWER]assert f(3) == [1, 2], 'no'[/ANSWER]", "[1, 2]"),
    ("assert f(3) == [1, 2], 'no'", "[1, 2]"),
    ("[ANSWER]'</think>'[/ANSWER]", "'</think>'"),
    ("**3**", "3"),
    ("**Output:** `3`", "3"),
    ("Output: 3.", "3"),
    ("The output is [1, 2].", "[1, 2]"),
    ("[ANSWER]3.[/ANSWER]", "3"),
    ("5  # the sum", "5"),
    ("[ANSWER]{'a': 1}  # a dict[/ANSWER]", "{'a': 1}"),
    ("[ANSWER]-5[/ANSWER]", "-5"),
    ("The output is `-5`.", "-5"),
    ("**-3.5**", "-3.5"),
    ("The result is:\n[\n  1,\n  2\n]", "[\n  1,\n  2\n]"),
    ("```python\ndef f(x):\n    return x\n```\nSo the output is\n```\n7\n```", "7"),
    ("```python\ndef f(x):\n    return x\n```\nThe output is `7`", "7"),
    ("```\n3\n```\nLet me know!", "3"),
    ("[ANSWER][ANSWER]3[/ANSWER][/ANSWER]", "3"),
    ("[ANSWER]'[ANSWER]'[/ANSWER]", "'[ANSWER]'"),
    ("[ANSWER]'[/ANSWER]'[/ANSWER]", "'[/ANSWER]'"),
    ("[ANSWER]3[ANSWER]", "3"),
    ("[ANSWER]3[/ANSWER] I used [ANSWER] marks.", "3"),
    ("f(3) == 5", "5"),
    ("[ANSWER]f(3) == 5[/ANSWER]", "5"),
    ("[ANSWER]Output: 'abc'[/ANSWER]", "'abc'"),
    ("Answer: {'a': 1, 'b': [1, 2]}", "{'a': 1, 'b': [1, 2]}"),
    ("`f(3)` returns 5.", "5"),
    ("It returns `3` when n is 4", "3"),
    ("**Answer:** '**a**'", "'**a**'"),
    ("[ANSWER]f'abc'[/ANSWER]", "f'abc'"),
    ("[ANSWER]r'\\d'[/ANSWER]", "r'\\d'"),
    ("```python\nassert f(3) == (1, 2)\n```", "(1, 2)"),
    ("```python\nresult = [1]\n```", "[1]"),
    ("```python\nprint(f(3))  # 5\n```", "5"),
    ("```python\nprint(f(3))\n# Output: 5\n```", "5"),
    (">>> f(3)\n5", "5"),
    ("**[ANSWER]**3**[/ANSWER]**", "3"),
    ("[ANSWER]\n'''a\nb'''\n[/ANSWER]", "'''a\nb'''"),
    ("[ANSWER]True[/ANSWER]", "True"),
    ("True.", "True"),
    ("[ANSWER]assert f(3) == -5[/ANSWER]", "-5"),
    ("[ANSWER]''[/ANSWER]", "''"),
    ("[ANSWER]set()[/ANSWER]", "set()"),
    ("[ANSWER]Counter({'a': 1})[/ANSWER]", "Counter({'a': 1})"),
    ("~~~\n3\n~~~", "3"),
    ("```python\n3", "3"),
    ("[ANSWER]\n```python\n3\n[/ANSWER]", "3"),
    ("[ANSWER]<object at 0x1>[/ANSWER]", "<object at 0x1>"),
    ("Hence the function returns 'a is b'.", "'a is b'"),
    ("- Output: 3", "3"),
    ("1. The result is 3", "3"),
    ("[ANSWER]assert [1] == f(3)[/ANSWER]", "[1]"),
    ("[ANSWER]1, 2[/ANSWER]", "1, 2"),
    ('The answer is "it\'s".', '"it\'s"'),
    ("f(3) -> 5", "5"),
    ("assert f(\n  3\n) == [\n 1,\n]", "[\n 1,\n]"),
    ("[ANSWER]5;[/ANSWER]", "5"),
    ("[ANSWER]assert f(3) == [1, 2] # c[/ANSWER]", "[1, 2]"),
    ("[ANSWER]output = 3[/ANSWER]", "3"),
    ("[ANSWER] 'a\\n' [/ANSWER]", "'a\\n'"),
    ("```python\n# Output\n[1]\n```", "[1]"),
    ("[ANSWER]1.5.[/ANSWER]", "1.5"),
    ("[ANSWER]nan[/ANSWER]", "nan"),
    ("[ANSWER]None[/ANSWER]", "None"),
    ("`3`, because 1 + 2.", "3"),
    ("Final answer: `[1]`", "[1]"),
    ("The value `x` is `3`", "3"),
    ("[ANSWER] [1, 2]\n\nExplanation: f sorts, and x is 4.", "[1, 2]"),
    ("[ANSWER]\n`3`\nBecause 1 + 2 = 3, f returns x.", "3"),
    ("[ANSWER]\nassert f(1) == {\n 'a': 1}\n \nHere 'a' is 2.\n[/ANSWER]", "{\n 'a': 1}"),
    ("[ANSWER]\nn = 3\nso f returns 5[/ANSWER]", "5"),
    ("[answer]3[/answer]", "3"),
    ("result = f(7)\nassert result == 3", "3"),
    ("assert 3 == result", "3"),
    ("result == [1]", "[1]"),
    ("expected = [1, 2]\nassert f(7) == expected", "[1, 2]"),
    ("```python\nresult = f(7)\nassert result == 3, 'no'\n```", "3"),
    ("result = [1, 2]\nresult", "[1, 2]"),
    ("x = 2\nprint(f(x))  # 3", "3"),
    ("x = 1\ny = 2", "2"),
    ("assert f(7) is None", "None"),
    ("<answer>3</answer>", "3"),
    ("So: <ANSWER>\n```python\n[1]\n```\n</ANSWER>", "[1]"),
    ("The output is <answer>'<answer>'</answer>", "'<answer>'"),
    ("3</answer>", "3"),
    (r"\boxed{3}", "3"),
    (r"The answer is $\boxed{3}$.", "3"),
    ("\\[\n\\boxed{[1, 2]}\n\\]\nI hope this helps.", "[1, 2]"),
    (r"\boxed{\texttt{'a'}}", "'a'"),
    (r"\boxed{\text{'a\_b'}}", "'a_b'"),
    (r"\boxed{\{'a': \{1, 2\}\}}", "{'a': {1, 2}}"),
    (r"\boxed{{'a': {}}}", "{'a': {}}"),
    (r"\boxed{'a}b'}", "'a}b'"),
    (r"First \boxed{1}, then \boxed{2}.", "2"),
    (r"[ANSWER]\boxed{True}[/ANSWER]", "True"),
    (r"'\\boxed{3}'", r"'\\boxed{3}'"),
    ("$3$", "3"),
    ("The result is $$[1, 2]$$.", "[1, 2]"),
    (r"The output is \(5\).", "5"),
    ("'$3$'", "'$3$'"),
    ("“abc”", '"abc"'),
    ("The output is ‘abc’.", "'abc'"),
    ("[ANSWER][‘a’, “it’s”][/ANSWER]", """['a', "it's"]"""),
    ("'“a”'", "'“a”'"),
    ("The output is −5.", "-5"),
    ("'−5'", "'−5'"),
    ("f(3) evaluates to [1, 2]", "[1, 2]"),
    ("[ANSWER]The call yields [1, 2].[/ANSWER]", "[1, 2]"),
    ("So f(3) results in 5", "5"),
    ("[ANSWER] [1, 2] [\\ANSWER]", "[1, 2]"),
    ("<answer>3<\\answer>", "3"),
    ("[ANSWER]self.assertEqual(f(3), [1, 2])[/ANSWER]", "[1, 2]"),
    ("```python\nself.assertEqual('a', f(3), 'no')\n```", "'a'"),
]

AMBIGUOUS = [
    "assert f(7) != 3",
    "assert f(7) > 3",
    "assert f(7) in [3]",
    "assert f(7)",
    "x = 3\nx += 1\nx",
    "if True:\n    x = 3\nx",
    "It costs $3 or $4",
    "`$3`",
    r"\boxed{3",
    "$3$ apples",
]

REASONING = [
    ("thought </think>\n[ANSWER]'a</think>b'[/ANSWER]", True, "'a</think>b'"),
    ("x = '</think>'\n</think>\n[ANSWER]\"</think>\"[/ANSWER]", True, '"</think>"'),
    ("don't do it</think>it's [ANSWER]3[/ANSWER]", True, "3"),
    ("<think>\nhm [ANSWER]2[/ANSWER]", False, None),
    ("<think>a</think><think>b</think>4", True, "4"),
]

ARGUMENTS = [
    ("[ANSWER]f([1, 2], 3)[/ANSWER]", "[1, 2], 3"),
    ("```python\nf([1], n=2)\n```", "[1], n=2"),
    ("[ANSWER]`f('a')`[/ANSWER]", "'a'"),
    ("assert f(3) == [1, 2], 'no'", "3"),
    ("[ANSWER]'a', 1[/ANSWER]", "'a', 1"),
    ("[ANSWER]x=3, y=4[/ANSWER]", "x=3, y=4"),
    ("**f(-1)**", "-1"),
    ("The call is `f(3)`.", "3"),
    ("f(3)  # gives 5", "3"),
    ("[ANSWER]f(3).[/ANSWER]", "3"),
    ("[ANSWER]assert [1] == f(3)[/ANSWER]", "3"),
    ("[ANSWER]b=3[/ANSWER]", "b=3"),
    ("[ANSWER]f()[/ANSWER]", ""),
    ("Input: f(b'x')", "b'x'"),
    ("[ANSWER]f(float('nan'))[/ANSWER]", "float('nan')"),
    ("[ANSWER]f(lambda x: x)[/ANSWER]", "lambda x: x"),
    ("input = [1]", "[1]"),
    ("```python\ninput_list = 'a'\n```", "'a'"),
    ("args = 1, 2", "1, 2"),
    ("x = [1]", "x = [1]"),
    ("x = [1]\ny = 2", "x=[1], y=2"),
    ("```python\nnums = [1]\nk = 2\nf(nums, k)\n```", "[1], 2"),
    ("nums = [1]\nassert f(nums) == 3", "[1]"),
    ("result = f([1])\nassert result == 3", "[1]"),
    ("print(f([1]))", "[1]"),
    (r"\boxed{f([1])}", "[1]"),
    ("<answer>f('a')</answer>", "'a'"),
    ("f(“a”)", '"a"'),
]


@pytest.mark.parametrize(("text", "value"), OUTPUTS)
def test_the_value_that_a_chat_states(text, value):
    assert output_of_answer(answer_of_chat(text, reasoning=False)) == value


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_ambiguous_answers_state_no_value(text):
    answer = answer_of_chat(text, reasoning=False)
    assert not any(literals_equal(value, output_of_answer(answer)) for value in ("3", "4", "[3]", "True"))


@pytest.mark.parametrize(("text", "reasoning", "value"), REASONING)
def test_the_value_after_reasoning(text, reasoning, value):
    answer = answer_of_chat(text, reasoning=reasoning)
    assert (answer and output_of_answer(answer)) == value


@pytest.mark.parametrize(("text", "arguments"), ARGUMENTS)
def test_the_arguments_that_a_chat_states(text, arguments):
    assert arguments_of_answer(answer_of_chat(text, reasoning=False)) == arguments


@pytest.mark.parametrize(
    "piece",
    [
        *("(", "a\n", "[ANSWER]", "'", "`", "` ", "```\n", "[1,\n", "is ", "**", "'a' ", "x = 1\n", "x = 1; x, ", "x"),
        *("$", "$1$", "“", "“a” ", "\\boxed{", "\\boxed{\\text{", "<answer>", "x = [x, x]\n"),
    ],
)
def test_long_answers_are_read_fast(piece):
    answer_of_chat(piece * 20_000, reasoning=False)  # a quadratic reader takes longer than a test may
