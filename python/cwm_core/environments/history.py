"""Taking a repository's past away from an agent, for which it would be the answer."""

from ..machines import Machine
from .protection import CACHES

SECONDS = 300.0

# Compiled files are of the past, too. The agent's commits need an identity; what running tests leaves behind does not
# belong into its diffs; and a diff of files with CRLF line ends is to have them, whatever the attributes say.
FORGET = f"""
find . -name __pycache__ -type d -prune -exec rm -rf {{}} + &&
rm -rf .git && git init -q && mkdir -p .git/info &&
git config user.name agent && git config user.email agent@localhost && git config commit.gpgsign false &&
printf '%s\\n' {" ".join(f"{name}/" for name in CACHES)} '*.py[co]' >> .git/info/exclude &&
printf '%s\\n' '* -text -filter -ident -working-tree-encoding' >> .git/info/attributes &&
git add -A && git commit -q --no-verify --allow-empty -m Start
"""


def forget_history(machine: Machine) -> None:
    """Make a new git repository with one commit: the files as they are now, so that `git diff` shows an agent's work.

    Without it, `git diff` would show the patch that broke the repository, and `git log` how it was before. Raises
    ValueError where git does not do it.
    """
    result = machine.run(FORGET, seconds=SECONDS)
    if result.exit_code != 0:
        raise ValueError(f"no git repository can be made in {machine.root}: {result.stderr.decode()[-500:]}")
