"""The vocabulary of the command line: an option has one name, one form and one meaning in every verb."""

import re
from pathlib import Path

import pytest
from cwm_core.cli import build_parser, commands
from cwm_core.cli.options import FAILED, INTERRUPTED, OK, WRONG_USAGE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"
COMMANDS = dict(commands(build_parser()))
CORPORA = {f"cwm corpus {kind}" for kind in ("functions", "contests", "repository", "source")}
TASKS = ("traces", "output", "input", "termination", "recordings", "failures", "run", "swe")
EVALUATIONS = {f"cwm eval {task}" for task in TASKS}

# The commands that print a result. The results of the others are files, a page, or a conversation.
PRINT = {f"cwm {verb}" for verb in ("corpus describe", "pack", "inspect", "plan", "predict", "forage", "agent")}
PRINT |= CORPORA | EVALUATIONS
# The commands that choose something at random.
SAMPLE = {f"cwm {verb}" for verb in ("tokenize", "pack", "inspect", "debug", "forage", "agent")}
SAMPLE |= {"cwm corpus programs"} | CORPORA | EVALUATIONS
WRITE = {
    f"cwm {verb}"
    for verb in ("corpus describe", "corpus programs", "record", "import", "export", "tokenize", "predict")
}
WRITE |= {f"cwm {verb}" for verb in ("forage", "agent", "demo", "ablation")} | CORPORA | EVALUATIONS

# Names that an option must not have, and the one that the vocabulary has for it.
SYNONYMS = {
    "--out": "--output", "--output-dir": "--output", "--out-dir": "--output", "--dest": "--output",
    "--jobs": "--workers", "--num-workers": "--workers", "--parallel": "--workers",
    "--threads": "--workers", "--url": "--endpoint", "--api-base": "--endpoint", "--base-url": "--endpoint",
    "--server": "--endpoint", "--backend": "--sandbox", "--machine": "--sandbox", "--isolation": "--sandbox",
    "--batch": "--batch-size", "--silent": "--quiet", "--vocabulary": "--tokenizer", "--vocab": "--tokenizer",
    "--timeout": "--max-seconds", "--time-limit": "--max-seconds", "--seconds": "--max-seconds",
    "--turns": "--max-turns", "--licence": "--license", "--random-seed": "--seed", "--gpu-device": "--device",
    "--frames": "--max-frames", "--temp": "--temperature", "--format": "--json",
}  # fmt: skip


def options(parser):
    return {flag: action for action in parser._actions for flag in action.option_strings}


def having(flag):
    return {name for name, parser in COMMANDS.items() if flag in options(parser)}


def form(action):
    """Return everything about an option except its help: all its names, and the type of its value."""
    kind = "choice" if action.choices else getattr(action.type, "__name__", "text")
    kind = "count" if kind in ("positive", "not_negative") else kind
    return tuple(action.option_strings), action.nargs, kind if action.nargs != 0 else "flag"


def test_options_of_one_name_have_one_form():
    forms = {}
    for name, parser in COMMANDS.items():
        for flag, action in options(parser).items():
            forms.setdefault(flag, {}).setdefault(form(action), []).append(name)
    different = {flag: places for flag, places in forms.items() if len(places) > 1}
    assert set(different) == {"--sandbox"}, different  # agents and foraging also take machines by import path
    assert len(forms) > 80


@pytest.mark.parametrize(
    "flag", ["--seed", "--workers", "--batch-size", "--tokenizer", "--endpoint", "--device", "--max-seconds", "--limit"]
)
def test_values_have_one_name_in_the_help(flag):
    assert len({options(COMMANDS[name])[flag].metavar for name in having(flag)}) == 1


def test_no_option_has_another_name_for_one_of_the_vocabulary():
    for name, parser in COMMANDS.items():
        assert not {flag: SYNONYMS[flag] for flag in options(parser) if flag in SYNONYMS}, name
    known = {flag for parser in COMMANDS.values() for flag in options(parser)}
    assert set(SYNONYMS.values()) <= known


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("--quiet", set(COMMANDS)), ("--json", PRINT), ("--seed", SAMPLE), ("--output", WRITE)],
)
def test_commands_have_the_options_that_they_need(flag, expected):
    assert having(flag) == expected


def test_every_option_says_what_it_does():
    for name, parser in COMMANDS.items():
        assert parser.description, name
        for action in parser._actions:
            assert action.help, (name, action.dest)
            assert action.nargs == 0 or action.metavar or action.choices, (name, action.dest)


def test_the_page_lists_the_vocabulary():
    _, _, section = PAGE.read_text("utf-8").partition("## Options that mean the same in all verbs")
    listed = set(re.findall(r"`(--[a-z-]+)`", section.partition("\n## ")[0]))
    shared = {flag for flag in listed if len(having(flag)) > 1}
    assert listed == shared
    assert {"--output", "--sandbox", "--endpoint", "--batch-size", "--workers", "--seed", "--quiet", "--json"} <= listed


def test_exit_codes_are_documented():
    _, _, section = PAGE.read_text("utf-8").partition("## Exit codes")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", section.partition("\n## ")[0], re.MULTILINE)}
    assert table == {OK, FAILED, WRONG_USAGE, INTERRUPTED} == {0, 1, 2, 130}
    epilog = build_parser().epilog
    assert {int(code) for code in re.findall(r"\b(\d+) [a-z]", epilog.splitlines()[0])} == table
