"""Mutations of real modules, patches of them, and tasks made of small repositories."""

import ast
import json
import os
import pickle
import subprocess
import sys
import textwrap
import tokenize
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.environments import Task, judge, make_diff, read_issues, read_tasks
from cwm_core.environments.foraging.mixture import MIX, interleaved, mixed, quotas
from cwm_core.environments.foraging.prompts import write_prompt
from cwm_core.environments.protection import is_test, protected_paths
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from hypothesis import given
from hypothesis import strategies as st
from small_repositories import NAMES, TEST_COMMAND, copy_repository

pytest.importorskip("libcst")
from cwm_core.environments.foraging import KINDS, Repository, find_mutations, forage, survey
from cwm_core.environments.foraging.repository import read_modules

KIND = "process" if machines.bubblewrap_refusal() else "bubblewrap"
BACKEND = SandboxBackend(KIND, readable=installed_packages())

STDLIB = Path(os.__file__).parent
MODULES = [
    path
    for name in ("bisect", "copy", "fnmatch", "graphlib", "heapq", "json/encoder",
                 "keyword", "shlex", "string", "textwrap", "this", "wsgiref/util")
    if (path := STDLIB / f"{name}.py").exists()
]  # fmt: skip
FOUND: dict[Path, list] = {}


def mutations_of(path):
    if path not in FOUND:
        FOUND[path] = find_mutations(path.read_bytes())
    return FOUND[path]


@st.composite
def real_mutations(draw, kinds=KINDS):
    """A module's path and one of its mutations, by path and number so that failures are short to read."""
    path = draw(st.sampled_from([p for p in MODULES if any(m.kind in kinds for m in mutations_of(p))]))
    found = [mutation for mutation in mutations_of(path) if mutation.kind in kinds]
    return path, draw(st.sampled_from(found))


# ---- what mutations are, by Python's own parser and tokenizer


def differences(a, b, where=()):
    """Smallest places in which two syntax trees differ: (path, node of a, node of b); lists of other lengths whole."""
    if type(a) is not type(b):
        return [(where, a, b)]
    if isinstance(a, ast.AST):
        names = [*a._fields]
        return [x for name in names for x in differences(getattr(a, name), getattr(b, name), (*where, name))]
    if isinstance(a, list):
        if len(a) != len(b):
            return [(where, a, b)]
        return [x for i, (x_, y_) in enumerate(zip(a, b, strict=True)) for x in differences(x_, y_, (*where, i))]
    return [] if a == b else [(where, a, b)]


def tokens(source):
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return [t.string for t in tokenize.tokenize(BytesIO(source).readline) if t.type not in skipped]


def dump(node):
    return ast.dump(node) if isinstance(node, ast.AST) else repr(node)


@given(real_mutations())
def test_mutations_parse_and_leave_all_else_alone(case):
    source, mutation = case[0].read_bytes(), case[1]
    broken = mutation.apply(source)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source))
    start, end = mutation.edits[0][0], mutation.edits[-1][1]
    assert broken[:start] == source[:start]
    assert broken.endswith(source[end:])
    assert 1 + source[:start].count(b"\n") == mutation.line
    for (_, first_end, _), (second_start, _, _) in zip(mutation.edits, mutation.edits[1:], strict=False):
        assert first_end <= second_start


@given(real_mutations(["remove-function", "delete-statement"]))
def test_removals_remove_one_node(case):
    source, mutation = case[0].read_bytes(), case[1]
    found = differences(ast.parse(source), ast.parse(mutation.apply(source)))
    removed, put = found[0][1:]
    if isinstance(removed, list):
        assert len(found) == 1
        at = next(i for i, x in enumerate(removed) if i == len(put) or dump(x) != dump(put[i]))
        gone = removed[at]
        assert [dump(x) for x in removed[:at] + removed[at + 1 :]] == [dump(x) for x in put]
    else:
        assert isinstance(put, ast.Pass)
        gone = removed
    is_function = isinstance(gone, (ast.FunctionDef, ast.AsyncFunctionDef))
    assert is_function == (mutation.kind == "remove-function")
    # Line by line: what stays are whole lines, and what went held this node.
    lines = source.splitlines(keepends=True)
    start, end, text = mutation.edits[0]
    cut = source[start:end].splitlines(keepends=True)
    first = source[:start].count(b"\n")
    assert lines[first : first + len(cut)] == cut
    top = min([gone.lineno, *(d.lineno for d in getattr(gone, "decorator_list", []))])
    assert first < top
    assert gone.end_lineno <= first + len(cut)
    assert all(not line.strip() or line.strip().startswith(b"#") for line in lines[first : top - 1])
    assert text.strip() in (b"", b"pass")


