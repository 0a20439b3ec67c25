"""Implement `cwm completion`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import OK, add_verb, write

SHELLS = ("bash", "zsh", "tcsh")


def add_completion(verbs: Any) -> None:
    """Add `cwm completion`."""
    parser = add_verb(
        verbs,
        _completion,
        "Print a script that completes the command line in a shell.",
        'eval "$(cwm completion bash)"',
        "For zsh, write the script to a file named _cwm in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell: bash, zsh or tcsh")


def _completion(args: argparse.Namespace) -> int:
    import shtab

    from . import build_parser, commands

    parser = build_parser()
    for _, command in commands(parser):
        for action in command._actions:
            if action.type is Path or action.metavar in ("FILE", "SOURCE", "CONFIG"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # the attribute that shtab reads
    write(shtab.complete(parser, args.shell) + "\n")
    return OK
