"""Apply the allowed changes of a submission to a fresh machine."""

from __future__ import annotations

import itertools
import re
import secrets
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .. import machines
from .._native import CwmError
from ..machines import Machine
from ..machines.applying import GIT
from ..machines.files import MAX_DIFF_BYTES
from .outcomes import hidden_names, is_pytest
from .patches import touched
from .protection import Rules
from .tasks import Task

# These scripts share a folder $box in the repository, whose random name no diff can contain. The diff is applied to an
# index of the files that it names, so that nothing is written through a link, and only `INSTALL` writes files.
READ = f"""
mkdir "$box" && cat > "$box/diff" || exit
{GIT}
new_repository && git apply --numstat -z "$box/diff"
"""
STAGE = f"""
{GIT}
sources=() wanted=()
while IFS= read -r -d '' path && [ -n "$path" ]; do sources+=("$path"); done
while IFS= read -r -d '' pattern; do wanted+=("--include=$pattern"); done
stage() {{
  rm -f "$GIT_DIR/index"
  for path in "${{sources[@]}}"; do
    if [ -f "$path" ] || [ -L "$path" ]; then printf '%s\\0' "$path"; fi
  done | xargs -0 git --literal-pathspecs add -f --ignore-errors -- 2> /dev/null
  tree=$(git write-tree) && git apply --cached --whitespace=nowarn "${{wanted[@]}}" "$box/diff"
}}
either_way stage && git diff-index --cached --raw -z --no-renames "$tree"
"""
LOOK = """
while IFS= read -r -d '' folder && [ -n "$folder" ]; do
  if [ -d "$folder" ]; then
    if [ -f "$folder/__init__.py" ]; then printf 'package %s\\0' "$folder"; else printf 'folder %s\\0' "$folder"; fi
  fi
done
while IFS= read -r -d '' module; do if [ -f "$module" ]; then printf 'module %s\\0' "$module"; fi; done
"""
INSTALL = f"""
{GIT}
while IFS= read -r -d '' path && [ -n "$path" ]; do rm -f -- "$path" || exit; done
git checkout-index -z --stdin
"""
_WORDS = "the diff does not apply"


@dataclass(frozen=True)
class Applied:
    """Result of applying a submission."""

    problem: str | None = None
    """Reason that nothing was applied, or None."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Paths that the submission may not change, with reasons. The tree has their original content."""

    def notes(self) -> str:
        """Return the first few ignored paths and their reasons in one line."""
        shown = [f"{path} ({why})" for path, why in itertools.islice(self.ignored.items(), 8)]
        more = len(self.ignored) - len(shown)
        return ", ".join([*shown, *([f"and {more} more"] if more else [])])


def apply_submission(machine: Machine, task: Task, diff: bytes, *, seconds: float) -> Applied:
    """Apply the changes of a diff that the task's `Rules` allow to a fresh machine.

    Changes that are not allowed are ignored, whether they apply or not. `seconds` limits each command.
    """
    box = f".cwm-{secrets.token_hex(8)}"
    try:
        return _Submission(machine, task, box, seconds).apply(diff)
    finally:
        machine.run(f"rm -rf {box}", seconds=seconds)


class _Failed(CwmError):
    """A command failed. The message contains the consequence and the output."""


