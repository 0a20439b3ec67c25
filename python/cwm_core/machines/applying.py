"""Apply diffs to a machine's repository with git, whatever repositories and configuration lie around it.

git looks for a repository in the folders above, and inside of one silently skips what lies outside of the folder that
it runs in. So each of these scripts brings a repository of its own, and reads no configuration but that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import process

if TYPE_CHECKING:
    from .protocol import Machine

# $box is a folder of the script's own. A diff that was made from the bytes of files applies to these bytes; one that
# git made in a repository with line end attributes applies once the attributes are obeyed.
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
    """Change the files of a machine as a diff says; all of it, or nothing with another exit code than 0."""
    return machine.run(APPLY, stdin=diff.encode(errors="surrogateescape"), seconds=seconds)
