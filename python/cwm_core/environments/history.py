"""Taking a repository's past away from an agent, for which it would be the answer."""

from ..machines import Machine

SECONDS = 300.0

# Compiled files are of the past, too.
FORGET = """
find . -name __pycache__ -type d -prune -exec rm -rf {} + &&
rm -rf .git && git init -q && git add -A &&
git -c user.name=cwm -c user.email=cwm@localhost -c commit.gpgsign=false commit -q --no-verify --allow-empty -m Start
"""


def forget_history(machine: Machine) -> None:
    """Make a new git repository with one commit: the files as they are now, so that `git diff` shows an agent's work.

    Without it, `git diff` would show the patch that broke the repository, and `git log` how it was before. Raises
    ValueError where git does not do it.
    """
    result = machine.run(FORGET, seconds=SECONDS)
    if result.exit_code != 0:
        raise ValueError(f"no git repository can be made in {machine.root}: {result.stderr.decode()[-500:]}")