@given(real_mutations(["swap-arguments"]))
def test_swapped_arguments_change_places(case):
    source, mutation = case[0].read_bytes(), case[1]
    before, after = ast.parse(source), ast.parse(mutation.apply(source))
    calls = [
        [(dump(x), dump(y)) for x, y in zip(a.args, b.args, strict=True)]
        for a, b in zip(ast.walk(before), ast.walk(after), strict=False)
        if isinstance(a, ast.Call) and isinstance(b, ast.Call) and dump(a) != dump(b) and len(a.args) == len(b.args)
    ]
    # The innermost call that differs is the first to have two neighbors exchanged.
    exchanged = [
        pairs
        for pairs in calls
        for i in range(len(pairs) - 1)
        if pairs[i] == pairs[i + 1][::-1]
        and pairs[i][0] != pairs[i][1]
        and all(x == y for x, y in pairs[:i] + pairs[i + 2 :])
    ]
    assert exchanged
    assert Counter(tokens(source)) == Counter(tokens(mutation.apply(source)))


@given(real_mutations(["swap-variables"]))
def test_swapped_variables_are_two_names(case):
    source, mutation = case[0].read_bytes(), case[1]
    before, after = ast.parse(source), ast.parse(mutation.apply(source))
    found = [x for x in differences(before, after) if x[0][-1] == "id"]
    if sys.version_info >= (3, 12) or not any(isinstance(x, ast.JoinedStr) for x in ast.walk(before)):
        assert len(found) == len(differences(before, after)) == 2
        assert found[0][1:] == found[1][1:][::-1]
    (a, b, _), (c, d, _) = mutation.edits
    assert source[a:b].decode().isidentifier() and source[c:d].decode().isidentifier()
    assert source[a:b] != source[c:d]


@given(real_mutations(["flip-operator"]))
def test_flipped_operators_are_one_token(case):
    source, mutation = case[0].read_bytes(), case[1]
    before, after = tokens(source), tokens(mutation.apply(source))
    ((start, end, text),) = mutation.edits
    old, new = source[start:end].decode().split(), text.decode().split()
    at = next(i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y)
    at -= new[: len(old)] == old[: len(new)] and old[0] == new[:1]  # "is" and "is not" begin alike
    assert any(
        before[i : i + len(old)] == old and before[:i] + new + before[i + len(old) :] == after
        for i in range(max(at - 1, 0), at + 2)
    )
    assert old != new


@given(real_mutations())
def test_diffs_apply_with_git_and_back(case):
    source, mutation = case[0].read_bytes(), case[1]
    check_diff(source, mutation.apply(source))


def test_line_ends_are_kept():
    source = (STDLIB / "bisect.py").read_bytes()
    dos = source.replace(b"\n", b"\r\n")
    found, found_dos = find_mutations(source), find_mutations(dos)
    assert [m.apply(source) for m in found] == [m.apply(dos).replace(b"\r\n", b"\n") for m in found_dos]
    check_diff(dos, found_dos[0].apply(dos))


def check_diff(before, after):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a b.py"
        path.write_bytes(before)
        for old, new in ((before, after), (after, before)):
            diff = make_diff("a b.py", old, new).encode(errors="surrogateescape")
            subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], input=diff, cwd=folder, check=True)
            assert path.read_bytes() == new


