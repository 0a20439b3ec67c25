"""Remove a repository's history, which would show an agent how to solve its task."""

from ..machines import Machine
from .protection import CACHES

SECONDS = 300.0

# Compiled files are part of the history. The agent's commits need an identity, caches of tests do not belong in its
# diffs, and diffs of files with CRLF must keep these line ends regardless of the attributes.
FORGET = f"""
find . -name __pycache__ -type d -prune -exec rm -rf {{}} + &&
rm -rf .git && git init -q && mkdir -p .git/info &&
git config user.name agent && git config user.email agent@localhost && git config commit.gpgsign false &&
printf '%s\\n' {" ".join(f"{name}/" for name in CACHES)} '*.py[co]' >> .git/info/exclude &&
printf '%s\\n' '* -text -filter -ident -working-tree-encoding' >> .git/info/attributes &&
git add -A && git commit -q --no-verify --allow-empty -m Start
"""


def forget_history(machine: Machine) -> None:
    """Replace the git repository with a new one that has a single commit of the current files.

    Otherwise, `git diff` would show the patch that broke the repository, and `git log` the code before it.

    Raises:
        ValueError: git fails.
    """
    result = machine.run(FORGET, seconds=SECONDS)
    if result.exit_code != 0:
        raise ValueError(f"cannot create a git repository in {machine.root}: {result.stderr.decode()[-500:]}")
