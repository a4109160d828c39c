"""Signals that end a run: at once while nothing is lost by it, else after what is under way is saved."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
"""The signals that ask a process to end; Windows lacks two of them."""

PATIENCE = 3.0
"""Seconds after the first signal in which others count as the same one: ``timeout`` sends its own twice at once."""

SAVING = "dha: the run saves its state and ends; another signal changes nothing\n"


class Ended(KeyboardInterrupt):
    """A signal has come.

    Args:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class _Handlers:
    """Handles the ending signals while the block lasts, in the main thread of a process; elsewhere nothing happens.

    SIGHUP and SIGQUIT stay ignored where they are, as nohup has it.
    """

    def __init__(self, listen: bool = True) -> None:
        self.listen = listen and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Any:
        for number in ENDING if self.listen else ():
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN or number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = before
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ends = self._ends(error)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)

    def _ends(self, error: BaseException | None) -> bool:
        """Return whether the signals that follow are ignored, because the process ends by the first one."""
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class EndBySignal(_Handlers):
    """Turns the first ending signal into an ``Ended`` exception while the block lasts. A context manager.

    Others within ``PATIENCE`` seconds are ignored, so that what has to be tidied up is; a later one ends the process at
    once, because what the first one has begun does not end.

    Args:
        to_the_end: whether they stay ignored after the block, while the process ends.
    """

    def __init__(self, to_the_end: bool = False) -> None:
        super().__init__()
        self.to_the_end = to_the_end
        self._since: float | None = None

    def _ends(self, error: BaseException | None) -> bool:
        stopped = any(signal.getsignal(number) is signal.SIG_IGN for number in self._before)
        return self.to_the_end and (self._since is not None or stopped)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
            raise Ended(number)
        if time.monotonic() - self._since > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class Stop(_Handlers):
    """Notes ending signals while the block lasts, so that what is under way can be finished and saved; what comes
    after the first changes nothing, and is ignored from then on if the block ends by an exception. A context manager.

    Args:
        listen: False leaves signals alone. Only the main thread of a process can listen.
        told: whether the first signal writes on standard error that the run is being saved.

    Attributes:
        signal: the number of the first signal that came, or None.
    """

    def __init__(self, listen: bool = True, told: bool = False) -> None:
        super().__init__(listen)
        self.told = told
        self.signal: int | None = None

    def _ends(self, error: BaseException | None) -> bool:
        return self.signal is not None and error is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self.told:
                with suppress(OSError):  # A terminal that is closed.
                    os.write(2, SAVING.encode())
