"""Make tasks by breaking repositories in one place, and from fixed issues. Needs libcst."""

from ..issues import issue_task, read_issues
from .harvest import Harvest, forage
from .mixture import MIX
from .mutations import KINDS, Mutation, find_mutations
from .repository import Repository, Survey, survey

__all__ = [
    "KINDS",
    "MIX",
    "Harvest",
    "Mutation",
    "Repository",
    "Survey",
    "find_mutations",
    "forage",
    "issue_task",
    "read_issues",
    "survey",
]
