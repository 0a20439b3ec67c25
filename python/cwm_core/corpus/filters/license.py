"""Find the license of code and compare it with the licenses that are allowed.

Licenses are SPDX expressions, such as `MIT` or `Apache-2.0 OR BSD-2-Clause`. A statement in other words that may mean
several licenses counts as all of them at once (`AND`), so each of them must be allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageMetadata
from pathlib import Path
from typing import Any

from ..reasons import DropReason
from ..sample import Drop, Sample
from .extra import missing_extra

PERMISSIVE = frozenset(
    {
        "0BSD", "Apache-2.0", "BlueOak-1.0.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC",
        "MIT", "MIT-0", "MIT-CMU", "NCSA", "PostgreSQL", "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "X11", "Zlib",
    }
)  # fmt: skip
"""Licenses that allow any use and require no more than their notice."""

# Trove classifiers without "License :: ". Others do not identify a license.
_CLASSIFIERS = {
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "OSI Approved :: Academic Free License (AFL)": "AFL-3.0",
    "OSI Approved :: Apache Software License": "Apache-2.0",
    "OSI Approved :: BSD License": "BSD-2-Clause AND BSD-3-Clause",
    "OSI Approved :: Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "OSI Approved :: GNU Affero General Public License v3": "AGPL-3.0-only",
    "OSI Approved :: GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "OSI Approved :: GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "OSI Approved :: GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "OSI Approved :: GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "OSI Approved :: GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "OSI Approved :: GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "OSI Approved :: GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "OSI Approved :: GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "OSI Approved :: Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "OSI Approved :: ISC License (ISCL)": "ISC",
    "OSI Approved :: MIT License": "MIT",
    "OSI Approved :: MIT No Attribution License (MIT-0)": "MIT-0",
    "OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "OSI Approved :: PostgreSQL License": "PostgreSQL",
    "OSI Approved :: Python Software Foundation License": "PSF-2.0",
    "OSI Approved :: The Unlicense (Unlicense)": "Unlicense",
    "OSI Approved :: Universal Permissive License (UPL)": "UPL-1.0",
    "OSI Approved :: University of Illinois/NCSA Open Source License": "NCSA",
    "OSI Approved :: zlib/libpng License": "Zlib",
}
_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n\r]*?)[ \t]*(?:\*/|-->)?[ \t]*$", re.MULTILINE)
_HEADER_LINES = 50
_FILE_NAME = re.compile(r"(?i)(?:un)?licen[cs]e|copying")


def normalized(expression: str) -> str | None:
    """Return an SPDX expression in the spelling of SPDX, or None for any other text.

    Raises:
        ImportError: The extra `corpus` is not installed.
    """
    parsed = _parse(expression)
    return None if parsed is None else str(parsed)


def allowed(expression: str, allow: Collection[str] = PERMISSIVE) -> bool:
    """Return whether an SPDX expression permits use under licenses in `allow`: one side of an `OR`, both sides of an
    `AND`.

    An exception (`WITH`) only adds permissions. A text that is not an SPDX expression is not allowed.
    """
    parsed = _parse(expression)
    return parsed is not None and _allowed(parsed, allow)


def of_source(code: str) -> str | None:
    """Return the license that an `SPDX-License-Identifier` in the first lines of source text states, or None."""
    head = "\n".join(code.split("\n", _HEADER_LINES)[:_HEADER_LINES])
    return _all_of(normalized(found) for found in _HEADER.findall(head))


def of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the license whose text a file holds, or None if it is not recognized.

    The comparison ignores the copyright line and allows 5% of edits.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        import ukkonen  # type: ignore[import-untyped]  # noqa: F401  # only `license_id` needs it
        from identify.identify import license_id
    except ImportError as error:
        raise missing_extra("recognizing the text of a license", error) from None
    try:
        found = license_id(os.fspath(path))
    except UnicodeDecodeError:
        return None
    return None if found is None else normalized(found)


def of_folder(folder: str | os.PathLike[str]) -> str | None:
    """Return the license in the license files of a folder, such as `LICENSE`.

    Several licenses are joined by `AND`. None means that there is no such file, or one that is not recognized.
    """
    return _of_files(path for path in Path(folder).iterdir() if path.is_file())


def of_metadata(metadata: PackageMetadata) -> str | None:
    """Return the license that the metadata of a package state, or None if they state none that is recognized.

    The order is `License-Expression`, then `License` if it is an SPDX expression, then the classifiers. An unknown
    classifier voids `License` and the classifiers.
    """
    if "License-Expression" in metadata:
        return normalized(metadata["License-Expression"])
    licenses = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License :: ")]
    classifiers = [line.removeprefix("License :: ") for line in licenses]
    found = [_CLASSIFIERS.get(classifier) for classifier in classifiers if classifier != "OSI Approved"]
    if None in found:
        return None
    stated = next(iter(metadata.get_all("License") or []), "")
    return normalized(stated) or _all_of(found)


def of_package(distribution: Distribution) -> str | None:
    """Return the license of an installed package, from its metadata or else from its license files."""
    files = (file for file in distribution.files or [] if file.suffix not in (".py", ".pyc"))
    return of_metadata(distribution.metadata) or _of_files(Path(str(distribution.locate_file(file))) for file in files)


@dataclass(frozen=True)
class Licenses:
    """Drops samples whose license is not allowed.

    Both the `license` of the provenance and the header of the sample's own source count; if both are there, both must
    be allowed. The reasons are `UNKNOWN_LICENSE` and `REFUSED_LICENSE`.
    """

    allow: Collection[str] = PERMISSIVE
    """SPDX identifiers of the licenses that are allowed."""

    def __call__(self, sample: Sample) -> Drop | None:
        """Return why to drop the sample, or None to keep it."""
        return self.check(sample.provenance.get("license"), sample.code)

    def check(self, license: object, code: str) -> Drop | None:
        """Return why to drop samples of this source, whose provenance states this license, or None to keep them."""
        stated = [license, of_source(code)]
        found = [str(license) for license in stated if license is not None]
        if not found:
            return Drop(DropReason.UNKNOWN_LICENSE)
        refused = next((license for license in found if not allowed(license, self.allow)), None)
        return None if refused is None else Drop(DropReason.REFUSED_LICENSE, refused)


def _of_files(paths: Iterable[Path]) -> str | None:
    return _all_of(of_file(path) for path in sorted(paths) if _FILE_NAME.match(path.name) and path.is_file())


def _all_of(licenses: Iterable[str | None]) -> str | None:
    """Return all licenses joined by `AND`; None if there is none, or one that is not recognized."""
    found = list(licenses)
    if not found or None in found:
        return None
    return normalized(" AND ".join(sorted({f"({license})" for license in found})))


@cache
def _licensing() -> Any:
    try:
        from license_expression import get_spdx_licensing
    except ImportError as error:
        raise missing_extra("reading licenses", error) from None
    return get_spdx_licensing()


def _parse(expression: str) -> Any:
    """Return the tree of an expression of SPDX licenses, or None for any other text."""
    licensing = _licensing()
    from license_expression import ExpressionError

    try:
        parsed = licensing.parse(expression, validate=True)
    except (ExpressionError, ValueError, RecursionError):  # not all parse errors are ExpressionErrors
        return None
    return parsed


def _allowed(node: Any, allow: Collection[str]) -> bool:
    if hasattr(node, "license_symbol"):
        return _allowed(node.license_symbol, allow)
    if hasattr(node, "key"):
        return node.key in allow
    return (any if node.operator.strip() == "OR" else all)(_parts(node, allow))


def _parts(node: Any, allow: Collection[str]) -> Iterator[bool]:
    return (_allowed(part, allow) for part in node.args)
