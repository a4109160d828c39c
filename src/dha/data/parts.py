"""One part (train, validation, test) of a source before its pixels are read, so that errors come before work."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dha.data.decoding import read_header, read_image
from dha.data.images import convert_channels, resize_arrays
from dha.errors import DhaError

OnBadImage = Literal["error", "skip"]

_SAMPLE = 64
_BATCH = 512


class Part(Protocol):
    """Images to be read, with their labels.

    `labels` is (N,), whole numbers or strings; `place` is what errors call the part.
    """

    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102

    @property
    def place(self) -> str: ...  # noqa: D102

    def geometry(self) -> tuple[int, int]:
        """Return the channels (1 or 3) and the typical shorter side in pixels, without reading all images."""
        ...

    def read(self, channels: int, image_size: int, on_bad_image: OnBadImage) -> tuple[Tensor, Tensor]:
        """Return the images, uint8 (M, channels, image_size, image_size), and which of the N they are, int64 (M,)."""
        ...


@dataclass(frozen=True)
class Parts:
    """All parts of a source; `declared` is the order of the classes where the source states one."""

    name: str
    train: Part
    validation: Part | None = None
    test: Part | None = None
    declared: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ArrayPart:
    """Images of one size in memory: uint8, (N, C, H, W)."""

    images: Tensor
    labels: np.ndarray
    place: str

    def geometry(self) -> tuple[int, int]:
        """Return channels and shorter side."""
        return self.images.shape[1], min(self.images.shape[2:])

    def read(self, channels: int, image_size: int, on_bad_image: OnBadImage) -> tuple[Tensor, Tensor]:
        """Return all images, converted, and their numbers."""
        images = resize_arrays(convert_channels(self.images, channels), image_size)
        return images, torch.arange(len(images))


@dataclass(frozen=True)
class ItemPart:
    """Images to decode one by one; `items` (paths, files or Pillow images) need only support slices."""

    items: Any
    labels: np.ndarray
    place: str

    def geometry(self) -> tuple[int, int]:
        """Return channels and median shorter side of a spread sample; 1 channel only if all of it is grey."""
        spread = np.linspace(0, len(self.labels) - 1, min(_SAMPLE, len(self.labels))).astype(int)
        headers, problem = [], None
        for index in spread.tolist():
            try:
                headers.append(read_header(self.items[index : index + 1][0]))
            except DhaError as error:
                problem = error  # `read` reports or skips it
        if not headers:
            raise DhaError(f"{self.place} seems to hold no image at all: {problem}") from problem
        return 1 if all(grey for grey, _ in headers) else 3, int(np.median([side for _, side in headers]))

    def read(self, channels: int, image_size: int, on_bad_image: OnBadImage) -> tuple[Tensor, Tensor]:
        """Decode the images in threads.

        Raises:
            DhaError: naming the first image that cannot be decoded, unless `on_bad_image` is "skip".
        """
        images = torch.empty((len(self.labels), channels, image_size, image_size), dtype=torch.uint8)
        good: list[int] = []

        def decode(index: int, item: Any) -> DhaError | None:
            name = str(item) if isinstance(item, str | Path) else f"{self.place}[{index}]"
            try:
                images[index] = read_image(item, channels, image_size, name)
            except DhaError as error:
                return error
            return None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(images), _BATCH):  # so that not all encoded images are in memory at once
                items: Sequence[Any] = self.items[start : start + _BATCH]
                for index, error in enumerate(pool.map(decode, range(start, start + len(items)), items), start):
                    if error is None:
                        good.append(index)
                    elif on_bad_image == "error":
                        raise DhaError(f"{error}, or leave it out with --on-bad-image skip") from error
        kept = torch.tensor(good, dtype=torch.int64)
        return (images if len(kept) == len(images) else images[kept]), kept