class _Submission:
    """Steps of `apply_submission`."""

    def __init__(self, machine: Machine, task: Task, box: str, seconds: float) -> None:
        self._machine, self._task, self._box, self._seconds = machine, task, box, seconds
        self._rules = Rules.of(task)
        self._ignored: dict[str, str] = {}

    def apply(self, diff: bytes) -> Applied:
        try:
            wanted = [path for path in self._named(diff) if self._allowed(path)]
            changes = self._staged(wanted, diff) if wanted else {}
            self._ignore_shadows([path for path, status in changes.items() if status == "A"])
            changes = {path: status for path, status in changes.items() if path not in self._ignored}
            self._install(changes)
        except _Failed as failed:
            return Applied(str(failed), self._ignored)
        return Applied(None, self._ignored)

    def _named(self, diff: bytes) -> list[str]:
        """Return the paths that a diff changes, according to git."""
        said = self._run(READ, diff).split("\0")[:-1]
        return list(dict.fromkeys(line.split("\t", 2)[2] for line in said))

    def _allowed(self, path: str) -> bool:
        if reason := self._rules.refusal(path):
            self._ignored[path] = reason
        return reason is None

    def _staged(self, wanted: Sequence[str], diff: bytes) -> dict[str, str]:
        """Apply the wanted changes to an index; return git's status letter of each allowed path that changed."""
        sources = dict.fromkeys([*wanted, *touched(diff.decode(errors="surrogateescape"))])
        patterns = [re.sub(r"([\\*?\[])", r"\\\1", path) for path in wanted]
        said = self._run(STAGE, _joined(sources) + b"\0" + _joined(patterns)).split("\0")[:-1]
        changes = {}
        for entry, path in zip(said[::2], said[1::2], strict=True):
            old, new, _, _, status = entry.removeprefix(":").split(" ")
            if not {old, new} <= {"000000", "100644", "100755"}:
                self._ignored[path] = "a link"
            elif self._allowed(path):
                changes[path] = status
        return changes

    def _ignore_shadows(self, new: Sequence[str]) -> None:
        """Ignore new modules that could be imported in place of installed ones."""
        folders = dict.fromkeys(str(folder) for path in new for folder in PurePosixPath(path).parents)
        found = self._look(folders, [])
        packages = {name: kind == "package" for kind, name in found}
        names = {path: name for path in new if (name := self._rules.import_name(path, packages))}
        if not names:
            return
        own = {name for _, name in self._look([], [f"{name}.py" for name in dict.fromkeys(names.values())])}
        names = {path: name for path, name in names.items() if f"{name}.py" not in own}
        stems = {PurePosixPath(name).name for name in names.values()}
        hidden = self._hidden(sorted(stems)) if stems else set()
        for path, name in names.items():
            if hidden is None:
                self._ignored[path] = "a new module outside of a package, which could hide an installed one"
            elif PurePosixPath(name).name in hidden:
                self._ignored[path] = "a new module that could hide an installed one"

    def _hidden(self, stems: Sequence[str]) -> set[str] | None:
        if is_pytest(self._task.test_command):
            return hidden_names(self._machine, self._task.test_command, stems, seconds=self._seconds)
        return {stem for stem in stems if stem in sys.stdlib_module_names or stem.startswith("__")}

    def _look(self, folders: Iterable[str], modules: Iterable[str]) -> list[tuple[str, str]]:
        said = self._run(LOOK, _joined(folders) + b"\0" + _joined(modules))
        return [(line.partition(" ")[0], line.partition(" ")[2]) for line in said.split("\0")[:-1]]

    def _install(self, changes: Mapping[str, str]) -> None:
        removed = [path for path, status in changes.items() if status != "A"]
        written = [path for path, status in changes.items() if status != "D"]
        self._run(INSTALL, _joined(removed) + b"\0" + _joined(written))

    def _run(self, script: str, stdin: bytes) -> str:
        command = f"box={shlex.quote(self._box)}\n{script}"
        done = self._machine.run(command, stdin=stdin, seconds=self._seconds, output_bytes=4 * MAX_DIFF_BYTES)
        if done.exit_code != 0 or done.truncated:
            raise _Failed(failure(_WORDS, done))
        return done.stdout.decode(errors="surrogateescape")


def _joined(paths: Iterable[str]) -> bytes:
    return b"".join(path.encode(errors="surrogateescape") + b"\0" for path in paths)


def failure(what: str, result: machines.Completed) -> str:
    """Return a message with the failure, the way the command ended, and the end of its output."""
    end = f"limit {result.exceeded}" if result.exceeded else f"exit code {result.exit_code}"
    said = (result.stdout + result.stderr)[-2000:].decode(errors="backslashreplace")
    return f"{what} ({end}): {said}"
