"""Rewards: outcomes of each test, what a submission may not do, how near a patch is to the solution."""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.environments import Task, forget_history, issue_task, judge, make_diff, normalize, run_tests, similarity
from cwm_core.environments.outcomes import outcome_of, read_file
from cwm_core.environments.patches import changes, touched
from cwm_core.environments.protection import Rules, protected_paths
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from hypothesis import given
from hypothesis import strategies as st
from small_repositories import TEST_COMMAND, copy_repository

KIND = "process" if machines.bubblewrap_refusal() else "bubblewrap"
BACKEND = SandboxBackend(KIND, readable=installed_packages())
SECONDS = 60.0

BROKEN = b"def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    return 2 * a\n"
WHOLE = BROKEN.replace(b"a - b", b"a + b")
TESTS = (
    b"import pytest\nfrom sums import add, twice\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n"
    b"@pytest.mark.parametrize('a', [1, 2])\ndef test_twice(a):\n    assert twice(a) == a + a\n"
)


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "repo"
    (folder / "tests").mkdir(parents=True)
    (folder / "sums.py").write_bytes(WHOLE)
    (folder / "tests" / "test_sums.py").write_bytes(TESTS)
    (folder / "tests" / "test_other.py").write_bytes(b"def test_other():\n    pass\n")
    return Task(
        "sums",
        "Repair it.",
        folder,
        patch=make_diff("sums.py", WHOLE, BROKEN),
        solution=make_diff("sums.py", BROKEN, WHOLE),
        test_command=TEST_COMMAND,
        fail_to_pass=("tests/test_sums.py::test_add",),
        pass_to_pass=("tests/test_sums.py::test_twice[1]", "tests/test_sums.py::test_twice[2]"),
        protected=protected_paths(["tests/test_sums.py"]),
    )


def diff_of(task, **files):
    """The diff that git makes of writing files (None: removing them) in the broken repository."""
    with tempfile.TemporaryDirectory() as folder:

        def git(*arguments):
            settings = ["-c", "user.name=t", "-c", "user.email=t@t"]
            return subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True).stdout

        subprocess.run(["cp", "-r", f"{task.folder}/.", folder], check=True)
        git("init", "-q")
        (Path(folder) / "sums.py").write_bytes(BROKEN)
        git("add", "-A")
        git("commit", "-qm", "x")
        for name, content in files.items():
            path = Path(folder) / _path(name)
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        git("add", "-A")
        return git("diff", "--cached")


def _path(name):
    if name in ("__init___py", "pytest__init_py", "pytest__main_py"):
        return {"__init___py": "__init__.py"}.get(name) or f"pytest/__{name[8:-3]}__.py"
    return name if "." in name else name.replace("__", "/").replace("_py", ".py").replace("_ini", ".ini")


def test_a_right_patch(task):
    reward = judge(task, task.solution.encode(), BACKEND, seconds=SECONDS)
    assert (reward.value, reward.reason, reward.similarity) == (1.0, "the tests passed", 1.0)
    assert reward.fail_to_pass == dict.fromkeys(task.fail_to_pass, "passed")
    assert reward.pass_to_pass == dict.fromkeys(task.pass_to_pass, "passed")


def test_wrong_patches_say_what_is_wrong(task):
    nothing = judge(task, None, BACKEND, seconds=SECONDS)
    assert (nothing.value, nothing.reason, nothing.similarity) == (0.0, "nothing was submitted", 0.0)
    reward = judge(task, diff_of(task, new_py=b"x = 1\n"), BACKEND, seconds=SECONDS)
    assert reward.value == 0.0
    assert reward.reason == (
        "the tests failed: 1 of 1 tests that should pass do not, first tests/test_sums.py::test_add"
    )
    assert reward.fail_to_pass == {"tests/test_sums.py::test_add": "failed"}
    worse = WHOLE.replace(b"2 * a", b"a")
    reward = judge(task, diff_of(task, sums_py=worse), BACKEND, seconds=SECONDS)
    assert "2 of 2 tests that passed before fail now, first tests/test_sums.py::test_twice[1]" in reward.reason
    assert reward.pass_to_pass["tests/test_sums.py::test_twice[2]"] == "failed"
    assert 0.5 < reward.similarity < 1.0
    reward = judge(task, diff_of(task, sums_py=b"def add(:\n"), BACKEND, seconds=SECONDS)
    assert set(reward.fail_to_pass.values()) | set(reward.pass_to_pass.values()) == {"missing"}
    reward = judge(task, b"diff --git a/x b/x\nnonsense", BACKEND, seconds=SECONDS)
    assert (reward.value, reward.reason[:23]) == (0.0, "the diff does not apply")


