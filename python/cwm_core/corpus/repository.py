"""Record what a repository's own tests make its packages do, on a machine of the environments.

```
with SandboxBackend(readable=[...]).open(Task("project", "", folder=path)) as machine:
    suite = record_repository(machine, folder, packages=["package"])
for sample in read_recording(folder, license="MIT"):
    ...
```

The plugin `cwm_core.trace.pytest_plugin` runs on the machine. The test suite can forge what comes back from the
machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shlex
import shutil
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import machines
from ..support.files import write_file
from ..trace import Trace, TraceReader, source_lines
from ..trace.calls import SUFFIX, CallSample, priority
from .unit import HASH_SEEDS

if TYPE_CHECKING:
    from ..machines.protocol import Machine
    from .sample import Sample

MAX_FILES = 256
_CALLS_KEPT = {"site": 1, "function": 20}
CHUNK_BYTES = 4 << 20  # read at once; halved if the machine keeps less output
FILE_SECONDS = 60.0
_PACKAGE = Path(__file__).parents[1]
# The package that records, which imports nothing else but the extension.
_SHIPPED = re.compile(r"trace/\w+\.py")
_EXTENSION = re.compile(r"_native\..*\.so")
_DAMAGE = (ValueError, RecursionError)  # the latter for deeply nested JSON
_STORE = re.compile(r"[A-Za-z0-9_-]{1,64}" + re.escape(SUFFIX))
# Plugins of pytest by the options that they add, which test suites configure.
_PLUGINS = {
    "--cov": "pytest-cov", "--no-cov": "pytest-cov", "-n": "pytest-xdist", "--numprocesses": "pytest-xdist",
    "--dist": "pytest-xdist", "--timeout": "pytest-timeout", "--asyncio-mode": "pytest-asyncio",
    "--benchmark-[a-z]+": "pytest-benchmark", "--reruns": "pytest-rerunfailures", "--html": "pytest-html",
    "--mypy": "pytest-mypy", "--flake8": "pytest-flake8", "--black": "pytest-black", "--ruff": "pytest-ruff",
    "--doctest-plus": "pytest-doctestplus", "--randomly-seed": "pytest-randomly", "--mpl": "pytest-mpl",
    "--snapshot-[a-z]+": "syrupy", "--ds": "pytest-django", "--reuse-db": "pytest-django", "--forked": "pytest-forked",
}  # fmt: skip
_UNPACK = """
import sys, sysconfig, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall(sys.argv[1])
print(sysconfig.get_config_var("EXT_SUFFIX"))
"""


@dataclass(frozen=True)
class Suite:
    """Result of running a test suite."""

    completed: machines.Completed
    """Exit status of pytest, and its output."""
    stores: tuple[Path, ...]
    """Recordings, one of each process. The suite controls what they hold, and they may be damaged."""
    lost: tuple[str, ...]
    """Recordings that were not copied, with the reasons."""


def record_repository(
    machine: Machine,
    folder: str | os.PathLike[str],
    *,
    packages: Sequence[str] = (),
    python: str = "python3",
    arguments: Sequence[str] = (),
    options: Mapping[str, str | int | float] | None = None,
    seed: int = 0,
    seconds: float = 600.0,
    max_bytes: int = 1 << 30,
    wheel: str | os.PathLike[str] | None = None,
) -> Suite:
    """Run `PYTHON -m pytest ARGUMENTS` at the root of the machine and copy the recordings to `folder`.

    The machine needs bash, coreutils, and a CPython with pytest and what the test suite needs. Only the recorder and
    the plugin of this package are copied to it, to a hidden folder of the repository that is removed afterwards. They
    are those of this process, so `python` must have the same version and platform; for another one, give a `wheel` of
    cwm-core.

    Args:
        machine: Machine with the repository.
        folder: Folder for the recordings.
        packages: Packages to record. If empty, those at the root of the repository or in its `src`.
        python: Shell command of the interpreter on the machine; a path with blanks is quoted, as by `shlex.quote`.
        arguments: Arguments of pytest.
        options: More options of the plugin by name: `{"per-site": 2}` is `--cwm-per-site 2`.
        seed: Seed of the choice among calls, and value of PYTHONHASHSEED.
        seconds: Maximum duration of the suite.
        max_bytes: Maximum total size of the recordings; further recordings are lost.
        wheel: Wheel of cwm-core for the interpreter of the machine.

    Raises:
        ValueError: The interpreter of the machine cannot load the recorder.
        FileExistsError: The folder has recordings already.
        SandboxError: The machine failed. A suite that fails raises nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"*{SUFFIX}")):
        raise FileExistsError(f"{folder} has recordings already; choose another folder")
    hidden = f".cwm-{secrets.token_hex(8)}"
    try:
        _send_plugin(machine, hidden, python, wheel)
        given = {"package": None, "seed": seed} | dict(options or {})
        flags = [f"--cwm-package={name}" for name in packages]
        flags += [f"--cwm-{name}={value}" for name, value in given.items() if value is not None]
        command = shlex.join(
            [*shlex.split(python), "-m", "pytest", "-p", "cwm_core.trace.pytest_plugin", *flags, *arguments]
        )
        completed = machine.run(
            f'export PYTHONHASHSEED={seed % 2**32} PYTHONPATH="$PWD/{hidden}/packages${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            f'exec {command} --cwm-record "$PWD/{hidden}/stores"',
            seconds=seconds,
        )
        stores, lost = _fetch(machine, f"{hidden}/stores", folder, max_bytes)
    finally:
        machine.run(f"rm -rf {hidden}", seconds=FILE_SECONDS)
    return Suite(completed, tuple(stores), tuple(lost))


