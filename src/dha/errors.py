"""What users of dha are meant to see: the error, and the end of a run that was asked to stop."""

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of an error: values in it may come from anybody's file."""


def printable(text: str) -> str:
    """Return a text as one line that any terminal and any UTF-8 file takes: other characters as Python escapes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object) -> str:
    """Return what is said in several lines in one that can be printed."""
    return printable(" ".join(str(text).split()))


def shortened(value: object, most: int = 80) -> str:
    """Return what a message says of a value: its ``repr``, at most so many characters of it."""
    # A list is shortened before, because the repr of a million numbers takes a second.
    text = repr(value[:most] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class DhaError(ValueError):
    """Bad input, found before any long work starts: the message names the value, the place and the remedy.

    The message is one printable line, whatever names are in it.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


class DataWarning(UserWarning):
    """Labelled images can be trained on, but figures from them would say something else than they seem to."""


class Interrupted(Exception):
    """A signal has ended a run after the step under way; what it has learned is saved.

    Args:
        signal: the number of the signal.
        progress: share of the run that is over, in [0, 1].
    """

    def __init__(self, signal: int, progress: float) -> None:
        super().__init__(f"interrupted by signal {signal} after {100 * progress:.0f} % of the run")
        self.signal, self.progress = signal, progress


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ": did you mean ...?" with the known name that is nearest to one, or nothing if none is near."""
    near = difflib.get_close_matches(name[:255], list(known), 1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""
