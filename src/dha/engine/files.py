"""Writing files so that a reader, or a run that is cut off, never finds half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of ``folder`` when the block ends without an error."""
    partial, previous = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


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

    Args:
        file: to be replaced, if it is there.
        keep: where what was in ``file`` goes, in place of what was there.

    Raises:
        OSError: if it cannot be written; the old content stays, and nothing else is left.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with open(partial, "wb") as handle:
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
