"""What users of dha are meant to see: the error, and the end of a run that was asked to stop."""


class DhaError(ValueError):
    """Bad input, found before any long work starts: the message names the value, the place and the remedy."""


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
