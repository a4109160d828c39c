"""How much of a run is over, by the clock or by steps."""

import time


class Budget:
    """The share of a run that is over, measured by wall-clock time or by steps.

    Args:
        seconds: length of the run from ``started``, evaluation and saving at its end included; None to count steps.
        steps: number of training steps of the whole run; used when ``seconds`` is None.
        started: when the run began, as ``time.monotonic()`` told.

    Attributes:
        closing: seconds kept free for evaluation and saving at the end; update it when they have been measured.
    """

    def __init__(self, *, seconds: float | None, steps: int, started: float) -> None:
        self.seconds, self.steps, self.started = seconds, steps, started
        self.began, self.taken = time.monotonic(), 0
        self.closing = 0.0 if seconds is None else 0.05 * seconds

    def advance(self) -> None:
        """Count one training step."""
        self.taken += 1

    def progress(self) -> float:
        """Return the share of training that is over, in [0, 1]; 1 means stop now."""
        if self.seconds is None:
            return min(1.0, self.taken / self.steps)
        length = self.started + self.seconds - min(self.closing, 0.3 * self.seconds) - self.began
        return min(1.0, (time.monotonic() - self.began) / max(length, 1e-9))