@given(st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"a\r\n", b"\xff\n", b"\x0c\n"]), min_size=1, max_size=12),
       st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"a\r\n", b"\xff\n", b"\x0c\n"]), min_size=1, max_size=12),
       st.sampled_from([b"", b"end"]), st.sampled_from([b"", b"end"]))  # fmt: skip
def test_diffs_of_any_bytes_apply(one, other, end, other_end):
    before, after = b"".join(one) + end, b"".join(other) + other_end
    if before != after:
        check_diff(before, after)
    else:
        assert make_diff("x", before, after) == ""


@pytest.mark.parametrize("path", ["a\nb", 'a"b', "ü.py", "a\\b"])
def test_paths_that_git_quotes_are_refused(path):
    with pytest.raises(ValueError, match="special characters"):
        make_diff(path, b"a", b"b")


def test_mutations_of_a_small_module():
    source = textwrap.dedent("""\
        import os


        # Adds.
        @cache  # once
        def add(a, b):
            "Sum."
            # Both.
            total = (a) + b  # here
            return total


        class C:
            def only(self, x):
                if not(x) or x is not None and "%d" % x:
                    return add( (x, 1), self , *x, key=x)
        """).encode()
    texts = {kind: [m.apply(source).decode() for m in find_mutations(source, (kind,))] for kind in KINDS}

    def lines(kind):
        original = source.decode().splitlines()
        return [[line.strip() for line in text.splitlines() if line not in original] for text in texts[kind]]

    assert lines("remove-function") == [[], ["pass"]]
    assert texts["remove-function"][0].startswith("import os\n\n\nclass C:")
    assert lines("delete-statement") == [[], [], ["pass"], ["pass"]]
    assert "# Both" not in texts["delete-statement"][0]
    assert lines("swap-arguments") == [["return add( self, (x, 1) , *x, key=x)"]]
    assert lines("swap-variables")[:2] == [["a = (total) + b  # here"], ["total = (b) + a  # here"]]
    assert lines("swap-variables")[2:] == [
        ["return add( (self, 1), x , *x, key=x)"],
        ["return add( (x, 1), x , *self, key=x)"],
    ]
    assert [new for (new,) in lines("flip-operator")] == [
        "total = (a) - b  # here",
        'if (x) or x is not None and "%d" % x:',
        'if not(x) and x is not None and "%d" % x:',
        'if not(x) or x is None and "%d" % x:',
        'if not(x) or x is not None or "%d" % x:',
    ]


def test_last_line_without_end_and_single_statements():
    assert [m.apply(b"def f():\n  return 1") for m in find_mutations(b"def f():\n  return 1")] == [
        b"pass",
        b"def f():\n  pass",
    ]


@pytest.mark.parametrize("source", [b"def f(:", b"\xff", b"\xef\xbb\xbfx = 1 + 2", b"x = '"])
def test_files_that_are_not_modules_are_refused(source):
    with pytest.raises(ValueError):
        find_mutations(source)


def test_mutations_do_not_depend_on_the_hash_seed():
    code = "import sys; from cwm_core.environments.foraging import find_mutations as f\n"
    code += "print(f(open(sys.argv[1], 'rb').read()))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(STDLIB / "textwrap.py")],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1] != b""


# ---- prompts, mixtures, which files are tests


@given(st.lists(st.text(max_size=3000), min_size=1, max_size=40), st.text(max_size=3000), st.text(max_size=5))
def test_prompts_are_short_and_repeatable(names, command, seed):
    prompt = write_prompt(names, command, seed)
    assert prompt == write_prompt(names, command, seed)
    assert len(prompt.encode(errors="replace")) <= 8192


def test_prompts_vary_and_say_how_many_tests_fail():
    prompts = {
        write_prompt(["tests/test_a.py::test_b", "tests/test_a.py::test_c"], "pytest", str(i)) for i in range(99)
    }
    assert len(prompts) > 20
    assert all("2 tests" in prompt.lower() for prompt in prompts)
    assert all("{" not in prompt for prompt in prompts)


