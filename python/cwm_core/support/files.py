"""Write files so that neither a crash nor a full disk loses the previous content."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

StrPath = str | os.PathLike[str]
"""A path, as functions take it."""

WITHOUT_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})
"""Error numbers of file systems without locks."""


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk.

    Raises:
        OSError: The path cannot be opened or synchronized.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends without an exception.

    The bytes go to a hidden file in the same folder, which is synchronized and then renamed. A reader sees the old
    content or the new content, never a part of either. If the block raises, `path` is unchanged.

    A symbolic link is followed: its target is replaced and the link stays. Devices, FIFOs, and other special files
    cannot be replaced, so the bytes are written through to them, as they are to an open file that is named by its
    descriptor (`/dev/stdout`). A new file gets the permissions that the umask
    allows; an existing file keeps its permissions.

    Raises:
        OSError: The file cannot be written, with `path` as its file name. `IsADirectoryError` if `path` is a folder.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode  # not `target`: /dev/stdout resolves to a name that cannot be opened
    except FileNotFoundError:
        mode = None
    if mode is not None and (not stat.S_ISREG(mode) or _names_descriptor(path)):
        with _naming(path, path), open(path, "wb") as file:
            yield file
        return
    partial = target.with_name(f".{target.name[:200]}.{token_hex(4)}.partial")
    try:
        with _naming(path, partial), open(partial, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    sync(target.parent)


def write_file(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Replace the content of `path` atomically, as `replacing` does. Text is encoded as UTF-8.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def locked(folder: str | os.PathLike[str], purpose: str) -> Iterator[None]:
    """Lock a folder, creating it if necessary, so that no other process works in it at the same time.

    The lock is released when the block or the process ends. On a file system without locks, nothing is locked.

    Args:
        folder: The folder to lock.
        purpose: Description of the holder, for the error message: "training run".

    Raises:
        BlockingIOError: The folder is already locked.
        OSError: The folder cannot be created or opened.
    """
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"another {purpose} is using this folder; wait until it ends, or choose another folder"
            raise BlockingIOError(error.errno, text, os.fspath(folder)) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield
    finally:
        # Children that inherited the descriptor would keep the lock otherwise.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def write_files(contents: Mapping[str | os.PathLike[str], bytes | str]) -> None:
    """Replace the content of several files, as `write_file` does, but none before all of them are on disk.

    A full disk leaves every file as it was. (A machine that stops between two renames leaves some old, some new.)

    Raises:
        OSError: A file cannot be written.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            file = stack.enter_context(replacing(path))
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device or FIFO cannot be synchronized
                os.fsync(file.fileno())


def files_in(folder: str | os.PathLike[str], endings: tuple[str, ...]) -> list[Path]:
    """Return the files under a folder whose names have one of these endings, in any case, sorted.

    Hidden files, such as `._00000.jsonl`, and files in hidden folders are left out.
    """
    folder = Path(folder)
    found = (file for file in folder.rglob("*") if file.name.lower().endswith(endings) and file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


@contextmanager
def _naming(path: str | os.PathLike[str], partial: str | os.PathLike[str]) -> Iterator[None]:
    """Put `path` into errors about the file that is written in its place, and about a full disk, which name no file."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if os.fspath(partial) == error.filename or (is_full and error.filename is None):
            error.filename = os.fspath(path)
        raise


def _names_descriptor(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to an open descriptor of a process, such as `/dev/stdout` or `/dev/fd/3`."""
    path = os.path.abspath(path)
    for _ in range(40):  # the kernel's own limit on links
        folder = os.path.realpath(os.path.dirname(path))
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd", folder):
            return True
        if not os.path.islink(path):
            return False
        path = os.path.join(folder, os.readlink(path))
    return False
