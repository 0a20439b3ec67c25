"""Looking at traces: a page to step through, lines for a terminal, and where a prediction departs from reality."""

from cwm_core.view.diff import Difference, differences
from cwm_core.view.page import html, notebook
from cwm_core.view.text import terminal

__all__ = ["Difference", "differences", "html", "notebook", "terminal"]