@given(st.integers(0, 1000), st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 100), min_size=1))
def test_quotas_are_within_one_of_their_shares(count, shares):
    if sum(shares.values()) == 0:
        with pytest.raises(ValueError, match="shares must not be negative"):
            quotas(count, shares)
        return
    found = quotas(count, shares)
    assert sum(found.values()) == count
    total = sum(shares.values())
    assert all(abs(found[kind] - count * share / total) < 1 + 1e-6 for kind, share in shares.items())


def test_the_published_mix():
    assert quotas(100, MIX) == {
        "remove-function": 7, "swap-arguments": 9, "swap-variables": 6, "delete-statement": 11, "flip-operator": 12,
        "issue-fix": 55,
    }  # fmt: skip


def test_streams_are_mixed_by_share_while_they_last():
    order = [kind for kind, _ in mixed({"a": range(6), "b": range(2), "c": range(9)}, {"a": 3, "b": 1})]
    assert order == ["a", "a", "b", "a", "a", "a", "b", "a"] or Counter(order[:4]) == {"a": 3, "b": 1}
    assert Counter(order) == {"a": 6, "b": 2}
    assert list(interleaved(["ab", "", "cde"])) == ["a", "c", "b", "d", "e"]


def test_which_files_are_tests():
    tests = ["tests/helper.py", "a/test_x.py", "x_test.py", "conftest.py", "src/pkg/testing/util.py"]
    assert all(map(is_test, tests))
    assert not any(map(is_test, ["src/a.py", "contest.py", "testimony.py", "tests.py/a.py", "tests"]))
    assert protected_paths(["pkg/tests/deep/test_a.py"]) == tuple(
        sorted(["pkg/tests", *(f"{folder}{name}" for folder in ("", "pkg/") for name in
                ("conftest.py", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"))])
    )  # fmt: skip


# ---- surveys and tasks


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("repositories")
    return {name: copy_repository(name, where) for name in NAMES}


@pytest.fixture
def repositories(folders, monkeypatch):
    # Loops without end are cut sooner than where suites may be slow.
    monkeypatch.setattr("cwm_core.environments.foraging.harvest.SLACK_SECONDS", 3.0)
    return [Repository(name, folder, test_command=TEST_COMMAND) for name, folder in folders.items()]


def test_survey_finds_reliable_and_flaky_tests(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "check.py").write_text("def test_by_name(): pass\n")
    (tmp_path / "tests" / "test_all.py").write_text(
        "import os, random, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.mark.xfail\ndef test_expected(): assert False\n"
        "def test_hash(): assert int(os.environ['PYTHONHASHSEED']) == 0\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.parametrize('x', ['a b', 'ü', 'x::y'])\ndef test_names(x): print('PASSED', x)\n"
    )
    command = f"{TEST_COMMAND} check.py tests"
    found = survey(Repository("r", tmp_path, test_command=command), BACKEND, seconds=60)
    prefix = "tests/test_all.py::test_"
    assert found.reliable == (
        "check.py::test_by_name", f"{prefix}good", f"{prefix}names[\\xfc]", f"{prefix}names[a b]",
        f"{prefix}names[x::y]",
    )  # fmt: skip
    assert found.flaky == (f"{prefix}hash",)
    assert found.sources == {"code.py": b"x = 1\n"}
    assert {"check.py", "tests", "conftest.py"} <= set(found.protected)


def test_modules_are_read_whole(tmp_path):
    big = b"x = 1\n" * 30_000
    for name, content in (("big.py", big), ("pkg/a-b.py", b"y"), ("odd\n.py", b"z"), ("c.txt", b"no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    machine = BACKEND.open(Task("t", "", tmp_path))
    try:
        assert read_modules(machine) == {"big.py": big, "pkg/a-b.py": b"y"}
        assert sorted(os.listdir(machine.root)) == sorted(os.listdir(tmp_path))
    finally:
        machine.close()


def test_forage_is_repeatable_and_its_tasks_are_correct(repositories, tmp_path):
    issues = [Task(f"issue-{i}", "Do.", image="i", kind="issue-fix") for i in range(30)]
    some = repositories[1:3]
    options = {"count": 6, "backend": BACKEND, "issues": issues, "seed": 3}
    seen = []
    harvest = forage(some, tmp_path / "one", workers=1, progress=lambda *done: seen.append(done), **options)
    code = "import pickle, sys; from cwm_core.environments.foraging import forage as f\n"
    code += "import cwm_core.environments.foraging.harvest as module; module.SLACK_SECONDS = 3.0\n"
    code += "some, output, options = pickle.load(sys.stdin.buffer); f(some, output, workers=3, **options)"
    subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((some, tmp_path / "two", options)),
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
    )
    data = (tmp_path / "one/tasks.jsonl").read_bytes()
    assert (tmp_path / "two/tasks.jsonl").read_bytes() == data
    assert seen == [(i, 6) for i in range(1, 7)]
    tasks = list(read_tasks(tmp_path / "one/tasks.jsonl"))
    assert harvest.tasks == quotas(6, MIX)
    assert Counter(task.kind for task in tasks) == +Counter(harvest.tasks)
    assert len({task.name for task in tasks}) == 6
    for task in tasks:
        if task.kind == "issue-fix":
            continue
        assert task.fail_to_pass and task.pass_to_pass
        assert "tests" in task.protected
        assert task.patch and task.solution
        assert not any(line in task.prompt for line in task.patch.splitlines() if len(line.strip()) > 12)
        assert is_test(task.provenance["path"]) is False

    # Interrupted anywhere, even within a line, it goes on to the same file, without trying again what it tried.
    cut = tmp_path / "cut"
    cut.mkdir()
    journal = (tmp_path / "one/journal.jsonl").read_bytes()
    (cut / "journal.jsonl").write_bytes(journal[: int(len(journal) * 0.8)])
    (cut / "tasks.jsonl").write_bytes(data[: int(len(data) * 0.6)])
    forage(some, cut, workers=2, **options)
    assert (cut / "tasks.jsonl").read_bytes() == data
    with pytest.raises(ValueError, match="a different seed"):
        forage(some, cut, **options | {"seed": 4})
    (some[0].folder / "new.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "new.py"], cwd=some[0].folder, check=True)
    try:
        with pytest.raises(ValueError, match="have changed since"):
            forage(some, cut, **options)
    finally:
        subprocess.run(["git", "rm", "-qf", "new.py"], cwd=some[0].folder, check=True)


SUMS = b"def add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return a + a\n"
SUMS_TESTS = "def test_add():\n    assert add(2, 3) == 5\n\n\ndef test_twice():\n    assert twice(4) == 8\n"
ROOTS = {
    "configuration beside the tests": (
        TEST_COMMAND, {"tests/pytest.ini": "[pytest]\npythonpath = ..\n"}, "sums.py", "tests",
    ),
    "a package of a monorepo": (
        f"{TEST_COMMAND} a", {"a/pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['src']\n"}, "a/src/sums.py",
        "a/tests",
    ),
    "a folder that the command changes to": (f"cd a && {TEST_COMMAND}", {"a/conftest.py": ""}, "a/sums.py", "a/tests"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROOTS)
def test_tasks_are_solved_by_their_solutions_wherever_pytest_finds_its_root(tmp_path, name):
    command, files, module, tests = ROOTS[name]
    folder = tmp_path / "repo"
    files |= {module: SUMS.decode(), f"{tests}/test_sums.py": f"from sums import add, twice\n{SUMS_TESTS}"}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    repository = Repository("r", folder, test_command=command)
    harvest = forage([repository], tmp_path / "out", count=1, backend=BACKEND, mix={"flip-operator": 1.0})
    assert (harvest.tasks, harvest.left_out) == ({"flip-operator": 1}, {})
    (task,) = read_tasks(tmp_path / "out/tasks.jsonl")
    assert task.test_files == () and tests in task.protected
    assert judge(task, task.solution.encode(), BACKEND, seconds=60).value == 1.0
    assert judge(task, make_diff("notes.md", b"a", b"b").encode(), BACKEND, seconds=60).value == 0.0


def test_a_task_whose_solution_does_not_solve_it_is_left_out(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "sums.py").write_bytes(SUMS)
    (folder / "test_sums.py").write_text(f"from sums import add, twice\n{SUMS_TESTS}")
    issue = Task(
        "issue", "Do.", folder, test_command=TEST_COMMAND,
        patch=make_diff("sums.py", SUMS, SUMS.replace(b"+ b", b"- b")),
        fail_to_pass=("test_sums.py::test_add",), solution=make_diff("sums.py", SUMS, SUMS.replace(b"+ a", b"- a")),
    )  # fmt: skip
    right = replace(issue, name="right", solution=make_diff("sums.py", SUMS.replace(b"+ b", b"- b"), SUMS))
    images = replace(right, name="image", folder=None, image="i")
    options = {"count": 3, "backend": BACKEND, "issues": [issue, right, images]}
    harvest = forage([], tmp_path / "out", **options)
    assert harvest.left_out == {"issue-fix": {"the known solution scores 0: the tests failed": 1}}
    assert (harvest.tasks, harvest.unscored, harvest.short) == ({"issue-fix": 2}, 1, 1)
    assert {task.name for task in read_tasks(tmp_path / "out/tasks.jsonl")} == {"right", "image"}
    again = forage([], tmp_path / "out", **options)
    assert (again.left_out, again.tasks) == (harvest.left_out, harvest.tasks)


def test_foraging_reports_its_progress(tmp_path):
    (tmp_path / "sums.py").write_bytes(SUMS)
    (tmp_path / "test_sums.py").write_text(f"from sums import add, twice\n{SUMS_TESTS}")
    said = []
    repository = Repository("r", tmp_path, test_command=TEST_COMMAND)
    forage([repository], tmp_path / "out", count=1, backend=BACKEND, mix={"flip-operator": 1}, status=said.append)
    assert said == ["0 of 1 repositories surveyed", "1 of 1 tasks, 1 candidates tried"]


def test_forage_can_be_interrupted(repositories, tmp_path):
    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    options = {"count": 3, "backend": BACKEND, "workers": 2}
    with pytest.raises(KeyboardInterrupt):
        forage(repositories[4:5], tmp_path / "a", progress=stop, **options)
    assert len(list(read_tasks(tmp_path / "a/tasks.jsonl"))) == 2
    forage(repositories[4:5], tmp_path / "a", **options)
    forage(repositories[4:5], tmp_path / "b", **options)
    assert (tmp_path / "a/tasks.jsonl").read_bytes() == (tmp_path / "b/tasks.jsonl").read_bytes()


def test_a_kind_that_runs_out_leaves_its_share_to_others(tmp_path):
    (tmp_path / "code.py").write_text("def f(a):\n    return a + 1\n\ndef g(a):\n    return a\n")
    (tmp_path / "test_code.py").write_text(
        "import code_\ndef test_f(): assert code_.f(1) == 2\ndef test_g(): assert code_.g(2) == 2\n"
    )
    (tmp_path / "code.py").rename(tmp_path / "code_.py")
    mix = {"flip-operator": 1.0, "delete-statement": 1.0, "swap-arguments": 3.0}
    repository = Repository("r", tmp_path, test_command=TEST_COMMAND)
    harvest = forage([repository], tmp_path / "out", count=3, backend=BACKEND, mix=mix)
    assert harvest.tasks == {"delete-statement": 2, "flip-operator": 1}
    harvest = forage([repository], tmp_path / "all", count=9, backend=BACKEND, mix=mix)
    assert (harvest.tasks, harvest.short) == ({"delete-statement": 2, "flip-operator": 1}, 6)


def test_repositories_without_passing_tests_are_left_out(tmp_path, repositories):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "test_x.py").write_text("def test_x(): assert 0\n")
    bad = Repository("bad", tmp_path / "r", test_command=TEST_COMMAND)
    gone = Repository("gone", tmp_path / "nowhere", test_command=TEST_COMMAND)
    other = Repository("other", tmp_path / "r", test_command="true")
    harvest = forage([bad, gone, other, repositories[0]], tmp_path / "out", count=1, backend=BACKEND)
    assert set(harvest.repositories_left_out) == {"bad", "gone", "other"}
    assert harvest.repositories_left_out["bad"] == "no test of bad passes"
    assert "pytest made no report (exit code 0)" in harvest.repositories_left_out["other"]
    assert sum(harvest.tasks.values()) == 1


def test_names_that_occur_twice_are_refused(repositories, tmp_path):
    with pytest.raises(ValueError, match="occurs 2 times"):
        forage([repositories[0]] * 2, tmp_path / "out", count=1, backend=BACKEND)


# ---- issues

ROW = {
    "instance_id": "astropy__Astropy-1",
    "repo": "astropy/astropy",
    "base_commit": "abc",
    "version": "5.1",
    "problem_statement": " It is wrong.\n",
    "patch": "diff --git a/setup.cfg b/setup.cfg\n--- a/setup.cfg\n+++ b/setup.cfg\n@@ -1 +1 @@\n-a\n+b\n",
    "test_patch": "diff --git a/t/test_a.py b/t/test_a.py\n--- a/t/test_a.py\n+++ b/t/test_a.py\n@@ -1 +1 @@\n-a\n+b\n",
    "FAIL_TO_PASS": '["t/test_a.py::test_b"]',
    "PASS_TO_PASS": ["t/test_a.py::test_c[1-2]"],
}


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_issues_become_tasks(tmp_path):
    (task,) = read_issues(write_rows(tmp_path / "i.jsonl", ROW))
    assert (task.name, task.kind, task.workdir) == ("astropy__Astropy-1", "issue-fix", "/testbed")
    assert task.image == "swebench/sweb.eval.x86_64.astropy_1776_astropy-1:latest"
    assert "It is wrong." in task.prompt and "astropy/astropy" in task.prompt
    assert (task.fail_to_pass, task.pass_to_pass) == (("t/test_a.py::test_b",), ("t/test_a.py::test_c[1-2]",))
    assert (task.test_patch, task.solution) == (ROW["test_patch"], ROW["patch"])
    assert "t/test_a.py" in task.protected and "conftest.py" in task.protected
    assert "setup.cfg" not in task.protected  # the solution needs it
    assert task.provenance == {"repository": "astropy/astropy", "commit": "abc", "version": "5.1"}
    (named,) = read_issues(write_rows(tmp_path / "j.jsonl", ROW | {"image": "own/image:1"}))
    assert named.image == "own/image:1"


def test_issues_that_cannot_be_tasks_are_reported(tmp_path):
    rows = [
        ROW | {"instance_id": "a", "FAIL_TO_PASS": '["test_b (t.Case)"]'},
        ROW | {"instance_id": "b", "FAIL_TO_PASS": "[]"},
        ROW | {"instance_id": "c", "problem_statement": "x" * 9000},
    ]
    told = []
    path = write_rows(tmp_path / "i.jsonl", *rows)
    assert list(read_issues(path, left_out=lambda *said: told.append(said))) == []
    assert told == [
        ("a", "its tests are not pytest's"),
        ("b", "its tests are not pytest's"),
        ("c", "its prompt is too long"),
    ]
    assert [task.name for task in read_issues(path, count_tokens=lambda text: len(text) // 4)] == ["c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in ROW.items() if k != "repo"}, "line 2: 'repo' must be a string, got null"),
        (ROW | {"FAIL_TO_PASS": "x"}, "line 2: 'FAIL_TO_PASS' must be a list of strings"),
        (ROW | {"PASS_TO_PASS": [1]}, "line 2: 'PASS_TO_PASS' must be a list of strings"),
        ([], "line 2: not a JSON object"),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        list(read_issues(write_rows(tmp_path / "i.jsonl", ROW, row)))
