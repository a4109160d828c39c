"""What a command says when it fails, and what is kept for those who look into it."""

import os
import sys
import tempfile
import traceback
from contextlib import suppress

from dha import __version__
from dha.errors import DhaError

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "failed to map segment",
)
"""Signs in what torch says where there is not enough memory: it raises a RuntimeError."""


def explained_by(error: Exception) -> str | None:
    """Return what to tell of an error whose cause is not dha: its input, a file, or the machine; None of others."""
    if isinstance(error, DhaError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
        return f"{place}{error.strerror or error}"
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return (
            f"the memory does not suffice ({text.splitlines()[0][:120] if text else 'MemoryError'}): give a smaller "
            "batch_size, image_size or network, or allow more memory (ulimit -v)"
        )
    if "can't start new thread" in text:
        return "the system allows no more threads: raise the limit of processes (ulimit -u), or end others"
    return None


def written(error: Exception, out: str | None) -> str:
    """Write a traceback to a new file, in the folder of the run if it has begun, else among temporary files.

    Returns:
        Where it is, in words.
    """
    folder = out if out is not None and os.path.isfile(os.path.join(out, "config.yaml")) else None
    for place in (folder, None):
        with suppress(OSError):
            handle, file = tempfile.mkstemp(prefix="dha-error-", suffix=".txt", dir=place)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as opened:
                opened.write(f"dha {__version__}, Python {sys.version}, {sys.platform}\n{sys.argv!r}\n\n")
                opened.writelines(traceback.format_exception(error))
            return f"in {file!r}"
    return "shown by --debug"