FORGED = b"""
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome = "passed"
    return report
"""
TOML = b'[pytest]\naddopts = ["-p", "forge"]\n'
ATTACKS = {
    "tests made to pass": {"tests__test_sums_py": b"def test_add(): pass\n"},
    "tests removed": {"tests__test_sums_py": None},
    "outcomes forged by the tests' conftest": {"tests__conftest_py": FORGED},
    "outcomes forged by the root's conftest": {"conftest_py": FORGED},
    "other tests collected": {"pytest_ini": b"[pytest]\ntestpaths = nowhere\npython_functions = nothing\n"},
    "a plugin from the repository": {
        "forge_py": FORGED, "pytest_ini": b"[pytest]\naddopts = -p forge\n",
    },
    "the process ended early": {"sums_py": b"import os\nos._exit(0)\n"},
    "a report printed": {"sums_py": b"print('tests/test_sums.py::test_add PASSED')\nraise SystemExit(0)\n"},
    "a report in the repository": {"report": b"all passed\n"},
    "assertions are not run": {"sitecustomize_py": b"raise SystemExit(0)\n"},
    "configuration that pytest 9 reads first": {"pytest.toml": TOML, "forge_py": FORGED},
    "hidden configuration": {".pytest.toml": TOML, "forge_py": FORGED},
    "configuration of a later pytest": {"pytest.yaml": b"pytest: {addopts: -p forge}\n", "forge_py": FORGED},
    "a plugin by its metadata": {
        "evil-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
        "evil-1.dist-info/entry_points.txt": b"[pytest11]\nevil = forge\n", "forge_py": FORGED,
    },
    "a package in place of pytest": {"pytest__init_py": FORGED, "pytest__main_py": b"raise SystemExit(0)\n"},
    "a module of the standard library": {"json_py": b"import os\nos._exit(0)\n"},
    "a module that is tried and not installed": {"argcomplete_py": b"import os\nos._exit(0)\n"},
    "a package above the tests": {"__init___py": b"import os\nos._exit(0)\n"},
    "the code forges for all": {"sums_py": (
        b"import _pytest.reports as r\nold = r.TestReport.from_item_and_call.__func__\n"
        b"def new(cls, item, call):\n    call.excinfo = None\n    return old(cls, item, call)\n"
        b"r.TestReport.from_item_and_call = classmethod(new)\n"
    )},
    "the code declares failures expected": {"sums_py": (
        b"import pytest\ndef add(a, b): pytest.xfail('not yet')\ndef twice(a): return 2 * a\n"
    )},
    "the code writes a report to its parents' output": {"sums_py": (
        b"import json, os, zlib\n"
        b"names = ['tests/test_sums.py::test_' + name for name in ('add', 'twice[1]', 'twice[2]')]\n"
        b"report = {'outcomes': dict.fromkeys(names, 'passed'), 'errors': [], 'files': [], 'control': None}\n"
        b"report = zlib.compress(json.dumps(report).encode())\n"
        b"parent = os.getppid()\n"
        b"while parent > 1:\n"
        b"    try:\n        with open(f'/proc/{parent}/fd/1', 'wb') as f: f.write(report)\n    except OSError: pass\n"
        b"    parent = int(open(f'/proc/{parent}/stat').read().rpartition(')')[2].split()[1])\n"
    )},
    "the code rewrites the report at its end": {"sums_py": (
        b"import atexit, glob, json, os, sys, zlib\n"
        b"def forge():\n"
        b"    box = [p for p in sys.path if os.path.exists(p + '/report')][0]\n"
        b"    names = ['add', 'twice[1]', 'twice[2]']\n"
        b"    outcomes = {'tests/test_sums.py::test_' + name: 'passed' for name in names}\n"
        b"    report = {'outcomes': outcomes, 'errors': [], 'files': [], 'control': None}\n"
        b"    report = zlib.compress(json.dumps(report).encode())\n"
        b"    with open(box + '/report', 'wb') as f: f.write(report)\n"
        b"atexit.register(forge)\n"
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_changes_that_submissions_may_not_make(task, name):
    reward = judge(task, diff_of(task, **ATTACKS[name]), BACKEND, seconds=SECONDS)
    assert reward.value == 0.0
    assert reward.reason.startswith("the tests failed")


REAL = [
    ("tests made to pass", "tests/test_sums.py::test_add"),
    ("outcomes forged by the root's conftest", "forged"),
    ("a plugin from the repository", "forged"),
    ("configuration that pytest 9 reads first", "forged"),
    ("a plugin by its metadata", "forged"),
    ("a package in place of pytest", "no report"),
    ("a module of the standard library", "no report"),
]


@pytest.mark.parametrize(("name", "effect"), REAL)
def test_these_would_work_if_the_whole_diff_were_applied(task, name, effect):
    machine = BACKEND.open(task)
    try:
        assert machine.run("git apply", stdin=diff_of(task, **ATTACKS[name]), seconds=SECONDS).exit_code == 0
        command = TEST_COMMAND if "metadata" not in name else "python -m pytest -q"
        run = run_tests(machine, command, seconds=SECONDS)
    finally:
        machine.close()
    assert effect in (run.problem or run.outcomes)


def test_the_same_attacks_do_not_spoil_a_right_patch(task):
    diff = {"sums_py": WHOLE}
    for attack in ATTACKS.values():
        diff |= {name: content for name, content in attack.items() if name != "sums_py" and content}
    reward = judge(task, diff_of(task, **diff), BACKEND, seconds=SECONDS)
    assert reward.value == 1.0
    assert reward.ignored["pytest.toml"] == "configuration"
    assert reward.ignored["conftest.py"] == "loaded automatically by Python or pytest"
    assert (
        reward.ignored["argcomplete.py"] == reward.ignored["json.py"] == "a new module that could hide an installed one"
    )
    assert "forge.py" not in reward.ignored  # harmless, where nothing loads it


def test_a_new_module_and_a_new_package_count(task):
    diff = diff_of(
        task,
        sums_py=b"from helper import add\nfrom more.twice import twice\n",
        helper_py=b"def add(a, b):\n    return a + b\n",
        **{"more/__init__.py": b"", "more/twice.py": b"def twice(a):\n    return 2 * a\n"},
    )
    reward = judge(task, diff, BACKEND, seconds=SECONDS)
    assert (reward.value, reward.ignored) == (1.0, {})


def test_links_do_not_lead_anywhere(task):
    right = diff_of(task, sums_py=WHOLE).decode()
    link = (
        "diff --git a/{0} b/{0}\nnew file mode 120000\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+tests\n"
        "\\ No newline at end of file\n"
    )
    through = (
        "diff --git a/way/x.py b/way/x.py\nnew file mode 100644\n--- /dev/null\n+++ b/way/x.py\n@@ -0,0 +1 @@\n+x\n"
    )
    reward = judge(task, (right + link.format("pkg.py")).encode(), BACKEND, seconds=SECONDS)
    assert (reward.value, reward.ignored) == (1.0, {"pkg.py": "a link"})
    (task.folder / "way").symlink_to("tests")
    assert judge(task, through.encode(), BACKEND, seconds=SECONDS).reason.startswith("the diff does not apply")


def test_a_pytest_command_without_named_tests_is_judged_by_its_report(task):
    whole = replace(task, fail_to_pass=(), pass_to_pass=())
    assert judge(whole, task.solution.encode(), BACKEND, seconds=SECONDS).value == 1.0
    for source in (b"import os\nos._exit(0)\n", b"raise SystemExit(0)\n", b"def add(a, b): return 5\n"):
        reward = judge(whole, diff_of(task, sums_py=source), BACKEND, seconds=SECONDS)
        assert (reward.value, reward.reason[:16]) == (0.0, "the tests failed")


def test_a_session_that_is_ended_early_does_not_pass(task):
    whole = replace(task, fail_to_pass=(), pass_to_pass=())
    leave = b"import pytest\ndef add(a, b): pytest.exit('enough', returncode=0)\ndef twice(a): return 2 * a\n"
    reward = judge(whole, diff_of(task, sums_py=leave), BACKEND, seconds=SECONDS)
    assert (reward.value, reward.reason[:16]) == (0.0, "the tests failed")


def test_a_package_does_not_take_the_place_of_a_test(task):
    (task.folder / "test_root.py").write_bytes(TESTS)
    hiding = b"import pytest\n__file__ = __file__.replace('/__init__.py', '.py')\ndef test_add(): pass\n"
    task = replace(task, fail_to_pass=("test_root.py::test_add",), pass_to_pass=(), protected=("test_root.py",))
    reward = judge(task, diff_of(task, **{"test_root/__init__.py": hiding}), BACKEND, seconds=SECONDS)
    assert (reward.value, reward.ignored) == (0.0, {"test_root/__init__.py": "a package that hides a test"})


@pytest.mark.parametrize("command", [f"cd pkg && {TEST_COMMAND}", f"(cd pkg; {TEST_COMMAND})"])
def test_a_module_hides_none_where_the_command_runs(task, command):
    (task.folder / "pkg").mkdir()
    (task.folder / "pkg" / "__init__.py").touch()
    task = replace(task, test_command=command, test_files=())
    diff = diff_of(task, **{"pkg/pytest.py": FORGED, "pkg/other.py": b"x = 1\n"})
    assert list(judge(task, diff, BACKEND, seconds=SECONDS).ignored) == ["pkg/pytest.py"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("pkg/test_a/__init__.py", False), ("conftest/x.py", False), ("pkg/a_test/b/c.py", False),
        ("tools/run.py", False), ("tools/run/__main__.py", False),
        ("pkg/core.py", True), ("pkg/new/part.py", True), ("pkg/data/table.json", True), ("setup.py", True),
        ("other/schema.json", True), ("README.md", False), ("pytest.ini", False), ("a/b/pytest.ini", False),
        ("pkg/schema.json", True), ("pkg/other.json", False), ("pkg/tests/conftest.py", False),
        ("x/conftest.py", False),
        ("pkg/tests/data.json", False), ("other/tests/helper.py", False), ("pkg/testing/tool.py", True),
        ("pkg/testing/more.py", False), ("pkg/test_x.py", False), ("usercustomize.py", False), ("x/evil.pth", False),
        ("venv/lib/python3.11/site-packages/x.py", False), ("pkg.egg-info/entry_points.txt", False),
        ("pkg/__pycache__/core.cpython-311.pyc", False), ("pkg/core.pyc", False), ("pkg/core.so", False),
        (".github/x.yml", False), (".env", False), ("run.py", False), ("ci/settings.toml", False), ("setup.cfg", False),
    ],
)  # fmt: skip
def test_rules_list_the_allowed_changes(path, allowed):
    solution = "".join(
        make_diff(name, b"a\n", b"b\n") for name in ("pkg/schema.json", "pkg/testing/tool.py", "setup.cfg")
    )
    task = Task(
        "t",
        "",
        test_command="python run.py -- python -m tools.run pytest pkg",
        fail_to_pass=("pkg/tests/test_a.py::test",),
        solution=solution,
    )
    assert (Rules.of(task).refusal(path) is None) is allowed


def test_issue_tasks_are_protected_in_every_folder(task):
    row = {
        "instance_id": "o__r-1", "repo": "o/r", "base_commit": "c", "problem_statement": "It subtracts.",
        "patch": task.solution, "FAIL_TO_PASS": ["tests/test_sums.py::test_add"], "PASS_TO_PASS": [],
        "test_patch": make_diff("tests/test_sums.py", TESTS, TESTS + b"\n# the end\n"),
    }  # fmt: skip
    issue = replace(issue_task(row, test_command=TEST_COMMAND), folder=task.folder, image=None, patch=task.patch)
    assert judge(issue, task.solution.encode(), BACKEND, seconds=SECONDS).value == 1.0
    for files in ({"tests__conftest_py": FORGED}, {"tests__test_sums_py": b"def test_add(): pass\n"}):
        assert judge(issue, diff_of(task, **files), BACKEND, seconds=SECONDS).value == 0.0


# ---- diffs as people make them


def agents_diff(task, commands):
    """The diff that an agent's commands write to `d`, in the machine that it works in."""
    machine = BACKEND.open(task)
    try:
        forget_history(machine)
        machine.run(commands, seconds=SECONDS)
        return read_file(machine, "d")
    finally:
        machine.close()


FIX = "sed -i 's/a - b/a + b/' sums.py"


def test_the_usual_submission_counts(task):
    tested = f"{FIX}; {TEST_COMMAND}; mkdir -p .hypothesis; touch .hypothesis/x"
    diff = agents_diff(task, f"{tested}; git add -A; git diff --cached > d")
    assert b"pycache" not in diff and b"+    return a + b" in diff
    assert judge(task, diff, BACKEND, seconds=SECONDS).value == 1.0
    # Where nothing kept the caches out of it, they do not count.
    binary = (
        b"diff --git a/__pycache__/sums.cpython-311.pyc b/__pycache__/sums.cpython-311.pyc\nnew file mode 100644\n"
        b"index 0000000..1111111\nBinary files /dev/null and b/__pycache__/sums.cpython-311.pyc differ\n"
    )
    reward = judge(task, binary + diff, BACKEND, seconds=SECONDS)
    assert (reward.value, reward.ignored) == (1.0, {"__pycache__/sums.cpython-311.pyc": "a cache"})


@pytest.mark.parametrize("attributes", ["* text=auto\n", "*.py text eol=crlf\n", "* -text\n", None])
def test_line_ends_are_as_they_are(task, attributes):
    crlf = {name: text.replace(b"\n", b"\r\n") for name, text in {"b": BROKEN, "w": WHOLE}.items()}
    (task.folder / "sums.py").write_bytes(crlf["w"])
    if attributes:
        (task.folder / ".gitattributes").write_text(attributes)
    patch, solution = make_diff("sums.py", crlf["w"], crlf["b"]), make_diff("sums.py", crlf["b"], crlf["w"])
    task = replace(task, patch=patch, solution=solution)
    assert judge(task, solution.encode(), BACKEND, seconds=SECONDS).value == 1.0
    diff = agents_diff(task, f"{FIX}; git diff > d")
    assert diff.count(b"\n+") == 2 and b"+    return a + b\r\n" in diff
    assert judge(task, diff, BACKEND, seconds=SECONDS).value == 1.0
    if attributes and "-text" not in attributes:  # as git writes it in a repository with these attributes
        assert judge(task, diff.replace(b"\r\n", b"\n"), BACKEND, seconds=SECONDS).value == 1.0


@pytest.mark.parametrize("kind", ["process", KIND])
def test_a_temporary_folder_inside_of_a_repository(task, tmp_path, monkeypatch, kind):
    around = tmp_path / "around"
    (around / "tmp").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", around], check=True)
    (around / "pyproject.toml").write_text("[project]\nname = 'around'\n")
    monkeypatch.setattr("tempfile.tempdir", str(around / "tmp"))
    backend = SandboxBackend(kind, readable=installed_packages())
    machine = backend.open(task)
    try:
        assert read_file(machine, "sums.py") == BROKEN
        assert machine.run("git rev-parse --show-toplevel", seconds=SECONDS).exit_code != 0
    finally:
        machine.close()
    assert judge(task, task.solution.encode(), backend, seconds=SECONDS).value == 1.0
    assert judge(task, diff_of(task, new_py=b"x = 1\n"), backend, seconds=SECONDS).value == 0.0


def test_hidden_tests_are_applied_after_the_submission(task):
    more = TESTS + b"\n\ndef test_zero():\n    assert add(0, 0) == 0 == add(1, -1)\n"
    hidden = replace(
        task,
        test_patch=make_diff("tests/test_sums.py", TESTS, more),
        fail_to_pass=(*task.fail_to_pass, "tests/test_sums.py::test_zero"),
    )
    machine = BACKEND.open(hidden)
    assert b"test_zero" not in read_file(machine, "tests/test_sums.py")
    machine.close()
    assert judge(hidden, task.solution.encode(), BACKEND, seconds=SECONDS).value == 1.0
    spoiled = diff_of(task, sums_py=WHOLE, tests__test_sums_py=b"# all other lines\n")
    assert judge(hidden, spoiled, BACKEND, seconds=SECONDS).value == 1.0
    bad = replace(hidden, test_patch=hidden.test_patch.replace("assert twice", "assert thrice"))
    assert judge(bad, b"", BACKEND, seconds=SECONDS).reason.startswith("the diff does not apply")


def test_tests_that_do_not_end(task):
    diff = diff_of(task, sums_py=b"while True: pass\n")
    reward = judge(task, diff, BACKEND, seconds=2.0)
    assert reward.value == 0.0
    assert "did not end: limit seconds" in reward.reason


def test_reward_by_similarity_runs_nothing(task):
    class Refuses:
        def open(self, task):
            raise AssertionError

    assert judge(task, task.solution.encode(), Refuses(), seconds=1, by="similarity").value == 1.0
    half = judge(task, diff_of(task, sums_py=BROKEN.replace(b"a - b", b"b + a")), Refuses(), seconds=1, by="similarity")
    assert 0.5 < half.value == half.similarity < 1.0
    with pytest.raises(ValueError, match="no solution to compare"):
        judge(replace(task, solution=""), b"x", Refuses(), seconds=1, by="similarity")


# ---- running tests


def test_outcomes_of_every_kind(tmp_path):
    (tmp_path / "test_all.py").write_text(
        "import pytest, unittest\n"
        "def test_passed(): print('x' * 10_000_000)\n"
        "def test_failed(): assert 0\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.mark.xfail\ndef test_xfailed(): assert 0\n"
        "@pytest.mark.xfail\ndef test_xpassed(): pass\n"
        "def test_gives_up(): pytest.xfail('now')\n"
        "class TestCase(unittest.TestCase):\n"
        "    @unittest.expectedFailure\n    def test_expected(self): assert 0\n"
        "    def test_unexpected(self): pytest.xfail('now')\n"
        "@pytest.mark.xfail(strict=True)\ndef test_strict(): pass\n"
        "@pytest.fixture\ndef before(): assert 0\n"
        "@pytest.fixture\ndef after():\n    yield\n    assert 0\n"
        "def test_before(before): pass\n"
        "def test_after(after): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name\n")
    machine = BACKEND.open(Task("t", "", tmp_path))
    try:
        run = run_tests(machine, TEST_COMMAND, seconds=SECONDS)
        assert {name.partition("py::test_")[2] or name: outcome for name, outcome in run.outcomes.items()} == {
            "passed": "passed", "failed": "failed", "skipped": "skipped", "xfailed": "xfailed", "xpassed": "passed",
            "strict": "failed", "before": "error", "after": "error", "gives_up": "skipped",
            "test_all.py::TestCase::test_expected": "xfailed", "test_all.py::TestCase::test_unexpected": "skipped",
        }  # fmt: skip
        assert sorted(path.name for path in Path(machine.root).iterdir()) in (
            ["test_all.py", "test_broken.py"], [".pytest_cache", "test_all.py", "test_broken.py"],
        )  # fmt: skip
        only = run_tests(machine, TEST_COMMAND, files=["test_broken.py"], seconds=SECONDS)
        assert (only.outcomes, only.problem) == ({}, None)
        assert run_tests(machine, "true", seconds=SECONDS).problem == "pytest made no report (exit code 0)"
    finally:
        machine.close()


def test_tests_that_run_pytest_find_no_plugin(tmp_path):
    (tmp_path / "test_inner.py").write_text(
        "import os, subprocess, sys\n"
        "def test_inner(tmp_path):\n"
        "    (tmp_path / 'test_x.py').write_text('def test_x(): pass')\n"
        "    run = subprocess.run([sys.executable, '-m', 'pytest', '-q', tmp_path], capture_output=True, text=True)\n"
        "    assert run.returncode == 0 and '1 passed' in run.stdout\n"
        "    assert not [name for name in os.environ if name.startswith('CWM_')]\n"
    )
    machine = BACKEND.open(Task("t", "", tmp_path))
    try:
        assert run_tests(machine, TEST_COMMAND, seconds=SECONDS).outcomes == {"test_inner.py::test_inner": "passed"}
    finally:
        machine.close()


def test_reports_of_any_size_come_whole(tmp_path):
    (tmp_path / "test_many.py").write_text(
        "import hashlib, pytest\n"
        "@pytest.mark.parametrize('x', [hashlib.sha256(b'%d' % i).hexdigest() for i in range(3000)])\n"
        "def test_x(x): pass\n"
    )
    machine = BACKEND.open(Task("t", "", tmp_path))
    try:
        run = run_tests(machine, TEST_COMMAND, seconds=SECONDS)
        assert len(run.outcomes) == 3000
        assert set(run.outcomes.values()) == {"passed"}
        assert not [path for path in Path(machine.root).iterdir() if path.name.startswith(".cwm")]
    finally:
        machine.close()


def test_names_that_were_cut_within_parameters():
    outcomes = {"t::a[x y]": "passed", "t::a[x z]": "passed", "t::b[1 2]": "passed", "t::b[1 3]": "failed"}
    assert outcome_of("t::a[x", outcomes) == "passed"
    assert outcome_of("t::b[1", outcomes) == "missing"
    assert outcome_of("t::a", outcomes) == "missing"


def test_history_is_forgotten(tmp_path):
    folder = copy_repository("ledger", tmp_path)
    before = (folder / "ledger/rows.py").read_bytes()
    after = before.replace(b"fields = []", b"fields = [None]")
    task = Task("t", "", folder, patch=make_diff("ledger/rows.py", before, after))
    machine = BACKEND.open(task)
    try:
        machine.run("mkdir -p a/__pycache__; touch a/__pycache__/x.pyc", seconds=10)
        assert b"None" in machine.run("git diff", seconds=10).stdout
        forget_history(machine)
        assert machine.run("git diff; git status --porcelain", seconds=10).stdout == b""
        assert machine.run("git log --all --oneline | wc -l; ls a", seconds=10).stdout == b"1\n"
        machine.run("sed -i 's/None//' ledger/rows.py", seconds=10)
        assert machine.run("git diff", seconds=10).stdout.count(b"\n+    fields = []") == 1
    finally:
        machine.close()


# ---- patches


def test_changes_are_read_from_what_git_writes():
    diff = (
        "diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@ def f\n a\n--- b\n+++ c\n d\n"
        "@@ -9 +9,2 @@\n-e\n+f\n+g\n\\ No newline at end of file\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-h\n"
        "diff --git a/old b/new\nsimilarity index 100%\nrename from old\nrename to new\n"
    )
    assert changes(diff) == {"x": ["--- b", "+++ c", "-e", "+f", "+g"], "gone": ["-h"]}
    assert touched(diff)[:2] == ["x", "gone"] or set(touched(diff)) >= {"x", "gone", "old", "new"}
    assert changes("nonsense\n@@ -1 @@\n+++") == {}


def test_normalized_patches():
    diff = make_diff("x.py", b"a\nb\nc\n", b"a\nB \n\n# why\nc\n")
    other = make_diff("x.py", b"0\n1\na\nb\nc\n", b"0\n1\na\nB\nc\n")
    assert diff != other
    assert normalize(diff) == normalize(other) == "x.py\n-b\n+B"
    assert normalize(diff + other.replace("x.py", "a.py")) == "a.py\n-b\n+B\nx.py\n-b\n+B"


def test_similarity_by_hand():
    one = make_diff("x", b"abcd\n", b"abce\n")
    assert similarity(one, one) == 1.0
    # "-abcd\n+abce" and "-abcd\n+abcf" have 10 of 11 characters in common: 2 * 10 / 22.
    assert similarity(one, make_diff("x", b"abcd\n", b"abcf\n")) == pytest.approx(20 / 22)
    assert similarity(one, make_diff("y", b"abcd\n", b"abce\n")) == 0.0
    assert similarity(one + make_diff("y", b"a\n", b"b\n"), one) == 0.5
    assert similarity("", one) == similarity("", "") == 0.0


lines = st.lists(st.sampled_from(["a", "b  ", "    return x", "", "# c", "é"]), min_size=1, max_size=8)


@given(lines, lines, lines)
def test_similarity_is_a_share_and_knows_equals(one, two, three):
    texts = ["\n".join(x).encode() + b"\n" for x in (one, two, three)]
    a, b = make_diff("x", texts[0], texts[1]), make_diff("x", texts[0], texts[2])
    assert 0.0 <= similarity(a, b) <= 1.0
    if a:
        assert similarity(a, a) == 1.0


def test_similarity_of_large_patches_is_fast():
    big = make_diff("x", b"a\n", b"".join(b"line %d\n" % (i % 700) for i in range(60_000)))
    assert 0.0 < similarity(big, make_diff("x", b"a\n", b"line 3\nline 4\n" * 400)) < 0.1


@given(st.text(max_size=300))
def test_any_text_has_changes(text):
    changes(text)
    assert 0.0 <= similarity(text, make_diff("x", b"a", b"b")) <= 1.0