def recorded_twice(
    open_machine: Callable[[], Machine],
    folder: str | os.PathLike[str],
    *,
    options: Mapping[str, str | int | float],
    license: str | None = None,
    report: Callable[[str], None] = lambda text: None,
    **suite: Any,
) -> Iterator[Sample]:
    """Run a test suite under two hash seeds, each on its own machine, and yield the samples with both recordings.

    The recordings stay in `folder`. A later call with the same settings uses them.

    Args:
        open_machine: Opens a machine.
        folder: Folder for the recordings.
        options: Options of the plugin, as in `record_repository`; `seed` is the seed of the choice among calls.
        license: SPDX expression of the license of the repository.
        report: Called with a line of text before each run.
        **suite: More arguments of `record_repository`.

    Raises:
        ValueError: The test suite did not run or gave no recording; also what `record_repository` raises.
    """
    runs = [Path(folder) / str(seed) for seed in HASH_SEEDS]
    _forget_others(Path(folder), json.dumps({"options": dict(options), **suite}, sort_keys=True, default=str))
    for seed, run in zip(HASH_SEEDS, runs, strict=True):
        if run.is_dir():
            continue
        partial = run.with_name(f"{run.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        report(f"running the tests, under hash seed {seed}")
        machine = open_machine()
        try:
            result = record_repository(machine, partial, seed=seed, options=options, **suite)
        finally:
            machine.close()
        if not result.stores:
            said = (result.completed.stdout + result.completed.stderr).decode(errors="replace").strip()
            output = said[-1000:] or "none"
            raise ValueError(f"the test suite gave no recording; its output: {output}{_hint(said)}")
        partial.rename(run)
    per_site, per_function = (int(options.get(f"per-{name}", default)) for name, default in _CALLS_KEPT.items())
    second = read_recording(runs[1], per_site=per_site, per_function=per_function)
    again = {sample.id: sample.trace for sample in second}
    first = read_recording(runs[0], license=license, per_site=per_site, per_function=per_function)
    for sample in first:
        yield replace(sample, again=again.get(sample.id))


def _forget_others(folder: Path, settings: str) -> None:
    """Remove recordings that were made with other settings, and write these settings."""
    path = folder / "settings.json"
    if path.exists() and path.read_text(encoding="utf-8") == settings:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, settings)


def _hint(said: str) -> str:
    """Return what to do if pytest does not know an option or a plugin that the repository configures."""
    if not re.search(r"unrecognized arguments|Missing required plugins|Error importing plugin|unknown hook", said):
        return ""
    plugins = [plugin for option, plugin in _PLUGINS.items() if re.search(rf"(?<![\w-]){option}(?![\w-])", said)]
    return (
        f". Its configuration needs a plugin of pytest that is not installed ({', '.join(plugins) or 'see above'}). "
        "Install the plugin where the tests run, or ignore the configured options: --test=-o --test=addopts="
    )


