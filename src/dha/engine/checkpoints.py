"""Checkpoints: the state of a run in a file that is whole or not there, and the one before it."""

import errno
import hashlib
import io
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dha.errors import DhaError
from dha.files import begins_with, read_bytes, replaced_file
from dha.ownership import CHECKPOINT, CHECKPOINTS

MAGIC = CHECKPOINT + b"3\n"
"""What a file begins with; what torch.save wrote follows, then the SHA-256 of that."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of an ``OSError``: there is no room on the disk."""
_DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """Keeps the latest state of a run in memory and, where it has a folder, the latest two in files.

    Args:
        folder: of the run, or None to write no files.
    """

    def __init__(self, folder: Path | None) -> None:
        self.files = [] if folder is None else [folder / name for name in CHECKPOINTS]
        self._latest: dict[str, Any] | None = None

    def save(self, state: dict[str, Any], write: bool = True) -> None:
        """Keep a state: tensors, numbers, strings and None, in dictionaries and lists.

        A disk that is full does not end a run: a ``RuntimeWarning`` says so, the last good file stays.

        Args:
            state: what to keep.
            write: whether to files, too.
        """
        self._latest = _copied(state)
        if not write or not self.files:
            return
        newest, previous = self.files
        try:
            try:
                self._write(newest, previous)
            except OSError as error:
                # Two files are enough where three have no room: the new one, and the one that it takes the place of.
                if error.errno not in FULL or not begins_with(previous, CHECKPOINT):
                    raise
                previous.unlink()
                self._write(newest, previous)
        except OSError as error:
            _warn(f"{str(newest)!r} cannot be written ({error.strerror}): the run goes on without it")

    def _write(self, newest: Path, previous: Path) -> None:
        with replaced_file(newest, keep=previous) as handle:
            handle.write(MAGIC)
            hashed = _Hashed(handle)
            torch.save(self._latest, hashed)  # pyright: ignore[reportArgumentType]
            handle.write(hashed.digest())

    def latest(self) -> dict[str, Any]:
        """Return a copy of the state that was kept last by this process."""
        assert self._latest is not None
        return _copied(self._latest)

    def load(self, set_aside: bool = True) -> dict[str, Any] | None:
        """Return the newest state in the files that is whole, or None where there is no file.

        A newer one that is damaged is renamed to ``*.damaged``, so that it never takes the place of a good one; a
        ``RuntimeWarning`` says so. Only tensors, numbers and strings are unpickled.

        Args:
            set_aside: whether damaged files are renamed: not by several processes at a time.

        Raises:
            DhaError: if there are files and all of them are damaged, one cannot be read, or another version of dha
                wrote them.
        """
        damaged: dict[Path, str] = {}
        for file in self.files:
            try:
                state = _read(file)
            except FileNotFoundError:
                continue
            except (OSError, MemoryError) as error:
                # It may be whole: nothing older takes its place.
                raise DhaError(f"{str(file)!r} cannot be read ({error}): mend that and resume again") from error
            except Exception as error:  # Whatever torch makes of bytes that are not its own.
                damaged[file] = str(error)[:300]
                continue
            for other in self.files:
                if other != file and os.path.lexists(other) and not begins_with(other, CHECKPOINT):
                    damaged.setdefault(other, "dha has not written it")
            for bad, reason in damaged.items() if set_aside else ():
                place = _free(bad)
                bad.rename(place)
                _warn(
                    f"{str(bad)!r} is damaged ({reason}): it is now {place.name!r}, the run goes on from {file.name!r}"
                )
            return state
        if damaged:
            reasons = ", ".join(f"{str(file)!r} is damaged ({reason})" for file, reason in damaged.items())
            raise DhaError(f"{reasons}. No checkpoint is left: start again in another folder")
        return None

    def remove(self) -> None:
        """Remove the files: the run is over."""
        for file in self.files:
            self.remove_file(file)

    def remove_previous(self) -> None:
        """Remove the older file, which takes room that is needed."""
        for file in self.files[1:]:
            self.remove_file(file)

    @staticmethod
    def remove_file(file: Path) -> None:
        """Remove a file if it is a checkpoint."""
        with suppress(OSError):
            if begins_with(file, CHECKPOINT):
                file.unlink()


def _read(file: Path) -> dict[str, Any]:
    content = read_bytes(file, _memory())
    if content.startswith(CHECKPOINT) and not content.startswith(MAGIC):
        raise ValueError("another version of dha wrote it: go on with that version")
    inside = memoryview(content)[len(MAGIC) : -_DIGEST]
    if not content.startswith(MAGIC) or hashlib.sha256(inside).digest() != content[-_DIGEST:]:
        raise ValueError("its checksum is wrong")
    state = torch.load(io.BytesIO(inside), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    _check_sizes(state)
    return state


def _check_sizes(value: Any) -> None:
    """Raise a ``ValueError`` if a tensor claims to be larger than what was stored: a copy would fill the memory."""
    if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor claims the shape {tuple(value.shape)}")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_sizes(part)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**36


def _free(file: Path) -> Path:
    """Return a name for a damaged file that no other file has."""
    names = (file.with_name(f"{file.name}.damaged{number or ''}") for number in range(1000))
    return next(place for place in names if not os.path.lexists(place))


def _warn(complaint: str) -> None:
    warnings.warn(complaint, RuntimeWarning, stacklevel=3)


def _copied(value: Any) -> Any:
    """Return a state with its tensors copied to the host."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


class _Hashed:
    """A file to write to, and the SHA-256 of what is written: a state need not be copied whole to have its sum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum, self._error = file, hashlib.sha256(), None

    def write(self, content: bytes) -> int:
        try:
            if self._error is None:
                self._file.write(content)
        except OSError as error:
            # torch would make another error of it, which does not say why.
            self._error = error
        self._sum.update(content)
        return len(content)

    def flush(self) -> None:
        """There is nothing to flush here, but torch asks for it."""

    def digest(self) -> bytes:
        """Return the sum.

        Raises:
            OSError: if something could not be written.
        """
        if self._error is not None:
            raise self._error
        return self._sum.digest()
