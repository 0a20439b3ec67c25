"""Define the reasons for dropping a sample."""

from __future__ import annotations

from enum import StrEnum


class DropReason(StrEnum):
    """Reasons of the filters and of the pipeline. The values are the words in `progress.jsonl`.

    Two families of reasons are not listed: `effect: NAME` for each `Effect`, and the text of a `RunFailure`, such as
    `ended by signal 9`. Filters of your own use words of their own.
    """

    TRUNCATED = "truncated"
    TOO_FEW_FRAMES = "too few frames"
    TOO_MANY_FRAMES = "too many frames"
    TOO_MANY_BYTES = "too many bytes"
    TOO_MANY_TOKENS = "too many tokens"
    CONTEXT_TOO_LARGE = "context too large"
    NOT_DETERMINISTIC = "not deterministic"
    CLOCK = "time limit"
    MEMORY = "limit: memory"
    SHOWS_MACHINE = "shows the machine"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near duplicate"
    EVALUATION_SET = "in an evaluation set"
    UNKNOWN_LICENSE = "no known license"
    REFUSED_LICENSE = "license not allowed"
    SECRET = "secret"
    EMAIL_ADDRESS = "e-mail address"
    PHONE_NUMBER = "phone number"
    IP_ADDRESS = "IP address"
    NOT_IMPORTED = "cannot be imported"
    NO_GOOD_CALL = "no usable call"
    NOT_INSTALLED = "not installed"
    RECORDER_DISAGREES = "differs without the recorder"
    NOT_COMPARABLE = "answer cannot be compared"
