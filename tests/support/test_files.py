"""Test that files are replaced as a whole, and that devices and other special files are never replaced."""

import errno
import os
import stat
import threading

import pytest
from cwm_core.support.files import replacing, write_file


def names(folder):
    return sorted(os.listdir(folder))


def test_replaces_the_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "out"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_keeps_the_old_content_when_the_block_raises(tmp_path):
    path = tmp_path / "out"
    write_file(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_follows_links_to_a_file_that_exists_or_not(tmp_path):
    (tmp_path / "folder").mkdir()
    for target in ("present", "absent"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(f"folder/{target}")
    (tmp_path / "folder" / "present").write_text("old")
    for target in ("present", "absent"):
        write_file(tmp_path / f"to-{target}", "new")
        assert (tmp_path / f"to-{target}").is_symlink()
        assert (tmp_path / "folder" / target).read_text() == "new"
    assert names(tmp_path / "folder") == ["absent", "present"]


def test_writes_through_a_fifo_and_a_device(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    write_file(fifo, "through")
    reader.join(10)
    assert received == [b"through"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    write_file(null, "gone")
    write_file(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert null.is_symlink()


def test_writes_to_the_standard_output_of_a_pipe(tmp_path):
    read, write = os.pipe()
    write_file(f"/dev/fd/{write}", "piped")
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert file.read() == b"piped"


def test_an_open_file_named_by_its_descriptor_is_written_not_replaced(tmp_path):
    path = tmp_path / "redirected"
    with path.open("wb") as file:
        write_file(f"/dev/fd/{file.fileno()}", "content")
        assert os.path.samestat(path.stat(), os.fstat(file.fileno()))
    assert path.read_text() == "content"
    assert names(tmp_path) == ["redirected"]


def test_permissions_follow_the_umask_or_the_file_that_was_there(tmp_path):
    old = os.umask(0o022)
    try:
        write_file(tmp_path / "new", "")
        write_file(tmp_path / "private", "")
        (tmp_path / "private").chmod(0o600)
        write_file(tmp_path / "private", "again")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path, "text")
    assert names(tmp_path) == []


def test_errors_name_the_file_and_not_the_one_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/missing/out'"):
        write_file(tmp_path / "missing" / "out", "text")


def test_a_full_disk_is_reported_with_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_file("/dev/full", b"text")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'"), replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write does
    assert names(tmp_path) == []
