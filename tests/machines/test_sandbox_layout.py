"""An environment is shown in the sandbox wherever it lies, and whatever path leads to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cwm_core
import pytest
from cwm_core import machines

REFUSAL = machines.bubblewrap_refusal()
pytestmark = pytest.mark.skipif(REFUSAL is not None, reason=f"no bubblewrap: {REFUSAL}")

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
# Records a call of a module next to a program that deletes /tmp, which is where the environment is.
SCRIPT = """
import dataclasses, json, sys
from cwm_core.corpus.sandbox import LIMITS, Run, RecordingSandbox
from cwm_core.machines import run_python
code = "import shutil\\ndef f():\\n    shutil.rmtree('/tmp', ignore_errors=True)\\n"
limits = dataclasses.replace(LIMITS, seconds=5)
with RecordingSandbox(paths=[sys.argv[1]], preload="shapes.square", limits=limits) as worker:
    deletes, calls = Run(code, "f()"), Run("", "area(3)", module="shapes.square")
    calls = dataclasses.replace(calls, code=open(sys.argv[1] + "/shapes/square.py").read())
    answers = list(worker.run([calls, deletes, calls]))
said = run_python("import sys; print(sys.prefix)", sandbox="bubblewrap").stdout.decode()
print(json.dumps([[a.reason, a.trace and a.trace.result] for a in answers] + [said]))
"""


def environment(folder: Path, home: Path | None = None) -> Path:
    """Make a virtual environment with this package in it, and the modules that it needs from the running one."""
    base = Path(home or os.path.realpath(sys.base_prefix))
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(base / "bin" / os.path.basename(os.path.realpath(sys.executable)))
    (folder / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    site = folder / SITE
    site.mkdir(parents=True)
    ours = os.path.dirname(cwm_core.__file__)
    shutil.copytree(ours, site / "cwm_core", ignore=shutil.ignore_patterns("__pycache__"))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    (site / "shapes").mkdir()
    (site / "shapes/__init__.py").write_text("")
    (site / "shapes/square.py").write_text("def area(side):\n    return side * side\n")
    return folder


def in_scratch(tmp_path):
    return environment(tmp_path / "env")


def through_a_link(tmp_path):
    environment(tmp_path / "real" / "env")
    (tmp_path / "link").symlink_to("real")
    return tmp_path / "link" / "env"


def through_parent_folders(tmp_path):
    environment(tmp_path / "env")
    (tmp_path / "other").mkdir()
    return tmp_path / "other" / ".." / "env"


def installation_behind_a_link(tmp_path):
    (tmp_path / "3.x").symlink_to(os.path.realpath(sys.base_prefix))
    return environment(tmp_path / "env", home=tmp_path / "3.x")


def with_blanks_and_umlauts(tmp_path):
    return environment(tmp_path / "Über uns" / "env")


@pytest.mark.parametrize(
    "layout",
    [in_scratch, through_a_link, through_parent_folders, installation_behind_a_link, with_blanks_and_umlauts],
)
def test_an_environment_is_shown_wherever_it_lies(layout, tmp_path):
    folder = layout(tmp_path)
    command = [f"{folder}/bin/python", "-c", SCRIPT, f"{folder}/{SITE}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    before, deletes, after, prefix = json.loads(done.stdout)
    assert [before, deletes, after] == [[None, "9"], [None, "None"], [None, "9"]]
    assert os.path.realpath(prefix.strip()) == os.path.realpath(folder)


def test_a_folder_that_programs_delete_holds_links_alone(tmp_path):
    for number in range(50):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
    code = "import os\nprint(sum(len(files) + len(dirs) for _, dirs, files in os.walk('/tmp')))"
    shown = tmp_path.relative_to("/tmp").parts if tmp_path.is_relative_to("/tmp") else ()
    argv = [sys.executable, "-I", "-c", code + f"\nprint(len(os.listdir({str(tmp_path / 'data')!r})))"]
    with_data = machines.run(argv, readable=[tmp_path / "data"]).stdout.decode().split()
    without = machines.run([sys.executable, "-I", "-c", code]).stdout.decode().split()
    assert with_data[1] == "50"
    assert int(with_data[0]) - int(without[0]) <= len(shown) + 1


def test_a_writable_folder_in_what_is_shown_stays_writable(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "data").write_text("data")
    code = "open('new', 'w').write('x'); print(open('../data').read())"
    done = machines.run([sys.executable, "-c", code], folder=tmp_path / "work", readable=[tmp_path])
    assert done.stdout == b"data\n"
    assert (tmp_path / "work/new").read_text() == "x"


@pytest.mark.parametrize("name", ["localhost", "sandbox"])
def test_names_of_the_machine_itself_resolve(name):
    code = f"import socket\nprint(socket.gethostname(), socket.gethostbyname({name!r}))"
    assert machines.run_python(code).stdout == b"sandbox 127.0.0.1\n"


def test_a_server_on_localhost_answers():
    code = (
        "import socket\nserver = socket.create_server(('localhost', 0))\n"
        "client = socket.create_connection(('localhost', server.getsockname()[1]), 5)\n"
        "server.accept()[0].sendall(b'hello')\nprint(client.recv(5), socket.getservbyname('http'))"
    )
    assert machines.run_python(code).stdout == b"b'hello' 80\n"
