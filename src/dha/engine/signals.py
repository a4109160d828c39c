"""Signals that ask a run to stop: noted, so that the step under way can be finished and everything saved."""

import signal
from types import FrameType, TracebackType
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Notes SIGINT and SIGTERM while the block lasts; a second one ends the process at once. A context manager.

    Args:
        listen: False leaves signals alone. Only the main thread of a process can listen.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self, listen: bool = True) -> None:
        self.listen = listen
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if self.listen:
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for asking in ASKING:
            signal.signal(asking, signal.SIG_DFL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
