"""What a GPU does at the same time: streams, in which work is done in order, while that of others goes on."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def side_by_side(calls: Sequence[Callable[[], object]], device: torch.device) -> None:
    """Call functions none of which needs another's results: a GPU does at the same time what they ask of it."""
    if device.type != "cuda":
        for call in calls:
            call()
        return
    here = torch.cuda.current_stream(device)
    streams = _streams(device, len(calls), threading.get_ident())
    for stream, call in zip(streams, calls, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            call()
    for stream in streams:
        here.wait_stream(stream)


@cache
def _streams(device: torch.device, count: int, thread: int) -> list[torch.cuda.Stream]:
    # The same every time: each has memory of its own for what is made in it. But not those of another thread, which may
    # be recording.
    return [torch.cuda.Stream(device) for _ in range(count)]


class Aside:
    """What a GPU does aside, while it trains; anything else does it at once.

    Args:
        device: that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def catch_up(self) -> None:
        """Let what is done aside from now on wait for all that the device has been asked for."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def work(self) -> AbstractContextManager[Any]:
        """Do aside what is asked for in this context; it may use what was made in one, or before ``catch_up``."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Let the device go on only when what was made aside is there; these tensors are used then, and dropped."""
        if self.stream is not None:
            here = torch.cuda.current_stream(self.stream.device)
            here.wait_stream(self.stream)
            for tensor in tensors:
                # Else their memory could be used again aside while they are still looked at here.
                tensor.record_stream(here)
