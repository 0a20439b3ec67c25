"""The examples of the README and of pages in `docs/`, for the tests that run them.

A fence may carry words after the language: `title="NAME"` writes the block to a file of that name before anything
runs; `norun` leaves a block out of the run (it installs something, or needs a cluster). Its syntax is checked anyway.
"""

import os
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


def links(page: str) -> list[tuple[str, str]]:
    """The path, from the root, and the anchor of each link of a page to a page of the project; "" for no anchor."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            file = ROOT / page if not path else (ROOT / page).parent / path
            found.append((os.path.relpath(file, ROOT), anchor))
    return found


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page, as both the site and GitHub make them."""
    found: set[str] = set()
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.+?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\s-]", "", shown.lower()).strip()
        found |= {re.sub(r"[-\s]+", "-", slug), slug.replace(" ", "-")}
    return found


def generated() -> set[str]:
    """The pages that `docs/hooks.py` generates: those of the site's navigation without a file."""
    listed = navigation()
    return {page for page in listed if not (ROOT / page).exists()}


def navigation() -> set[str]:
    """The pages in the site's navigation."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return {f"docs/{path}" for path in re.findall(r": (\S+\.md)$", nav, re.MULTILINE)}
