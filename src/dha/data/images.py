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
        weights: float32, (N,), how much each counts in a loss; None for all alike.

    Raises:
        DhaError: if the first two have other types or shapes, or different lengths.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, rows: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DhaError(f"images are {_describe(images)}; pass uint8 of shape (N, C, H, W)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DhaError(f"labels are {_describe(labels)}; pass int64 of shape ({len(images)},)")
        self._store, self._labels, self._rows, self.weights = images, labels, rows, weights

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

    def at(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Return the images at `indices`, integers (B,) in 0..N-1, uint8 (B, C, H, W), their labels, int64 (B,), and if
        they have any their weights, float32 (B,).
        """
        rows = indices if self._rows is None else self._rows[indices]
        return self._store[rows], self._labels[rows], *self._weights_at(indices)

    def _weights_at(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        return () if self.weights is None else (self.weights[indices],)

    def read(self, indices: Tensor, pinned: bool = False) -> tuple[Tensor, ...]:
        """Return what `at` does, of a store that is not on a device, in the one thread that calls this; maybe in pinned
        memory, from which a copy to a CUDA device does not wait.
        """
        rows = indices if self._rows is None else self._rows[indices]
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=pinned)
        # NumPy, because torch would start threads beside those that train.
        np.take(self._store.numpy(), rows.numpy(), axis=0, out=images.numpy(), mode="clip")
        rest = self._labels[rows], *self._weights_at(indices)
        return images, *(part.pin_memory() if pinned else part for part in rest)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield all images in order with their labels, and if they have any their weights, at most `size` at a time."""
        for first in range(0, len(self), size):
            indices = slice(first, first + size)
            rows = indices if self._rows is None else self._rows[indices]
            yield self._store[rows], self._labels[rows], *self._weights_at(indices)

    def join(self, other: "LabelledImages") -> "LabelledImages":
        """Return these images and those of another part after them; of two stores one is made, in memory."""
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = torch.cat([self._all_weights(), other._all_weights()])
        if other._store is not self._store:
            images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
            return LabelledImages(images, labels, weights=weights)
        return LabelledImages(self._store, self._labels, torch.cat([self._all_rows(), other._all_rows()]), weights)

    def weighted(self, weights: Tensor) -> "LabelledImages":
        """Return the same images with weights, float32 (N,)."""
        return LabelledImages(self._store, self._labels, self._rows, weights.to(self.device))

    def select(self, indices: Tensor | np.ndarray | Sequence[int]) -> "LabelledImages":
        """Return the images at `indices` (integers in 0..N-1, or a boolean mask of length N), in that order."""
        chosen = torch.as_tensor(indices)
        if chosen.dtype == torch.bool:
            # Not `nonzero`, which takes twice the memory for a moment.
            chosen = torch.from_numpy(np.arange(len(chosen), dtype=np.int32)[chosen.numpy()])
        chosen = chosen.int().to(self._labels.device)  # an empty list would otherwise be a float index
        rows = chosen if self._rows is None else self._rows[chosen]
        return LabelledImages(self._store, self._labels, rows, *self._weights_at(chosen))

    def _all_weights(self) -> Tensor:
        return torch.ones(len(self), device=self.device) if self.weights is None else self.weights

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
            moved[id(part._store)],
            part._labels.to(device),
            None if part._rows is None else part._rows.to(device),
            None if part.weights is None else part.weights.to(device),
        )
        for part in parts
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