def read_recording(
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    per_site: int = _CALLS_KEPT["site"],
    per_function: int = _CALLS_KEPT["function"],
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[Sample]:
    """Yield a sample of the calls that the processes of a test suite recorded, in the order of their ids.

    The `id` of a sample names the test, the function, the call site, and the number of the call. `code` is the file
    that the call entered. `call` shows the arguments as they were recorded, and is an expression if they are. With the
    numbers that the suite was recorded with, the result does not depend on how its tests were spread over processes.
    Recordings that are damaged or that the plugin did not write are left out.

    Args:
        folder: Folder with the recordings.
        license: License to add to the provenance.
        per_site: Calls kept of each call site.
        per_function: Calls kept of each function.
        provenance: Provenance to add to that of the plugin.

    Raises:
        OSError: The folder cannot be read.
    """
    from .sample import Sample

    found: list[tuple[int, str, str, str, Path, int]] = []
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        with contextlib.suppress(ValueError):
            reader = TraceReader(path)
            for index in range(len(reader)):
                if (call := _call(reader, index)) is not None:
                    found.append((*call, path, index))
    kept, sample = {}, CallSample(per_site, per_function)
    for rank, function, site, key, path, index in sorted(found):
        if key not in kept and sample.add(function, site, rank):
            kept[key] = (path, index)
    readers: dict[Path, TraceReader] = {}
    for key, (path, index) in sorted(kept.items()):
        reader = readers.setdefault(path, TraceReader(path))
        try:
            trace, metadata = reader[index], reader.metadata(index)
        except _DAMAGE:
            continue
        if len(trace) and trace.context:
            described = metadata | dict(provenance or {}) | ({"license": license} if license is not None else {})
            yield Sample(key, "".join(source_lines(trace.context)), _expression(trace, metadata), trace, described)


def _send_plugin(machine: Machine, hidden: str, python: str, wheel: str | os.PathLike[str] | None) -> None:
    """Copy the recorder and the plugin to where the interpreter of the machine can import them."""
    files = _own_files() if wheel is None else _wheel_files(wheel)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tree:
        for name, data in {**files, "__init__.py": b""}.items():  # without the imports of this package's own
            entry = tarfile.TarInfo(f"cwm_core/{name}")
            entry.size, entry.mode = len(data), 0o755
            tree.addfile(entry, io.BytesIO(data))
    command = f"mkdir -p {hidden}/stores && {python} -c {shlex.quote(_UNPACK)} {hidden}/packages"
    done = machine.run(command, stdin=archive.getvalue(), seconds=FILE_SECONDS)
    if done.exit_code != 0:
        said = done.stderr[-500:].decode(errors="replace").strip()
        raise ValueError(f"{python} does not run on the machine: {said or done.exceeded or done.exit_code}")
    suffix = done.stdout.decode(errors="replace").strip()
    if f"_native{suffix}" not in files and "_native.abi3.so" not in files:
        raise ValueError(f"{python} on the machine loads modules *{suffix}: give a wheel of cwm-core for that Python")


def _own_files() -> dict[str, bytes]:
    sources = (file.relative_to(_PACKAGE).as_posix() for file in _PACKAGE.glob("trace/*.py"))
    names = [*filter(_SHIPPED.fullmatch, sources), f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"]
    return {name: (_PACKAGE / name).read_bytes() for name in names}


def _wheel_files(wheel: str | os.PathLike[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        files = {name.removeprefix("cwm_core/"): name for name in archive.namelist() if name.startswith("cwm_core/")}
        chosen = {name for name in files if _SHIPPED.fullmatch(name) or _EXTENSION.fullmatch(name)}
        return {name: archive.read(files[name]) for name in chosen}


def _fetch(machine: Machine, source: str, folder: Path, max_bytes: int) -> tuple[list[Path], list[str]]:
    """Copy the recordings to a folder here, without trusting what the machine says about them."""
    listed = machine.run(f"cd {source} && stat -c '%s %n' -- *{SUFFIX}", seconds=FILE_SECONDS)
    stores, lost = [], []
    for line in listed.stdout.decode(errors="replace").splitlines()[:MAX_FILES]:
        size, _, name = line.partition(" ")
        if not size.isdecimal() or len(size) > 18 or not _STORE.fullmatch(name):
            lost.append(f"{line[:200]!r} is not a trace store")
        elif int(size) > max_bytes:
            lost.append(f"{name} has {size} bytes, more than the {max_bytes} left of the limit")
        else:
            max_bytes -= int(size)
            with open(folder / name, "xb") as file:
                if _copy(machine, f"{source}/{name}", int(size), file):
                    stores.append(folder / name)
                    continue
            os.unlink(folder / name)
            lost.append(f"{name} could not be read")
    return stores, lost


def _copy(machine: Machine, path: str, size: int, file: io.BufferedWriter) -> bool:
    """Copy this many bytes of a file of the machine, in pieces, and return whether all arrived."""
    offset, chunk = 0, min(CHUNK_BYTES, size)
    while offset < size:
        wanted = min(chunk, size - offset)
        command = f"tail -c +{offset + 1} -- {path} | head -c {wanted}"
        done = machine.run(command, seconds=FILE_SECONDS)
        if len(done.stdout) == wanted and not done.truncated:
            file.write(done.stdout)
            offset += wanted
        elif done.truncated and chunk > 1:
            chunk //= 2
        else:
            return False
    return True


def _call(reader: TraceReader, index: int) -> tuple[int, str, str, str] | None:
    """Return the priority of a recorded call, its function, site, and key; None if the plugin did not write it."""
    try:
        key, metadata = reader.key(index), reader.metadata(index)
    except _DAMAGE:
        return None
    texts = [text for name in ("test", "function", "site") if isinstance(text := metadata.get(name), str)]
    seed, number = metadata.get("seed"), metadata.get("call")
    if key is None or len(texts) < 3 or type(seed) is not int or type(number) is not int:
        return None
    test, function, site = texts
    return priority(seed, test, function, site, number), function, site, key


def _expression(trace: Trace, metadata: Mapping[str, Any]) -> str:
    """Return the call with its arguments at the time that it began."""
    arguments = ", ".join(f"{name}={text}" for name, text in (trace.state(0) or {}).items())
    return f"{metadata['function'].rpartition(':')[2]}({arguments})"
