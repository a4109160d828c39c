"""Which files dha has written: only those are replaced or removed. Told by what they begin with, without torch."""

import json
import os
from pathlib import Path

from dha.errors import DhaError
from dha.files import begins_with, is_temporary, read_bytes

SETTINGS, HEADER = "config.yaml", b"# dha fit "
"""The file that makes a folder a run, and what it begins with."""

CHECKPOINTS, CHECKPOINT = ("checkpoint.pt", "checkpoint.previous.pt"), b"dha checkpoint "
"""The newest and the one before it, and what they begin with; a number of their format follows."""

IMAGES = ".dha-images"
"""The folder of decoded images, in that of a run: a name that nobody else gives to a folder."""

LARGEST_JSON = 64 * 2**20
"""Bytes of a file of a model other than its weights."""

DATA, LEFT_OUT = "data.json", "left-out.csv"
"""What was read, and path and reason of everything that was left out."""

_STARTS = {
    "metrics.csv": (0, b"epoch,seconds,train_loss,"),
    "codes.safetensors": (8, b"{"),
    DATA: (0, b'{\n  "name": '),
    LEFT_OUT: (0, b"path,reason"),
}
_MODEL = {
    "model.json": (0, b'{\n  "format": '),
    "policy.json": (0, b'{\n  "operations": '),
    "weights.safetensors": (8, b"{"),
}
"""What other files of runs and models have at which byte."""

_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in every folder that they show."""

MODEL_FILES = (*_MODEL, *_SYSTEM)
"""What may be removed from a folder of a model with it."""


def check_out(out: str | Path, resume: bool = False) -> bool:
    """Return whether a run has begun in a folder, after making sure that it may go on there, or begin.

    Args:
        out: the folder.
        resume: whether it may hold a run that is not over.

    Raises:
        DhaError: if it is a file, or holds anything but a run that is to go on.
    """
    folder = Path(out)
    if not str(out).strip() or "\0" in str(out):
        raise DhaError(f"out={str(out)!r} names no folder: name one that is new or empty")
    try:
        if folder.exists() and not folder.is_dir():
            raise DhaError(f"out={str(folder)!r} is a file: name a folder that is new or empty")
        held = os.listdir(folder) if folder.exists() else []
    except (OSError, ValueError) as error:
        raise error if isinstance(error, DhaError) else unwritable(folder, error) from error
    held = sorted(name for name in held if name not in (IMAGES, *_SYSTEM) and not is_temporary(name))
    if not held:
        return False
    if not begins_with(folder / SETTINGS, HEADER):
        raise DhaError(
            f"out={str(folder)!r} holds {held[0]!r} and no run of dha: name a folder that is new or empty"
            + (", or a run" if resume else "")
        )
    if not resume:
        raise DhaError(
            f"out={str(folder)!r} already holds a run: choose another folder, delete it first, or resume the run"
        )
    for name in _STARTS:
        _check_own(folder / name, _STARTS)
    check_model(folder / "model")
    final = _is_final(folder / "model")
    # Models of before do not say whether they are final: a run that is over has no checkpoints.
    if final or (final is None and "model" in held and not any(name in held for name in CHECKPOINTS)):
        raise DhaError(f"the run in out={str(folder)!r} is over: its model is in {str(folder / 'model')!r}")
    return True


def check_model(folder: Path) -> None:
    """Make sure that a folder is new, empty, or a model that dha has written and nothing else.

    Raises:
        DhaError: if it is anything else, or a link.
        OSError: if it cannot be read.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise DhaError(f"{str(folder)!r} is {'a link' if folder.is_symlink() else 'a file'}: name a folder")
    held = sorted(name for name in os.listdir(folder) if name not in _SYSTEM)
    for name in held:
        if name not in _MODEL:
            raise DhaError(
                f"{str(folder)!r} holds {name!r}, which is no part of a model: move it away, or name another folder"
            )
        _check_own(folder / name, _MODEL)
    if held and "model.json" not in held:
        raise DhaError(f"{str(folder)!r} holds {held[0]!r} and no model of dha: name a new folder")


def unwritable(folder: Path, error: Exception) -> DhaError:
    """Return the error of a folder that nothing can be written to."""
    reason = error.strerror if isinstance(error, OSError) else error
    return DhaError(f"out={str(folder)!r} cannot be written to ({reason}): choose another folder")


def _check_own(file: Path, starts: dict[str, tuple[int, bytes]]) -> None:
    offset, start = starts[file.name]
    if os.path.lexists(file) and not begins_with(file, start, offset):
        raise DhaError(f"{str(file)!r} was not written by dha, which would replace it: move it away")


def _is_final(folder: Path) -> bool | None:
    """Return whether a model says that it is the final one of a run; None where it says nothing of it."""
    try:
        final = json.loads(read_bytes(folder / "model.json", LARGEST_JSON)).get("final")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return final if isinstance(final, bool) else None
