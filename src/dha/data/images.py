"""Labelled images in memory, and the two changes of shape that arrays of images need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dha.errors import DhaError

_CHUNK = 1024


@dataclass(frozen=True)
class LabelledImages:
    """Hold images together with their class numbers.

    Args:
        images: uint8, (N, C, H, W), pixels 0..255.
        labels: int64, (N,), class numbers from 0.

    Raises:
        DhaError: if the two have other types or shapes, or different lengths.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DhaError(f"images are {_describe(self.images)}; pass uint8 of shape (N, C, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DhaError(f"labels are {_describe(self.labels)}; pass int64 of shape ({len(self.images)},)")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, uint8 (C, H, W), and its class number."""
        return self.images[index], int(self.labels[index])

    def join(self, other: "LabelledImages") -> "LabelledImages":
        """Return these images and those of another part after them."""
        return LabelledImages(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))

    def select(self, indices: Tensor | np.ndarray | Sequence[int]) -> "LabelledImages":
        """Return the images at `indices` (integers in 0..N-1, or a boolean mask of length N), in that order."""
        chosen = torch.as_tensor(indices, device=self.images.device)
        if chosen.dtype != torch.bool:
            chosen = chosen.long()  # an empty list would otherwise be a float index
        return LabelledImages(self.images[chosen], self.labels[chosen])


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Turn images into grey (1 channel) or colour (3 channels).

    Args:
        images: uint8, (N, C, H, W) with C 1 or 3.
        channels: 1 or 3.

    Returns:
        uint8, (N, channels, H, W); `images` itself if it has that many channels already. Grey is Pillow's luma.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    grey = images.new_empty((len(images), 1, *images.shape[2:]))
    for target, chunk in zip(grey.split(_CHUNK), images.split(_CHUNK), strict=True):
        red, green, blue = chunk.int().unbind(1)
        # Pillow's integer weights, so that an array and a file with the same pixels give the same grey.
        target[:, 0] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey


def resize_arrays(images: Tensor, image_size: int) -> Tensor:
    """Cut the central square out of each image and scale it, antialiased, to `image_size`.

    Args:
        images: uint8, (N, C, H, W).
        image_size: side S of the result in pixels.

    Returns:
        uint8, (N, C, S, S); `images` itself if it has that size already. Agrees with `read_image` to one grey level.
    """
    height, width = images.shape[2:]
    if height == width == image_size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == image_size:
        return square.contiguous()
    resized = images.new_empty((*images.shape[:2], image_size, image_size))
    for target, chunk in zip(resized.split(_CHUNK), square.split(_CHUNK), strict=True):
        scaled = F.interpolate(chunk.float(), size=(image_size, image_size), mode="bilinear", antialias=True)
        target.copy_(scaled.round().clamp(0, 255))
    return resized


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
