"""Implement the file tools with commands of a machine.

All file access happens inside the machine, so that links planted by a program cannot lead outside of it. The machine
needs only bash and the coreutils (GNU or BusyBox).
"""

import shlex
from collections.abc import Callable, Mapping

from .._native import CwmError
from . import process

MAX_FILE_BYTES = 16 << 20
MAX_DIFF_BYTES = 1 << 20
SECONDS = 60.0

OUTSIDE, NO_FILE, TOO_LARGE, EXISTS, NO_FOLDER = range(41, 46)  # exit codes of the scripts
LOCATE = f"""
root=$(pwd -P) full=$(readlink -f -- "$1")
case $full in ''|"$root"/?*) ;; *) exit {OUTSIDE} ;; esac
"""
READ = f"""{LOCATE}
[ -f "$full" ] || exit {NO_FILE}
[ $(($(wc -c <"$full"))) -le "$2" ] || exit {TOO_LARGE}
cat -- "$full"
"""
# Through a second file, so that a full disk does not destroy the old content.
WRITE = f"""{LOCATE}
new=$(mktemp "$full.XXXXXX") || exit
cat >"$new" && cat "$new" >"$full"
code=$?
rm -f -- "$new"
exit $code
"""
CREATE = f"""{LOCATE}
if [ -e "$1" ] || [ -L "$1" ]; then exit {EXISTS}; fi
case $1 in */*) [ -d "${{1%/*}}/" ] || exit {NO_FOLDER} ;; esac
set -C
: >"$full" || exit
cat >|"$full" || {{ rm -f -- "$full"; exit 1; }}
"""

Run = Callable[..., process.Completed]


class Refusal(CwmError):
    """A request that cannot be fulfilled; the text says why and what to do instead."""


def use(run: Run, root: str, tool: str, path: str, **arguments: str | None) -> tuple[bool, str]:
    """Use a file tool, and return whether it succeeded and the text for the model.

    Args:
        run: `Machine.run`.
        root: `Machine.root`.
        tool: "edit", "create", or "submit".
        path: The path as the model wrote it.
        **arguments: edit takes `search` and `replace` (None removes the lines); create takes `content`.

    Returns:
        For submit, the text is the diff, with surrogates for bytes that are not UTF-8.
    """
    tools: dict[str, Callable[..., str]] = {"edit": edit, "create": create, "submit": submit}
    try:
        return True, tools[tool](_File(run, root, path), **arguments)
    except Refusal as refusal:
        return False, str(refusal)


class _File:
    """A file of a machine, at a path that a model wrote."""

    def __init__(self, run: Run, root: str, path: str) -> None:
        if "\0" in path:
            raise Refusal("A path cannot hold a null character.")
        self._run, self.path = run, path
        self._refusals = {OUTSIDE: f"{path} is outside the repository; give a path relative to its root, {root}."}

    def do(
        self,
        script: str,
        *arguments: str,
        refusals: Mapping[int, str],
        stdin: bytes = b"",
        output_bytes: int | None = None,
    ) -> bytes:
        """Run a script on the file and return its output. Raise `Refusal` with the text for the exit code."""
        command = shlex.join(["bash", "-c", script, "cwm", self.path, *arguments])
        done = self._run(command, stdin=stdin, seconds=SECONDS, output_bytes=output_bytes)
        if done.exit_code == 0:
            return done.stdout
        end = f"limit {done.exceeded}" if done.exceeded else f"exit code {done.exit_code}"
        failed = f"{self.path}: {done.stderr[-500:].decode(errors='replace').strip()} ({end})."
        texts = self._refusals | dict(refusals)
        raise Refusal(failed if done.exit_code is None else texts.get(done.exit_code, failed))

    def read(self, limit: int, refusals: Mapping[int, str]) -> bytes:
        """Return the content, which may have at most `limit` bytes."""
        return self.do(READ, str(limit), refusals=refusals, output_bytes=2 * limit)


def edit(file: _File, search: str, replace: str | None) -> str:
    """Replace lines that occur exactly once; None removes them."""
    path = file.path
    refusals = {
        NO_FILE: f"{path} is not a file; edit changes existing files, create makes new ones.",
        TOO_LARGE: f"{path} is larger than {MAX_FILE_BYTES} bytes; change it with bash.",
    }
    content = file.read(MAX_FILE_BYTES, refusals)
    # The last newline ends a line and does not begin another.
    end = b"\n" if content.endswith(b"\n") else b""
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    wanted = _encoded(search).split(b"\n")
    found = _occurrences(lines, wanted)
    if not found:
        hint = ", indentation and trailing blanks included. Look at the file again with bash."
        if _occurrences([line.rstrip(b"\r") for line in lines], [line.rstrip(b"\r") for line in wanted]):
            hint = "; they differ in their ends, which are CRLF in one of them. Change such a file with bash."
        raise Refusal(f"The SEARCH lines do not occur in {path}; they must match whole lines exactly{hint}")
    if len(found) > 1:
        where = ", ".join(str(at + 1) for at in found[:10])
        raise Refusal(f"The SEARCH lines occur {len(found)} times in {path} (lines {where}); add lines around them.")
    lines[found[0] : found[0] + len(wanted)] = [] if replace is None else _encoded(replace).split(b"\n")
    file.do(WRITE, stdin=b"\n".join(lines) + end if lines else b"", refusals={})
    return f"Replaced {len(wanted)} line(s) of {path} from line {found[0] + 1} on."


def create(file: _File, content: str) -> str:
    """Create a file in an existing folder."""
    refusals = {
        EXISTS: f"{file.path} exists already; create makes new files, edit changes existing ones.",
        NO_FOLDER: f"The folder of {file.path} does not exist; make it with bash first.",
    }
    file.do(CREATE, stdin=_encoded(content), refusals=refusals)
    return f"Created {file.path}."


def submit(file: _File) -> str:
    """Return the text of the diff to submit."""
    path = file.path
    form = f"submit takes the path of a diff, as `git diff > {path}` writes it."
    refusals = {
        NO_FILE: f"{path} is not a file; {form}",
        TOO_LARGE: f"{path} is larger than {MAX_DIFF_BYTES} bytes; submit the diff of your changes alone.",
    }
    text = file.read(MAX_DIFF_BYTES, refusals)
    if not text.startswith(b"diff"):
        state = "does not start with 'diff'" if text else "is empty"
        raise Refusal(f"{path} {state}; {form}")
    return text.decode(errors="surrogateescape")


def _occurrences(lines: list[bytes], wanted: list[bytes]) -> list[int]:
    """Return the indexes at which the wanted lines occur."""
    first = (at for at, line in enumerate(lines) if line == wanted[0])
    return [at for at in first if lines[at : at + len(wanted)] == wanted]


def _encoded(text: str) -> bytes:
    """Encode text of a model as UTF-8."""
    return text.encode(errors="replace")
