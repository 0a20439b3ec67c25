"""Find secrets and personal data in the code and in the values of a trace."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from ...trace import Trace
from ..reasons import DropReason
from ..sample import Drop, Sample
from .extra import missing_extra

# Detectors of detect-secrets that are not used. Those of random-looking strings find alphabets and test vectors in
# code, and this module searches for addresses itself.
_LEFT_OUT = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})

# Parts of its keywords for passwords. Its expressions take most of the time, and most texts have none of these parts.
_KEYWORD_PARTS = ("key", "pass", "pwd", "secret", "contrase")
# Classes of bytes: "w" in words, "!" for bytes that begin or join what is searched for, and all others as they are.
_KINDS = bytes(
    ord("w" if chr(byte).isalnum() or byte in b"_" or byte > 127 else "!" if byte in b"'\"`@+:" else chr(byte))
    for byte in range(256)
)

_EMAIL = re.compile(r"[\w.+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])")
# Domains for documentation and tests: RFC 2606, RFC 6761.
_RESERVED = re.compile(r"(?i)(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local)$")
# Only numbers with a country code: others cannot be distinguished from ordinary numbers.
_PHONE = re.compile(r"(?<![\w+])\+[1-9][\d ()/-]{6,18}\d(?![\w.])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
# The public part of IPv6 is 2000::/3. Shorter forms are mostly slices and scopes in code.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:.])")


class Finding(NamedTuple):
    """A secret or personal datum that was found, without its text."""

    kind: DropReason
    """`SECRET`, `EMAIL_ADDRESS`, `PHONE_NUMBER`, or `IP_ADDRESS`."""
    what: str
    """Name that the detector gives it, such as `AWS Access Key`; for personal data, its number of characters."""
    line: int
    """Line of the text, from 1."""


def find_secrets(text: str) -> Iterator[Finding]:
    """Yield what looks like a secret or personal data in a text, by kind.

    Secrets are found by the detectors of detect-secrets that know a form of token or key, and passwords by the name
    that they are assigned to; detectors that judge by entropy are not used. Personal data are email addresses, except
    those of domains reserved for documentation; phone numbers with a country code that are valid in the plan of their
    country; and addresses of the public internet. Names, postal addresses, and numbers without a country code are not
    found.

    Raises:
        ImportError: The extra `corpus` is not installed.
    """
    lower = text.lower()
    keywords = any(part in lower for part in _KEYWORD_PARTS)
    for detector in _detectors():
        if not keywords and type(detector).__name__ == "KeywordDetector":
            continue
        if found := set(detector.analyze_string(text)):
            first = min(max(text.find(str(secret)), 0) for secret in found)
            yield _finding(DropReason.SECRET, detector.secret_type, text, first)
    for match in _EMAIL.finditer(text):
        if not _RESERVED.search(match[1]):
            yield _finding(DropReason.EMAIL_ADDRESS, f"{len(match[0])} characters", text, match.start())
    for match in _PHONE.finditer(text):
        if _is_phone_number(match[0]):
            yield _finding(DropReason.PHONE_NUMBER, f"{len(match[0])} characters", text, match.start())
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_public_address(match[0]):
                yield _finding(DropReason.IP_ADDRESS, f"{len(match[0])} characters", text, match.start())


def no_secrets(sample: Sample) -> Drop | None:
    """Drop a sample whose trace shows secrets or personal data in its context, its call, or its values.

    The reason is the kind of the `Finding`. The detail says what it is and where, without its text.
    """
    trace = sample.trace
    for place, text in (("context", trace.context), ("call", sample.call), ("values", values_text(trace))):
        for found in find_secrets(text):
            where = f", line {found.line}" if place == "context" else ""
            return Drop(found.kind, f"{found.what} in the {place}{where}")
    return None


def values_text(trace: Trace) -> str:
    """Return each distinct value of a trace with its variable's name, one per line, and the output.

    Values that cannot hold a secret, mostly numbers and lists of numbers, are left out.
    """
    values: dict[str, None] = {}
    for frame in trace.frames:
        for name, value in (frame.locals or {}).items():
            if value != ".." and _may_hold(value):
                values[f"{name} = {value}"] = None
        if frame.arg is not None and _may_hold(frame.arg):
            values[frame.arg] = None
    return "\n".join([*values, trace.output or ""])


def _may_hold(value: str) -> bool:
    """Return whether a value has a quote, part of an address or a key, or a word as long as the shortest token with a
    form.
    """
    kinds = value.encode(errors="surrogatepass").translate(_KINDS)
    return b"!" in kinds or b"wwwwwwww" in kinds or b"-----" in kinds or kinds.count(b".") > 2


@cache
def _detectors() -> list[Any]:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError as error:
        raise missing_extra("the search for secrets", error) from None
    classes: list[type[Any]] = list(get_mapping_from_secret_type_to_class().values())
    return [plugin() for plugin in sorted(classes, key=lambda c: c.__name__) if plugin.__name__ not in _LEFT_OUT]


def _is_phone_number(text: str) -> bool:
    try:
        import phonenumbers
    except ImportError as error:
        raise missing_extra("the search for phone numbers", error) from None
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, None))
    except phonenumbers.NumberParseException:
        return False


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _finding(kind: DropReason, what: str, text: str, at: int) -> Finding:
    return Finding(kind, what, text.count("\n", 0, at) + 1)
