"""Kinds of functions, and the reasons why definitions are skipped."""

from __future__ import annotations

from enum import StrEnum


class FunctionKind(StrEnum):
    """How a function is called."""

    FUNCTION = "function"
    METHOD = "method"
    CLASS_METHOD = "class method"
    STATIC_METHOD = "static method"
    PROPERTY = "property"
    CONSTRUCTOR = "constructor"


class SkipReason(StrEnum):
    """Reason that a definition or a module is not explored."""

    TEST = "test"
    OVERLOAD = "overload"
    ABSTRACT = "abstract"
    COMMAND_LINE = "command line"
    SPECIAL_METHOD = "special method"
    EMPTY = "empty"
    """Nothing but documentation."""
    ASYNC_GENERATOR = "asynchronous generator"
    DOES_NOT_PARSE = "does not parse"
    NO_IMPORT_NAME = "no name to be imported by"
    UNREADABLE = "cannot be read"
    WRONG_ENCODING = "not in the encoding that it declares"
