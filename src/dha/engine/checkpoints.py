"""Checkpoints: the state of a run in a file that is whole or not there, and the one before it."""

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dha.engine.files import replaced_file
from dha.errors import DhaError

MAGIC = b"dha checkpoint 2\n"
"""What a file begins with; what torch.save wrote follows, then the SHA-256 of that."""
_DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """Keeps the latest state of a run in memory and, where it has a folder, the latest two in files.

    Args:
        folder: of the run, or None to write no files.
    """

    def __init__(self, folder: Path | None) -> None:
        self.files = [] if folder is None else [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"]
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
            with replaced_file(newest, keep=previous) as handle:
                handle.write(MAGIC)
                hashed = _Hashed(handle)
                torch.save(self._latest, hashed)  # pyright: ignore[reportArgumentType]
                handle.write(hashed.digest())
        except OSError as error:
            _warn(f"{str(newest)!r} cannot be written ({error.strerror}): the run goes on without it")

    def latest(self) -> dict[str, Any]:
        """Return a copy of the state that was kept last by this process."""
        assert self._latest is not None
        return _copied(self._latest)

    def load(self) -> dict[str, Any] | None:
        """Return the newest state in the files that is whole, or None where there is no file.

        A ``RuntimeWarning`` tells of a newer one that is damaged. Only tensors, numbers and strings are unpickled.

        Raises:
            DhaError: if there are files and all of them are damaged.
        """
        complaint = ""
        for file in self.files:
            try:
                content = file.read_bytes()
                rest, digest = content[len(MAGIC) : -_DIGEST], content[-_DIGEST:]
                if not content.startswith(MAGIC) or hashlib.sha256(rest).digest() != digest:
                    raise ValueError("its checksum is wrong")
                state = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
            except FileNotFoundError:
                continue
            except Exception as error:  # Whatever torch makes of bytes that are not its own.
                reason = error.strerror if isinstance(error, OSError) else error
                complaint += f"{str(file)!r} is damaged and left aside ({reason}). "
                continue
            if complaint:
                _warn(complaint)
            self._latest = _copied(state)
            return state
        if complaint:
            raise DhaError(f"{complaint}No checkpoint is left: start again in another folder")
        return None

    def remove(self) -> None:
        """Remove the files: the run is over."""
        for file in self.files:
            file.unlink(missing_ok=True)


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
