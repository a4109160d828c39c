"""Batches of images on the device: shuffled without end for training, in order for evaluation."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dha.data.images import LabelledImages
from dha.errors import DhaError

AHEAD = 2
"""Batches that are read ahead where reading takes time."""


class Batches:
    """Draw shuffled batches from images that lie in memory, on the device or on disk.

    What lies on the device, or in memory for a CPU, is only indexed. Anything else is read by a thread of its own,
    `AHEAD` batches before they are wanted, and goes to a CUDA device from pinned memory, for which nothing waits.

    Args:
        data: N labelled images, N at least 1.
        batch_size: images in a batch, at least 1.
        generator: CPU generator that decides the order.
        device: where batches are wanted.
        share: (rank, processes): of every batch, this process takes the part of its rank; all must draw alike.
        drop_last: leave out the smaller batch at the end of an epoch; if N is below `batch_size` it is all there is,
            and is kept.
        together: how many batches come at once, one behind the other; fewer at the end of an epoch.

    Raises:
        DhaError: if there are no images or the batch size is below 1.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device,
        drop_last: bool,
        share: tuple[int, int] = (0, 1),
        together: int = 1,
    ) -> None:
        _check(data, batch_size)
        self._data, self._device = data, device
        self._rank, processes = share
        if len(data) < processes:
            raise DhaError(f"{len(data)} images for {processes} processes: use fewer processes")
        # Parts of one size, so that the mean over processes is that over images.
        self._size = min(batch_size, len(data)) // processes * processes
        self._processes = processes
        self._generator = generator
        self._drop_last, self._together = drop_last, together
        self._order: Tensor | None = None
        self._began = generator.get_state()
        self._taken = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch, at least 1."""
        full, rest = divmod(len(self._data), self._size)
        return full + bool(rest and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield one epoch: images, uint8 (B, C, H, W), labels, int64 (B,), and if they have any weights, float32 (B,),
        of ``together`` batches, on the device.

        An epoch that was broken off, or was under way when the state was saved, is gone on with.
        """
        if self._order is None:
            self._draw_order()
        order = self._order
        assert order is not None
        reading = self._data.on_disk or self._data.device.type != self._device.type
        if not reading:
            if self._data.device.type == "cuda":
                order = order.pin_memory()  # only from pinned memory does the copy not wait for the device
            order = order.to(self._data.device, non_blocking=True)
        batches = order[: len(self) * self._size].split(self._size)[self._taken :]
        parts = [batch.tensor_split(self._processes)[self._rank] for batch in batches]
        mine = (torch.cat(parts[i : i + self._together]) for i in range(0, len(parts), self._together))
        for several in self._read_ahead(mine) if reading else map(self._data.at, mine):
            self._taken = min(self._taken + self._together, len(self))
            yield several
        self._order = None

    def _draw_order(self) -> None:
        self._began, self._taken = self._generator.get_state(), 0
        self._order = torch.randperm(len(self._data), generator=self._generator, dtype=torch.int32)

    def _read_ahead(self, parts: Iterator[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        pinned = self._device.type == "cuda"
        # Never shut down here: its thread ends with it, also where this generator is left at the end of the program.
        reader = ThreadPoolExecutor(1)
        ahead = deque(reader.submit(self._data.read, part, pinned) for part in islice(parts, AHEAD))
        while ahead:
            several = ahead.popleft().result()
            ahead.extend(reader.submit(self._data.read, part, pinned) for part in islice(parts, 1))
            yield tuple(part.to(self._device, non_blocking=True) for part in several)

    def forever(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches of one shuffled epoch after the other, without end."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data: the generator, as it was before the order of the epoch under way was drawn
        if there is one, and how many batches of it were taken.
        """
        if self._order is None:
            return {"generator": self._generator.get_state(), "taken": None}
        return {"generator": self._began, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, of batches of the same images."""
        self._generator.set_state(state["generator"])
        self._order = None
        if state["taken"] is not None:
            self._draw_order()
            self._taken = state["taken"]


def sequential(data: LabelledImages, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield all images in order, for evaluation.

    Args:
        data: labelled images.
        batch_size: images in a batch, at least 1; the last batch may be smaller.
        device: where batches are wanted.

    Returns:
        Images, uint8 (B, C, H, W), labels, int64 (B,), and if they have any weights, float32 (B,), on the device.

    Raises:
        DhaError: if there are no images or the batch size is below 1.
    """
    _check(data, batch_size)
    return (tuple(part.to(device, non_blocking=True) for part in chunk) for chunk in data.chunks(batch_size))


def _check(data: LabelledImages, batch_size: int) -> None:
    if len(data) == 0:
        raise DhaError("there are no images to make batches of; pass at least one")
    if batch_size < 1:
        raise DhaError(f"batch_size is {batch_size}; pass at least 1")
