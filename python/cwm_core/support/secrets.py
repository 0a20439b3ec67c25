"""Read secrets of the environment, send them to worker processes, and keep them out of child processes and texts."""

from __future__ import annotations

import ctypes
import html
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

KEY_VARIABLE = "CWM_API_KEY"
"""Default environment variable for the key of an endpoint."""

MASK = "[key]"

# RAY_AUTH_TOKEN does not match, because Ray's own processes need it.
_SECRET_NAMES = re.compile(
    r"(?!RAY_)(.*PASSWORD.*|.*PASSWD.*|(.*_)?(API_?KEYS?|KEYS?|TOKENS?|SECRETS?|CREDENTIALS?|PAT)(_.*)?)", re.IGNORECASE
)

_LEAST = 8
"""Characters that a value must have to be searched for outside of messages: a dummy key such as EMPTY is also a word.
"""

_protected = {KEY_VARIABLE}
_received: dict[str, str] = {}
_environment = threading.RLock()  # held while variables are missing from `os.environ`


class Secrets(dict[str, str]):
    """Secrets by the names of their variables, to send to another process. The text of the object shows only names."""

    def __repr__(self) -> str:
        """Return the names."""
        return f"Secrets({', '.join(self)})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[Secrets], tuple[dict[str, str]]]:
        """Pickle the values."""
        return Secrets, (dict(self),)


def protect(name: str) -> None:
    """Treat an environment variable as a secret, regardless of its name."""
    _protected.add(name)


def get(name: str) -> str:
    """Return the value that `receive` got, or else the one of the environment, without white space around it."""
    with _environment:
        return (_received.get(name) or os.environ.get(name, "")).strip()


def read(names: Iterable[str]) -> Secrets:
    """Return the secrets with these names that have a value, to send to another process."""
    return Secrets({name: value for name in names if (value := get(name))})


def receive(secrets: Mapping[str, str]) -> None:
    """Store a secret from another process, in memory only, for `get` to return."""
    for name, value in secrets.items():
        protect(name)
        _received[name] = value


def public(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process, without secrets.

    A secret is a variable that is protected, a variable whose name suggests it (`..._KEY`, `..._TOKEN`, `...PASSWORD`,
    ...), or a variable whose value contains that of a protected variable.
    """
    with _environment:
        variables = dict(os.environ if environ is None else environ)
    values = [value for name in _protected if len(value := variables.get(name, "").strip()) >= _LEAST]
    return {
        name: value
        for name, value in variables.items()
        if name not in _protected
        and not _SECRET_NAMES.fullmatch(name)
        and not any(secret in value for secret in values)
    }


@contextmanager
def hidden() -> Iterator[None]:
    """Remove the secrets from the environment of this process while the block starts processes that inherit it."""
    with _environment:
        kept = public()
        secret = {name: value for name, value in os.environ.items() if name not in kept}
        for name in secret:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(secret)


def conceal() -> None:
    """Overwrite the secrets in this process's environment as the system shows it (`/proc/PID/environ`).

    Programs of the same user can read it, and a sandbox of the kind `process` does not hide it. `os.environ` and `get`
    still have the values.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    kept = public()
    for name in os.environ.keys() - kept.keys():
        if (address := libc.getenv(os.fsencode(name))) is not None:
            ctypes.memset(address, ord("*"), len(ctypes.string_at(address)))


def redact(text: str, key: str | None, *, whole: bool = True) -> str:
    """Return a message with `[key]` in place of the key, also where it is written as JSON, HTML, a URL, or Python text.

    Args:
        text: The message.
        key: The secret; None or an empty text changes nothing.
        whole: Whether the text is complete. If its end is missing, a beginning of the key there is dropped.
    """
    if not key:
        return text
    in_json = json.dumps(key)[1:-1]
    forms = {
        key,
        in_json,
        in_json.replace("/", "\\/"),
        repr(key)[1:-1],
        html.escape(key),
        quote(key),
        quote(key, safe=""),
    }
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    if whole:
        return text
    cut = max(length for form in forms for length in range(len(form)) if text.endswith(form[:length]))
    return text[: len(text) - cut]


def redact_value(value: object, key: str | None) -> object:
    """Return a JSON value with `[key]` in place of the key in its texts. Keys shorter than 8 characters stay."""
    if not key or len(key) < _LEAST:
        return value
    if isinstance(value, str):
        return value.replace(key, MASK)
    if isinstance(value, list):
        return [redact_value(item, key) for item in value]
    if isinstance(value, dict):
        return {name.replace(key, MASK): redact_value(item, key) for name, item in value.items()}
    return value
