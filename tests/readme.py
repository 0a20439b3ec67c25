"""The examples of the README and of pages in `docs/`, for the tests that run them.

A fence may carry words after the language: `title="NAME"` writes the block to a file of that name before anything
runs; `norun` leaves a block out of the run (it installs something, or needs a cluster). Its syntax is checked anyway.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^( *)```(\w+)(?: ([^\n]*))?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SHELL = ("sh", "bash", "shell")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    words: str
    text: str

    @property
    def title(self) -> str | None:
        """Name of the file that the block is; None for an example that runs by itself."""
        found = re.search(r'title="([^"]+)"', self.words)
        return found and found[1]

    @property
    def runs(self) -> bool:
        return "norun" not in self.words.split()


def pages() -> list[str]:
    """The README and all pages of the documentation, by their paths in the repository."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(found[2], found[3] or "", textwrap.dedent(found[4])) for found in _FENCE.finditer(text)]


def examples(page: str = "README.md") -> list[str]:
    """The ```python blocks of a page in order; an AssertionError when there are none to run."""
    found = [block.text for block in blocks(page) if block.language == "python" and block.runs and not block.title]
    assert found, f"{page} has no ```python block"
    return found


def shell(page: str) -> list[Block]:
    """The shell blocks of a page in order."""
    return [block for block in blocks(page) if block.language in _SHELL]


def commands(script: str) -> list[str]:
    """The `cwm` commands in a shell script, each with its continuation lines, without comments and here-documents."""
    script = re.sub(r"<<-?'?(\w+)'?\n.*?^\1$", "", script, flags=re.MULTILINE | re.DOTALL)
    joined = script.replace("\\\n", " ")
    found = re.findall(r"(?:^|;|\||&&|\bdo\b|\()\s*cwm ((?:'[^']*'|\"[^\"]*\"|[^#\n;|&>()'\"])*)", joined, re.MULTILINE)
    return [command.strip() for command in found]


def links(page: str) -> list[str]:
    """The relative paths that a page links to, without anchors; pages that the site generates are left out."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    generated = (
        "reference/api/",
        "api/",
        "reference/cli.md",
        "cli.md",
        "reference/configuration.md",
        "configuration.md",
    )
    return [t for t in targets if t and "://" not in t and not re.sub(r"^(\.\./)+", "", t).startswith(generated)]
