"""Where decoded images are kept: in memory, or in a file that is read through the page cache.

The file of a run lies in `.dha-images` in its folder, under a name that follows from the source (names, sizes and times
of its files), until the run is over: every process of the run and every `--resume` takes it up, none decodes anew.
Without a folder, or for a source that is no path, it is a temporary file without a name, which ends with the process.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dha.data.files import files
from dha.errors import DhaError
from dha.ownership import IMAGES as FOLDER

Where = Literal["auto", "memory", "disk"]

MEMORY_SHARE = 0.25
"""Of the memory of the machine, what the images of one part (train, validation, test) may take before they are kept on
disk."""

_VERSION = 3
_OWN = re.compile(r"[0-9a-f]{16}\.(u8|json|partial)")


@dataclass(frozen=True)
class Cache:
    """Decide where images are kept, and decode them there once.

    Args:
        where: "memory", "disk", or "auto": on disk what would take more than `MEMORY_SHARE` of the memory.
        folder: of the run, made when it is needed; None for temporary files, where the system has them (`TMPDIR`).
        source: file or folder that the images come from, or the files of all; None if they come from none.
    """

    where: Where = "auto"
    folder: Path | None = None
    source: Path | Sequence[str] | None = None

    def keep(
        self, shape: tuple[int, int, int, int], name: str, fill: Callable[[Tensor], tuple[Tensor, Any]]
    ) -> tuple[Tensor, Tensor, Any]:
        """Have images decoded, unless a process of this run has done it before.

        Args:
            shape: (N, C, S, S).
            name: tells these from other images of the same source and shape.
            fill: writes to its argument, uint8 of that shape, zeros, and returns a byte for each of the N, and what
                else is known of them, as JSON has it; both are kept, too.

        Returns:
            The images, and what `fill` returned, uint8 (N,) and any.

        Raises:
            DhaError: if there is no room on the disk, which is taken before anything is decoded.
        """
        on_disk = math.prod(shape) > MEMORY_SHARE * total_memory() if self.where == "auto" else self.where == "disk"
        if not on_disk:
            images = torch.zeros(shape, dtype=torch.uint8)
            return images, *fill(images)
        if self.folder is None or self.source is None:
            images, _ = self._anonymous(shape)
            return images, *fill(images)
        folder = self.folder / FOLDER
        told_by = _VERSION, shape, name, _identity(self.source, self.folder)
        key = hashlib.sha256(repr(told_by).encode()).hexdigest()[:16]
        file, known, partial = (folder / f"{key}.{suffix}" for suffix in ("u8", "json", "partial"))
        with _unwritable(folder):
            if folder.is_symlink():
                raise OSError(0, "it is a link")
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            # A file of another size was cut off; a link leads to a file of somebody else.
            if file.is_symlink() or not file.is_file() or file.stat().st_size != _size(shape) or not _read(known):
                try:
                    _make(partial)
                    images, there = _mapped(partial, shape)
                    states, facts = fill(images)
                    there.copy_(states)
                    with _unwritable(folder), open(partial, "r+b") as written:
                        os.fsync(written.fileno())
                    partial.replace(file)
                    _make(partial)
                    with _unwritable(folder):
                        partial.write_text(json.dumps([facts]))
                    partial.replace(known)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
            (facts,) = _read(known)
        return *_mapped(file, shape), facts

    def remove(self) -> None:
        """Remove the files of the run, and nothing else: it is over."""
        if self.folder is None or (self.folder / FOLDER).is_symlink():
            return
        with suppress(OSError):  # There are none, or another file lies beside them.
            for file in (self.folder / FOLDER).iterdir():
                if _OWN.fullmatch(file.name):
                    file.unlink()
            (self.folder / FOLDER).rmdir()

    def _anonymous(self, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder
        with _unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".dha-", dir=folder)
        os.close(descriptor)
        try:
            return _mapped(Path(name), shape)
        finally:
            os.unlink(name)  # The memory map keeps what is in it.


def _mapped(file: Path, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Return images over a file that is there, and a byte for each of them behind them, with room on the disk."""
    pixels, size = math.prod(shape), _size(shape)
    with _unwritable(file.parent, f"{size / 1e9:.1f} GB for {shape[0]} decoded images do not fit into"):
        if file.stat().st_size != size:
            with open(file, "r+b") as opened:
                # Writing to a memory map on a full disk would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(opened.fileno(), 0, size)
                elif shutil.disk_usage(file.parent).free < size:
                    raise OSError(0, "no space left")
                else:
                    opened.truncate(size)
    whole = torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
    return whole[:pixels].view(shape), whole[pixels:]


def _make(partial: Path) -> None:
    """Make an empty file, in place of that of a run that was killed, following no link."""
    with _unwritable(partial.parent):
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _read(known: Path) -> list[Any]:
    """Return what is known of decoded images, in a list; an empty one if that is missing or cut off."""
    try:
        if known.is_symlink() or not known.is_file():
            return []
        facts = json.loads(known.read_text())
    except (OSError, ValueError):
        return []
    return facts if isinstance(facts, list) and len(facts) == 1 else []


def _size(shape: tuple[int, int, int, int]) -> int:
    """Return the bytes of a file of images, with one more for each of them."""
    return math.prod(shape) + shape[0]


@contextmanager
def _unwritable(folder: Path, problem: str = "decoded images cannot be written to") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DhaError(
            f"{problem} {str(folder)!r} ({error.strerror}): make room there, choose another folder (--out, or else "
            "TMPDIR) or a smaller --image-size"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process decodes into the folder."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _identity(source: Path | Sequence[str], own: Path | None) -> str:
    digest = hashlib.sha256()

    def note(path: str) -> None:
        known = os.stat(path)
        digest.update(f"{path}\0{known.st_size}\0{known.st_mtime_ns}\0".encode(errors="surrogateescape"))

    if isinstance(source, Path):
        digest.update(str(source.resolve()).encode(errors="surrogateescape"))
        paths = [str(source)] if source.is_file() else sorted(files(source, {}, skip=own))
    else:
        paths = source
    for path in paths:
        if os.path.exists(path):
            note(path)
    return digest.hexdigest()


def total_memory() -> int:
    """Return the bytes of memory that this machine, or the container that this process is in, has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory
