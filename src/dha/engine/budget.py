"""How much of a run is over, by the clock or by steps."""

import time
from collections.abc import Mapping
from typing import Any


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
        self.began, self.before, self.taken = time.monotonic(), 0.0, 0
        self.closing = 0.0 if seconds is None else 0.05 * seconds

    def advance(self) -> None:
        """Count one training step."""
        self.taken += 1

    def used(self) -> float:
        """Return the seconds since the run began, without those in which no process worked at it."""
        return time.monotonic() - self.started

    def progress(self) -> float:
        """Return the share of training that is over, in [0, 1]; 1 means stop now."""
        if self.seconds is None:
            return min(1.0, self.taken / self.steps)
        length = self.started + self.seconds - min(self.closing, 0.3 * self.seconds) - self.began
        share = min(1.0, (time.monotonic() - self.began) / max(length, 1e-9))
        return self.before + (1 - self.before) * share

    def state_dict(self) -> dict[str, Any]:
        """Return how much is used."""
        return {"used": self.used(), "progress": self.progress(), "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any], clock: bool = True) -> None:
        """Go on from what ``state_dict`` returned; what this process has used until now comes on top.

        Args:
            state: of the run.
            clock: whether the time counts; else only the steps do.
        """
        self.taken = state["taken"]
        if clock:
            self.started -= state["used"]
            self.before, self.began = state["progress"], time.monotonic()
