"""Batches of images on the device: shuffled without end for training, in order for evaluation."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dha.data.images import LabelledImages
from dha.errors import DhaError


class Batches:
    """Draw shuffled batches from images that lie on the device.

    Args:
        data: N labelled images, N at least 1; moved to `device` once, as uint8.
        batch_size: images in a batch, at least 1.
        generator: CPU generator that decides the order.
        device: where batches are wanted.
        drop_last: leave out the smaller batch at the end of an epoch; if N is below `batch_size` it is all there is,
            and is kept.

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
    ) -> None:
        _check(data, batch_size)
        self._images = data.images.to(device)
        self._labels = data.labels.to(device)
        self._size = min(batch_size, len(data))
        self._generator = generator
        self._drop_last = drop_last
        self._order: Tensor | None = None
        self._taken = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch, at least 1."""
        full, rest = divmod(len(self._labels), self._size)
        return full + bool(rest and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch: images, uint8 (B, C, H, W), and labels, int64 (B,), on the device.

        An epoch that was broken off, or was under way when the state was saved, is gone on with.
        """
        if self._order is None:
            self._order, self._taken = torch.randperm(len(self._labels), generator=self._generator), 0
        order = self._order
        if self._labels.is_cuda:
            order = order.pin_memory()  # only from pinned memory does the copy not wait for the device
        order = order.to(self._labels.device, non_blocking=True)
        for indices in order.split(self._size)[self._taken : len(self)]:
            self._taken += 1
            yield self._images[indices], self._labels[indices]
        self._order = None

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of one shuffled epoch after the other, without end."""
        while True:
            yield from self

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data: the order of the epoch under way, how much of it is over, the generator."""
        return {"order": self._order, "taken": self._taken, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, of batches of the same images."""
        self._order, self._taken = state["order"], state["taken"]
        self._generator.set_state(state["generator"])


def sequential(data: LabelledImages, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images in order, for evaluation.

    Args:
        data: labelled images.
        batch_size: images in a batch, at least 1; the last batch may be smaller.
        device: where batches are wanted.

    Returns:
        Pairs of images, uint8 (B, C, H, W), and labels, int64 (B,), on the device.

    Raises:
        DhaError: if there are no images or the batch size is below 1.
    """
    _check(data, batch_size)
    pairs = zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True)
    return ((images.to(device, non_blocking=True), labels.to(device, non_blocking=True)) for images, labels in pairs)


def _check(data: LabelledImages, batch_size: int) -> None:
    if len(data) == 0:
        raise DhaError("there are no images to make batches of; pass at least one")
    if batch_size < 1:
        raise DhaError(f"batch_size is {batch_size}; pass at least 1")
