"""A Docker image to test in, built from programs of this machine: bash, coreutils, git, and this Python with pytest.

Nothing is pulled. It is built once, in some seconds, and again when what it is made of has changed; old ones stay, for
other checkouts may use them.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from cwm_core import _native

REPOSITORY = "cwm-core-test"
PROGRAMS = """
awk base64 basename bash cat chmod chown cmp cp cut date dd diff dirname du env expr false find git grep gzip
head id kill ln ls mkdir mkfifo mktemp mv nohup od patch printf ps pwd readlink realpath rm rmdir sed seq
setsid sha256sum sleep sort stat tail tar tee test timeout touch tr true uniq wc whoami xargs yes
"""
PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
UNUSED = {"test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
PASSWD = "root:x:0:0::/:/bin/bash\nnobody:x:65534:65534::/:/bin/bash\n"


@functools.cache
def refusal() -> str | None:
    """Return why tests cannot use Docker here, or None if they can."""
    try:
        import docker
    except ImportError:
        return "the Python package docker is not installed"
    if sys.platform != "linux":
        return "the image is made of Linux programs"
    try:
        docker.from_env().close()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


@functools.cache
def image() -> str:
    """Return the name of the image. Skip the test if there is no engine."""
    import docker

    if (reason := refusal()) is not None:
        pytest.skip(reason)
    files = _files()
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name, source in sorted(files.items()):
        digest.update(f"{name} {source.stat().st_size} {source.stat().st_mtime_ns}\n".encode())
    tag = digest.hexdigest()[:16]
    client = docker.from_env()
    try:
        client.api.inspect_image(f"{REPOSITORY}:{tag}")
    except docker.errors.ImageNotFound:
        client.api.import_image_from_data(_archive(files), repository=REPOSITORY, tag=tag)
    finally:
        client.close()
    return f"{REPOSITORY}:{tag}"


def _files() -> dict[str, Path]:
    """The image's regular files: path there, path here."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = f"usr/local/lib/{version}"
    binaries = {f"usr/bin/{name}": Path(found) for name in PROGRAMS.split() if (found := shutil.which(name))}
    binaries[f"usr/local/bin/{version}"] = Path(os.path.realpath(sys.executable))
    files = dict(binaries)
    _add_tree(files, library, Path(sysconfig.get_path("stdlib")))
    for package in PACKAGES:
        origin = Path(importlib.util.find_spec(package).origin)
        if origin.name == "__init__.py":
            _add_tree(files, f"{library}/site-packages/{package}", origin.parent)
        else:
            files[f"{library}/site-packages/{origin.name}"] = origin
    for name in ("pluggy", "pytest"):  # pytest asks for their versions
        facts = [file for file in importlib.metadata.files(name) if file.name == "METADATA"]
        files |= {f"{library}/site-packages/{file}": Path(file.locate()) for file in facts}
    linked = [*binaries.values(), *(path for name, path in files.items() if "/lib-dynload/" in name)]
    linked.append(Path(_native.__file__))  # brought when a suite is recorded
    said = subprocess.run(["ldd", *linked], capture_output=True, text=True, check=False).stdout
    for path in set(re.findall(r"(/\S+) \(0x", said)):
        files[path.lstrip("/")] = Path(path)
    return files


def _add_tree(files: dict[str, Path], name: str, folder: Path) -> None:
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in UNUSED and not f.startswith("config-")]
        inside = Path(name, Path(parent).relative_to(folder))
        files |= {str(inside / f): Path(parent, f) for f in names if Path(parent, f).is_file()}


def _archive(files: dict[str, Path]) -> bytes:
    """The root file system."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    links = {"bin/bash": "/usr/bin/bash", "bin/sh": "/usr/bin/bash", "usr/local/bin/python": version,
             "usr/local/bin/python3": version}  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, source in sorted(files.items()):
            entry = tar.gettarinfo(os.path.realpath(source), name)
            entry.type, entry.linkname = tarfile.REGTYPE, ""  # two names of one file are two files
            entry.size = source.stat().st_size
            entry.uid = entry.gid = 0
            with open(source, "rb") as file:
                tar.addfile(entry, file)
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name in ("tmp", "proc", "dev", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(PASSWD)
        tar.addfile(entry, io.BytesIO(PASSWD.encode()))
    return buffer.getvalue()
