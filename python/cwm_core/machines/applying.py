"""Apply diffs to a machine's repository with git, independently of surrounding repositories and configuration.

`git apply` searches parent folders for a repository. In one, it silently skips files outside of the current folder.
These scripts therefore create a repository of their own and read no other configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import process

if TYPE_CHECKING:
    from .protocol import Machine

# $box is the script's folder. A diff of the files' bytes applies when attributes are ignored. A diff that git made in
# a repository with attributes for line ends applies only when they are honored. `either_way` tries both.
GIT = """
export GIT_DIR="$box/git" GIT_WORK_TREE="$PWD" GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
new_repository() { git init -q && mkdir -p "$GIT_DIR/info"; }
either_way() {
  printf '* -text -filter -ident -working-tree-encoding\\n' > "$GIT_DIR/info/attributes"
  "$@" 2> "$box/said" && return
  rm "$GIT_DIR/info/attributes"
  "$@" 2> /dev/null && return
  cat "$box/said" >&2
  return 1
}
"""
APPLY = f"""
box=$(mktemp -d) || exit
{GIT}
cat > "$box/diff" && new_repository && either_way git apply --whitespace=nowarn "$box/diff"
code=$?
rm -rf "$box"
exit $code
"""


def apply_diff(machine: Machine, diff: str, *, seconds: float) -> process.Completed:
    """Apply a diff to the files of a machine. If a part does not apply, nothing changes and the exit code is not 0."""
    return machine.run(APPLY, stdin=diff.encode(errors="surrogateescape"), seconds=seconds)
