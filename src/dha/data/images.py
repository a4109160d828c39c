"""Labelled images, as rows of a store in memory or on disk."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dha.errors import DhaError

RESIDENT = 0.5
"""Share of the free memory of a device that training images may take; otherwise their batches are copied to it."""


class LabelledImages:
    """Images together with their class numbers: all of a store, or some rows of it, in any order.

    Selecting and joining copies row numbers and no pixels, so that the store may be larger than the memory: a tensor
    over a file, which is read when images are asked for.

    Args:
        images: the store, uint8, (M, C, H, W), pixels 0..255.
        labels: int64, (M,), class numbers from 0.
        rows: int32, (N,), the rows of the store that these images are; None for all in order.

    Raises:
        DhaError: if the first two have other types or shapes, or different lengths.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DhaError(f"images are {_describe(images)}; pass uint8 of shape (N, C, H, W)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DhaError(f"labels are {_describe(labels)}; pass int64 of shape ({len(images)},)")
        self._store, self._labels, self._rows = images, labels, rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._store if self._rows is None else self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, uint8 (C, H, W), and its class number."""
        row = index if self._rows is None else self._rows[index]
        return self._store[row], int(self._labels[row])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self._store.shape[1:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All of them, uint8, (N, C, H, W); where they are some rows of the store, a copy in memory."""
        return self._store if self._rows is None else self._store[self._rows]

    @property
    def labels(self) -> Tensor:
        """Their class numbers, int64, (N,)."""
        return self._labels if self._rows is None else self._labels[self._rows]

    @property
    def rows(self) -> Tensor:
        """The rows of the store that they are, int32, (N,)."""
        return self._all_rows()

    @property
    def device(self) -> torch.device:
        """Where the store is."""
        return self._store.device

    @property
    def on_disk(self) -> bool:
        """Whether the store is a file."""
        return self._store.untyped_storage().filename is not None

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`, integers (B,) in 0..N-1, uint8 (B, C, H, W), and their labels, int64 (B,)."""
        rows = indices if self._rows is None else self._rows[indices]
        return self._store[rows], self._labels[rows]

    def read(self, indices: Tensor, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Return what `at` does, of a store that is not on a device, in the one thread that calls this; maybe in pinned
        memory, from which a copy to a CUDA device does not wait.
        """
        rows = indices if self._rows is None else self._rows[indices]
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=pinned)
        # NumPy, because torch would start threads beside those that train.
        np.take(self._store.numpy(), rows.numpy(), axis=0, out=images.numpy(), mode="clip")
        labels = self._labels[rows]
        return images, labels.pin_memory() if pinned else labels

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order with their labels, at most `size` of them at a time."""
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            if self._rows is not None:
                rows = self._rows[rows]
            yield self._store[rows], self._labels[rows]

    def join(self, other: "LabelledImages") -> "LabelledImages":
        """Return these images and those of another part after them; of two stores one is made, in memory."""
        if other._store is not self._store:
            return LabelledImages(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))
        return LabelledImages(self._store, self._labels, torch.cat([self._all_rows(), other._all_rows()]))

    def select(self, indices: Tensor | np.ndarray | Sequence[int]) -> "LabelledImages":
        """Return the images at `indices` (integers in 0..N-1, or a boolean mask of length N), in that order."""
        chosen = torch.as_tensor(indices)
        if chosen.dtype == torch.bool:
            # Not `nonzero`, which takes twice the memory for a moment.
            chosen = torch.from_numpy(np.arange(len(chosen), dtype=np.int32)[chosen.numpy()])
        chosen = chosen.int().to(self._labels.device)  # an empty list would otherwise be a float index
        return LabelledImages(self._store, self._labels, chosen if self._rows is None else self._rows[chosen])

    def _all_rows(self) -> Tensor:
        if self._rows is not None:
            return self._rows
        return torch.arange(len(self._store), dtype=torch.int32, device=self._store.device)


def on_device(
    parts: Sequence[LabelledImages], device: torch.device, share: float = RESIDENT
) -> tuple[LabelledImages, ...]:
    """Move images to the device where they fit.

    Args:
        parts: labelled images; a store that several of them are rows of is moved once.
        device: to move them to.
        share: of the free memory of a CUDA device, how much stores may take; those that do not fit stay where they are,
            and so do those on disk where the device is of another kind, whose free memory is not known.

    Returns:
        The parts, in the same order.
    """
    stores = {id(part._store): part._store for part in parts}
    if device.type == "cuda":
        fits = sum(store.nbytes for store in stores.values()) <= share * torch.cuda.mem_get_info(device)[0]
    else:
        fits = device.type == "cpu" or not any(part.on_disk for part in parts)
    if not fits:
        return tuple(parts)
    moved = {key: store.to(device) for key, store in stores.items()}
    return tuple(
        LabelledImages(
            moved[id(part._store)], part._labels.to(device), None if part._rows is None else part._rows.to(device)
        )
        for part in parts
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
