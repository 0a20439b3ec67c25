"""Make and compare unified diffs."""

import difflib
import re

CONTEXT = 3
CHARACTERS = 4000
"""Maximum length of changes to compare by characters, which takes quadratic time; longer ones are compared by lines."""

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def make_diff(path: str, before: bytes, after: bytes) -> str:
    """Return the diff of a file for `git apply`, with a single hunk; "" if the contents are equal.

    Raises:
        ValueError: git would quote the path, or one content is empty, which git treats as no file.
    """
    if re.search(r'[\x00-\x1f"\\\x7f-\U0010ffff]', path):
        raise ValueError(f"cannot make a diff of a path with special characters: {path!r}")
    if not before or not after:
        raise ValueError(f"cannot make a diff of the empty file {path}")
    old, new = _lines(before), _lines(after)
    if old == new:
        return ""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    start, shared = max(head - CONTEXT, 0), min(tail, CONTEXT)
    end_old, end_new = len(old) - tail, len(new) - tail
    hunk = [
        *((" ", line) for line in old[start:head]),
        *(("-", line) for line in old[head:end_old]),
        *(("+", line) for line in new[head:end_new]),
        *((" ", line) for line in old[end_old : end_old + shared]),
    ]
    sizes = (end_old + shared - start, end_new + shared - start)
    header = f"@@ -{start + 1},{sizes[0]} +{start + 1},{sizes[1]} @@\n"
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n{header}" + "".join(
        mark + (line if line.endswith("\n") else line + "\n\\ No newline at end of file\n") for mark, line in hunk
    )


def _lines(content: bytes) -> list[str]:
    text = content.decode(errors="surrogateescape")
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def changes(diff: str) -> dict[str, list[str]]:
    """Return the removed and added lines, with their signs, by the path of the file (the old path of a removed file).

    Text that is not a unified diff has no changes. Never raises.
    """
    found: dict[str, list[str]] = {}
    path, old = "", ""
    left_old = left_new = 0
    for line in diff.split("\n"):
        if left_old > 0 or left_new > 0:
            left_old -= line[:1] in ("-", " ", "")
            left_new -= line[:1] in ("+", " ", "")
            if line[:1] in ("-", "+"):
                found.setdefault(path, []).append(line)
        elif line.startswith("--- "):
            old = _name(line)
        elif line.startswith("+++ "):
            path = old if _name(line) == "/dev/null" else _name(line)
        elif hunk := _HUNK.match(line):
            left_old, left_new = (1 if count is None else int(count[:9]) for count in hunk.groups())
    return found


def touched(diff: str) -> list[str]:
    """Return the paths, old and new, that a git diff names."""
    names = re.findall(r"^(?:---|\+\+\+|rename from|rename to) (.+)$", diff, re.MULTILINE)
    paths = [_name(f"+++ {name}") for name in names]
    return list(dict.fromkeys(path for path in paths if path != "/dev/null"))


def _name(line: str) -> str:
    return re.sub(r"^[ab]/", "", line[4:].split("\t", maxsplit=1)[0].rstrip())


def normalize(diff: str) -> str:
    """Return the changed lines of a diff that can affect a program, with files in order.

    Line numbers, context, blank lines, comment lines, and trailing blanks are dropped.
    """
    lines = []
    for path, changed in sorted(changes(diff).items()):
        kept = [line.rstrip() for line in changed if line[1:].strip() and not line[1:].lstrip().startswith("#")]
        lines += [path, *kept] if kept else []
    return "\n".join(lines)


def similarity(diff: str, solution: str) -> float:
    """Return the similarity of two diffs, from 0 to 1: the mean over all files that either of them changes.

    The similarity of a file is the ratio of `difflib.SequenceMatcher` for the removed and added lines, or 0 if only one
    diff changes the file. Trailing blanks do not count. SWE-RL (arXiv 2502.18449) uses the same reward for hunks with
    their context.
    """
    a, b = ({path: [x.rstrip() for x in lines] for path, lines in changes(d).items()} for d in (diff, solution))
    paths = a.keys() | b.keys()
    return sum(_ratio(a[path], b[path]) for path in a.keys() & b.keys()) / len(paths) if paths else 0.0


def _ratio(a: list[str], b: list[str]) -> float:
    texts = "\n".join(a), "\n".join(b)
    if max(map(len, texts)) > CHARACTERS:
        return difflib.SequenceMatcher(None, a, b).ratio()
    return difflib.SequenceMatcher(None, *texts, autojunk=False).ratio()
