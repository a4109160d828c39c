"""Reading and writing files: a reader, or a run that is cut off, never finds half of one, and nobody else's file is
overwritten or removed.
"""

import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dha.errors import DhaError

_TEMPORARY = re.compile(r"\.dha-[0-9a-f]{16}\.(partial|previous)")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_bytes(file: Path, most: int) -> bytes:
    """Return the content of a regular file; links are followed.

    Raises:
        OSError: if it cannot be opened or read.
        DhaError: if it is a pipe, a device or a folder, or has more than ``most`` bytes.
    """
    # A pipe is opened without waiting for somebody who writes to it.
    descriptor = os.open(file, _READ)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DhaError(f"{str(file)!r} is not a regular file: give the file that dha wrote")
    with open(descriptor, "rb") as handle:
        if status.st_size > most:
            raise DhaError(f"{str(file)!r} has {status.st_size} bytes: expected what dha wrote, at most {most}")
        return handle.read(status.st_size)


def begins_with(file: Path, start: bytes, offset: int = 0) -> bool:
    """Return whether a regular file, not a link, has these bytes at an offset; False where it cannot be read."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        with open(file, "rb") as handle:
            handle.seek(offset)
            return handle.read(len(start)) == start
    except OSError:
        return False


@contextmanager
def replaced_folder(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of ``folder`` when the block ends without an error.

    Args:
        folder: to be replaced, if it is there.
        names: of the files in either; no other file is removed.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = _temporary(folder, "partial"), _temporary(folder, "previous")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            with open(file, "r+b") as handle:  # Windows flushes no file that is opened for reading.
                os.fsync(handle.fileno())
        if os.path.lexists(folder):
            folder.rename(previous)
        try:
            partial.rename(folder)
        except OSError:
            if previous.exists():
                previous.rename(folder)
            raise
    except BaseException:
        remove_folder(partial, names)
        raise
    remove_folder(previous, names)


def remove_folder(folder: Path, names: Collection[str]) -> None:
    """Remove the files of these names from a folder, and the folder if nothing else is in it."""
    with suppress(OSError):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def write_text(file: Path, text: str) -> None:
    """Write ``text`` to ``file`` in one piece: a reader sees the old or the new content, nothing between."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write ``content`` to ``file`` in one piece: a reader sees the old or the new content, nothing between.

    Raises:
        OSError: if it cannot be written; the old content stays, and nothing else is left.
    """
    with replaced_file(file) as handle:
        handle.write(content)


@contextmanager
def replaced_file(file: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Give an empty file to write to, which takes the place of ``file`` when the block ends without an error.

    No link is followed: one in the place of ``file`` is replaced itself.

    Args:
        file: to be replaced, if it is there.
        keep: where what was in ``file`` goes, in place of what was there.

    Raises:
        OSError: if it cannot be written; the old content stays, and nothing else is left.
    """
    partial = _temporary(file, "partial")
    descriptor = os.open(partial, _NEW, 0o666)
    try:
        with open(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if keep is not None and file.exists():
            file.replace(keep)
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a file or folder that was to take, or to leave, the place of another."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporary(folder: Path, names: Collection[str]) -> None:
    """Remove what a killed process has left in a folder; of folders only the files of these ``names``."""
    with suppress(OSError):
        for place in [place for place in folder.iterdir() if is_temporary(place.name)]:
            if place.is_dir() and not place.is_symlink():
                remove_folder(place, names)
            else:
                place.unlink(missing_ok=True)


def _temporary(place: Path, kind: str) -> Path:
    # A name that nobody knows before: no file of another person waits there, and none is guessed at.
    return place.with_name(f".dha-{secrets.token_hex(8)}.{kind}")


def lock(folder: Path) -> int | None:
    """Keep other processes from running in a folder, until this one ends or closes what is returned.

    Returns:
        A file descriptor; None where the system has no such locks.

    Raises:
        DhaError: if another process has the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise DhaError(
                f"out={str(folder)!r} is in use by another run: wait for it, or choose another folder"
            ) from None
        return None  # A file system without locks.
    return handle
