"""The Python examples of the README, as the tests that run them see them."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def examples() -> list[str]:
    """The ```python blocks of the README in order; an AssertionError when there are none to run."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks, f"{README} has no ```python block"
    return blocks
