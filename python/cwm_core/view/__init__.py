"""Show traces and predictions: an HTML page to step through, text for a terminal, and differences between frames."""

from cwm_core.view.diff import Difference, UnmatchedFrame, differences
from cwm_core.view.page import Example, gallery, html, notebook
from cwm_core.view.text import terminal

__all__ = ["Difference", "Example", "UnmatchedFrame", "differences", "gallery", "html", "notebook", "terminal"]
