"""How much of a run is over, by the clock or by epochs."""

import time


class Budget:
    """The share of a run that is over, measured by wall-clock time or by steps.

    Args:
        seconds: length of the whole run from ``started``, evaluation and saving at the end included; None to count steps instead.
        steps: number of training steps of the whole run; used when ``seconds`` is None.
        started: when the run began, as ``time.monotonic()`` told.
        closing_steps: how many training steps' worth of time evaluation and saving take at the end, kept free from the budget.
    """

    def __init__(self, *, seconds: float | None, steps: int, started: float, closing_steps: float) -> None:
        self.seconds, self.steps, self.started, self.closing_steps = seconds, steps, started, closing_steps
        self.began = time.monotonic()
        self.taken = 0

    def advance(self) -> None:
        """Count one training step."""
        self.taken += 1

    def progress(self) -> float:
        """Return the share of training that is over, in [0, 1]; 1 means stop now."""
        if self.seconds is None:
            return min(1.0, self.taken / self.steps)
        now = time.monotonic()
        per_step = (now - self.began) / max(1, self.taken)
        closing = min(0.3 * self.seconds, self.closing_steps * per_step + 0.5)
        end = self.started + self.seconds - closing
        return min(1.0, max(0.0, (now - self.began) / max(1e-9, end - self.began)))
