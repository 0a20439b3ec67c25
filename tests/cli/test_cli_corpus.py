"""`cwm corpus`, end to end, as users type it."""

import json

import cwm_core as cwm
import docker_image
import pytest
from chat_server import server
from cwm_core import machines
from cwm_core.cli import main
from llama3 import rank_path
from machines import kinds

for library in ("rich", "rensa", "license_expression", "detect_secrets"):
    pytest.importorskip(library)

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
RIGHT = "n = int(input())\ntotal = 0\nfor i in range(n):\n    total += int(input())\nprint(total)\n"
WRONG = RIGHT.replace("range(n)", "range(n - 1)")


def corpus(kind, *arguments, out):
    common = ["--tokenizer", str(rank_path()), "-o", str(out), "--workers", "1", "--sandbox", SANDBOX]
    return main(["corpus", kind, *map(str, arguments), *common])


def entries(out):
    return [entry for path in sorted((out / "traces").iterdir()) for entry in cwm.TraceReader(path).entries()]


def test_contests(tmp_path, capsys):
    problem = {
        "name": "sum",
        "public_tests": {"input": ["2\n3\n4\n", "1\n5\n"], "output": ["7\n", "5\n"]},
        "solutions": {"language": [3, 3], "solution": [RIGHT, RIGHT.replace("total", "s")]},
        "incorrect_solutions": {"language": [3, 2], "solution": [WRONG, "print 1"]},
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    out = tmp_path / "out"
    assert corpus("contests", tmp_path / "problems.jsonl", "--license", "CC-BY-4.0", out=out) == 0
    shown = capsys.readouterr()
    assert "kept" in shown.out and "samples kept" in shown.err
    passes = {entry.key: entry.metadata["passes"] for entry in entries(out)}
    assert any(passes.values()) and not all(passes.values())
    assert all(("right" in key) == value for key, value in passes.items())
    assert cwm.Shards(out / "tokens").sources == ["codecontests"]
    assert main(["inspect", str(out), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)[str(out)]
    assert held["traces"] == len(passes) and held["tokens"] == cwm.Shards(out / "tokens").tokens
    assert corpus("contests", tmp_path / "problems.jsonl", "--license", "CC-BY-4.0", out=out) == 0
    assert {entry.key: entry.metadata["passes"] for entry in entries(out)} == passes
    assert corpus("contests", tmp_path / "problems.jsonl", "--license", "MIT", out=out) == 1
    assert "other sources or settings" in capsys.readouterr().err


@pytest.mark.parametrize("kind", kinds(SANDBOX, "docker"))
def test_repository(kind, tmp_path, capsys):
    machine = ["--image", docker_image.image()] if kind == "docker" else []
    project = tmp_path / "project"
    (project / "pack").mkdir(parents=True)
    (project / "tests").mkdir()
    (project / "pack" / "__init__.py").write_text(
        "def total(xs):\n    s = 0\n    for x in xs:\n        s += x\n    return s\n\n\n"
        "def letters(text):\n    found = set(text)\n    order = list(found)\n    return order\n"
    )
    (project / "tests" / "test_pack.py").write_text(
        "from pack import letters, total\n\ndef test_total():\n    assert total([1, 2, 3]) == 6\n\n"
        "def test_letters():\n    assert len(letters('abcdefgh')) == 8\n"
    )
    out = tmp_path / "out"
    assert corpus("repository", project, "--license", "MIT", *machine, out=out) == 0
    [kept] = entries(out)
    assert kept.metadata["function"].endswith("total") and kept.trace.frames[-1].arg == "6"
    assert "not deterministic" in capsys.readouterr().out
    (project / "tests" / "test_pack.py").write_text("def test_nothing():\n    pass\n")
    assert corpus("repository", project, "--license", "MIT", *machine, out=tmp_path / "empty") == 1
    assert "gave no recording" in capsys.readouterr().err


def test_functions(tmp_path, capsys):
    (tmp_path / "shop.py").write_text(
        "def bigger(a: int, b: int) -> int:\n    if a > b:\n        return a\n    return b\n\n\n"
        "def main():\n    print(bigger(1, 2))\n\n\ndef shout(text: str) -> str:\n"
        "    loud = text.upper()\n    return loud + '!'\n"
    )
    out = tmp_path / "out"
    assert corpus("functions", tmp_path / "shop.py", "--license", "MIT", "--calls", 3, "--budget", 20, out=out) == 0
    assert "2 functions" in capsys.readouterr().err
    kept = entries(out)
    assert {entry.metadata["qualname"] for entry in kept} == {"bigger", "shout"}
    lines = {frame.lineno for entry in kept for frame in entry.trace.frames if frame.line.startswith("    ")}
    assert {2, 3, 4} <= lines
    for key, metadata, trace in kept:
        assert key.endswith(tuple(["#0", "#1", "#2"]))
        assert trace.result == repr(eval(metadata["call"], _names(tmp_path / "shop.py")))


def test_functions_with_calls_of_a_model(tmp_path, capsys):
    code = "def opens(key):\n    total = len(key)\n    if key == 'sesame-11':\n        return total\n    return 0\n"
    (tmp_path / "doors.py").write_text(code)
    command = ["functions", tmp_path / "doors.py", "--license", "MIT", "--budget", 20, "--model", "m"]
    answer = {"choices": [{"message": {"content": "opens('sesame-11')\nos.remove('x')"}}]}
    with server(200, json.dumps(answer).encode()) as (url, requests):
        assert corpus(*command, "--endpoint", url, out=tmp_path / "out") == 0
    assert [request["model"] for request in requests] == ["m"] and "def opens(key)" in str(requests[0]["messages"])
    assert "opens('sesame-11')" in {entry.metadata["call"] for entry in entries(tmp_path / "out")}
    with server(400, b"no such model") as (url, _):
        assert corpus(*command, "--endpoint", url, out=tmp_path / "other") == 1
    assert "no such model; run the same command to resume" in capsys.readouterr().err
    assert corpus(*command, out=tmp_path / "third") == 1
    assert "go together" in capsys.readouterr().err


def _names(path):
    names = {}
    exec(path.read_text(), names)
    return names


def test_functions_that_cannot_be_imported_fail_loudly(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("import not_there_at_all\ndef f(x: int):\n    y = x\n    return y\n")
    command = ["functions", tmp_path / "broken.py"]
    assert corpus(*command, "--license", "MIT", out=tmp_path / "out") == 1
    assert "no module could be imported" in capsys.readouterr().err
    assert corpus(*command, "--license", "MIT", out=tmp_path / "out") == 1  # a later run tries again
    capsys.readouterr()
    assert corpus(*command, out=tmp_path / "other") == 0  # its license is checked before it is imported
    shown = capsys.readouterr()
    assert "no known license" in shown.out and "cannot be imported" not in shown.out
    assert "nothing was kept" in shown.err and "1 functions\n" in shown.err
    (tmp_path / "broken.py").write_text("def f(x: int):\n    y = x\n    return y\n")
    assert corpus(*command, "--license", "MIT", "--budget", 9, out=tmp_path / "other") == 0
    assert len(entries(tmp_path / "other")) > 0


def test_skipped_modules_are_counted(tmp_path, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    code = "def {}(x: int):\n    y = x, 'ü'\n    return y\n"
    (folder / "declared.py").write_bytes(("# coding: latin-1\n" + code.format("f")).encode("latin-1"))
    (folder / "undeclared.py").write_bytes(code.format("g").encode("latin-1"))
    (folder / "my-mod.py").write_text(code.format("h"))
    (folder / "broken.py").write_text("def (:\n")
    assert corpus("functions", folder, "--license", "MIT", "--budget", 9, out=tmp_path / "out") == 0
    said = capsys.readouterr().err
    for reason in ("not in the encoding that it declares", "no name to be imported by", "does not parse"):
        assert f"1 {reason}" in said
    assert {entry.metadata["qualname"] for entry in entries(tmp_path / "out")} == {"f"}


def test_the_license_of_a_repository_is_checked_first(tmp_path, capsys):
    project = tmp_path / "project"
    (project / "pack").mkdir(parents=True)
    (project / "pack" / "__init__.py").write_text("def f(x):\n    y = x\n    z = y\n    return z\n")
    (project / "test_pack.py").write_text("from pack import f\n\ndef test_f():\n    assert f(1) == 1\n")
    (project / "pytest.ini").write_text("[pytest]\naddopts = --snapshot-update --no-such-option\n")
    out = tmp_path / "out"
    assert corpus("repository", project, out=out) == 1
    assert "no known license" in capsys.readouterr().err and not out.exists()
    assert corpus("repository", project, "--license", "MIT", out=out) == 1
    said = capsys.readouterr().err
    assert "running the tests" in said and "syrupy" in said and "--test=-o --test=addopts=" in said
    assert corpus("repository", project, "--license", "MIT", "--test=-o", "--test=addopts=", out=out) == 0
    assert [entry.metadata["function"] for entry in entries(out)] == ["pack:f"]
