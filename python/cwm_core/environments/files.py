"""The file tools, run inside the sandbox: a link that a program planted leads nowhere from there.

Run as ``python -I -c SOURCE`` in the work tree with one JSON object on standard input: `tool`, `path`, and for edit
`search` and `replace`, for create `content`. Prints what the model is told and exits with 0, or 1 for a refusal.
"""

import json
import os
import sys
from typing import Any

MAX_DIFF_BYTES = 1 << 20


class Refusal(Exception):
    """The request cannot be done; says why and what would be right."""


def inside(path: str) -> str:
    """Absolute path of a file in the work tree, the current folder."""
    full, root = os.path.realpath(path), os.path.realpath(os.curdir)
    if not full.startswith(root + os.sep):
        raise Refusal(f"{path} is outside the repository; give a path relative to its root, {root}.")
    return full


def edit(path: str, search: str, replace: str) -> str:
    """Replace lines that occur exactly once."""
    full = inside(path)
    if not os.path.isfile(full):
        raise Refusal(f"{path} is not a file; edit changes existing files, create makes new ones.")
    with open(full, "rb") as file:
        lines = file.read().split(b"\n")
    wanted = encoded(search).split(b"\n")
    found = [at for at in range(len(lines) - len(wanted) + 1) if lines[at : at + len(wanted)] == wanted]
    if not found:
        hint = ", indentation and trailing blanks included. Look at the file again with bash."
        raise Refusal(f"The SEARCH lines do not occur in {path}; they must match whole lines exactly{hint}")
    if len(found) > 1:
        where = ", ".join(str(at + 1) for at in found[:10])
        raise Refusal(f"The SEARCH lines occur {len(found)} times in {path} (lines {where}); add lines around them.")
    lines[found[0] : found[0] + len(wanted)] = encoded(replace).split(b"\n") if replace else []
    with open(full, "wb") as file:
        file.write(b"\n".join(lines))
    return f"Replaced {len(wanted)} line(s) of {path} from line {found[0] + 1} on."


def create(path: str, content: str) -> str:
    """Write a file that does not exist into a folder that does."""
    full = inside(path)
    if os.path.lexists(full):
        raise Refusal(f"{path} exists already; create makes new files, edit changes existing ones.")
    if not os.path.isdir(os.path.dirname(full)):
        raise Refusal(f"The folder of {path} does not exist; make it with bash first.")
    with open(full, "xb") as file:
        file.write(encoded(content))
    return f"Created {path}."


def submit(path: str) -> str:
    """The text of a diff, to be submitted."""
    full = inside(path)
    if not os.path.isfile(full):
        raise Refusal(f"{path} is not a file; submit takes the path of a diff, as `git diff > {path}` writes it.")
    with open(full, "rb") as file:
        text = file.read(MAX_DIFF_BYTES + 1)
    if len(text) > MAX_DIFF_BYTES:
        raise Refusal(f"{path} is larger than {MAX_DIFF_BYTES} bytes; submit the diff of your changes alone.")
    if not text.startswith(b"diff"):
        state = "does not start with 'diff'" if text else "is empty"
        raise Refusal(f"{path} {state}; submit takes the path of a diff, as `git diff > {path}` writes it.")
    return text.decode(errors="surrogateescape")


def encoded(text: str) -> bytes:
    """UTF-8 of a text that a model wrote."""
    return text.encode(errors="replace")


def main() -> int:
    """Serve one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    tool = {"edit": edit, "create": create, "submit": submit}[request.pop("tool")]
    try:
        message, code = tool(**request), 0
    except Refusal as error:
        message, code = str(error), 1
    except (OSError, ValueError) as error:
        message, code = f"{request['path']}: {error}.", 1
    sys.stdout.buffer.write(message.encode(errors="surrogateescape"))
    return code


if __name__ == "__main__":
    sys.exit(main())
