"""The Python examples of the README and of pages, as the tests that run them see them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def examples(page: str = "README.md") -> list[str]:
    """The ```python blocks of a page in order; an AssertionError when there are none to run."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks, f"{page} has no ```python block"
    return blocks
