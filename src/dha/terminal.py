"""What the command line says on a terminal, which may be closed, full or of another encoding."""

import os
import shlex
import shutil
import sys
import warnings
from typing import Any, TextIO

from dha.errors import DhaError, one_line


def first_process() -> bool:
    """Return whether this is the process that speaks and writes, of several that train one network.

    It follows from what a launcher has put into the environment, before Fabric is set up.
    """
    variables = "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"
    return not any(os.environ.get(name, "0").strip("0").isdecimal() for name in variables)


def say(text: str) -> None:
    """Print a line on standard error if it can be written to."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


class OutputClosed(Exception):
    """Who read standard output reads no more of it."""


def put(text: str) -> None:
    """Print lines on standard output at once.

    Raises:
        OutputClosed: if nobody reads them.
        DhaError: if they cannot be written.
    """
    if sys.stdout is None:
        raise DhaError("standard output is closed: give it a file or a pipe")
    text = text.encode("utf-8", "backslashreplace").decode()
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # A terminal of another encoding.
        text = text.encode("ascii", "backslashreplace").decode()
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)
        raise OutputClosed from None
    except (OSError, ValueError) as error:
        _discard(sys.stdout)
        raise DhaError(f"standard output cannot be written ({_reason(error)}): give it a file with room") from error


def put_if_possible(text: str) -> None:
    """Print lines on standard output; who finished a run does not fail because nobody reads of it."""
    try:
        put(text)
    except (OutputClosed, DhaError) as error:
        if isinstance(error, DhaError):
            say(f"dha: warning: {error}")


def _discard(stream: TextIO | None) -> None:
    """Let what is still to be written to a stream go nowhere, or Python would complain of it at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # pyright: ignore[reportOptionalMemberAccess]
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def quoted(argument: str) -> str:
    """Return an argument as a shell takes it, even one that cannot be printed."""
    if argument.isprintable():
        return shlex.quote(argument)
    octets = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "'\\" else f"\\{b:03o}" for b in os.fsencode(argument))
    return f"$'{octets}'"


def program() -> list[str]:
    """Return the words that this program is called by."""
    called = sys.argv[0] if sys.argv else ""
    if os.path.basename(called) != "dha":
        return [sys.executable, "-m", "dha"]
    return ["dha"] if shutil.which("dha") == os.path.abspath(called) else [called]


def show_warnings_in_one_line() -> None:
    """Let warnings of this process be lines without a place in the code, shown once and by one process."""

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if first_process():
            text = one_line(message)
            say(f"dha: warning: {text if len(text) <= 500 else text[:500] + ' ...'}")

    warnings.showwarning = show
