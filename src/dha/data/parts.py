"""One part (train, validation, test) of a source before its pixels are read, so that errors come before work."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dha.config import Resize
from dha.data.array_pixels import array_pixels
from dha.data.cache import Cache
from dha.data.decoding import read_header, read_image
from dha.data.image_format import FLOAT_WHITES, INTEGER_WHITES, ImageFormat, read_alike, typical_size
from dha.data.labels import Labels
from dha.data.resizing import convert_channels, resize_arrays
from dha.errors import DhaError

OnBadImage = Literal["error", "skip"]

_NAMES = "integer_white", "float_white"

_STATES: list[dict[str, int | None]] = [
    {},  # not read
    {"integer_white": None, "float_white": None},
    *({"integer_white": white, "float_white": None} for white in INTEGER_WHITES),
    *({"integer_white": None, "float_white": white} for white in FLOAT_WHITES),
]
"""What is known of an image once it is read: which white its own values fit. A byte for each is kept beside them."""

_SAMPLE = 64
_CHUNK = 256


class Part(Protocol):
    """Images to be read, with their labels.

    `labels` are those of all N images; `place` is what errors call the part.
    """

    @property
    def labels(self) -> Labels: ...  # noqa: D102

    @property
    def place(self) -> str: ...  # noqa: D102

    def geometry(self, resize: Resize) -> tuple[int, int]:
        """Return the channels (1 or 3) and the typical image size in pixels, without reading all images."""
        ...

    def read(self, image_format: ImageFormat, on_bad_image: OnBadImage, cache: Cache) -> "PartImages":
        """Return the images, in memory or over a file; where `image_format` leaves a white open, what is white among
        these images is taken.
        """
        ...


class PartImages(NamedTuple):
    """The images of a part.

    Attributes:
        images: uint8, (N, channels, S, S).
        readable: which of them could be read, int64 (M,); None for all.
        integer_white, float_white: the least that the values of all images of more than 8 bits fit, as `ImageFormat`
            has them; None if there are no such images.
    """

    images: Tensor
    readable: Tensor | None
    integer_white: int | None = None
    float_white: int | None = None


@dataclass(frozen=True)
class Parts:
    """All parts of a source.

    Attributes:
        declared: the order of the classes where the source states one.
        layout: how the source was understood, for the report.
        left_out: paths of files that are not used -> why.
    """

    name: str
    train: Part
    validation: Part | None = None
    test: Part | None = None
    declared: tuple[str, ...] | None = None
    layout: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayPart:
    """Images of one size in memory: one array after the other, (N, H, W, C), as `array_pixels` takes them.

    `arrays` has each by the name that errors call it.
    """

    arrays: Mapping[str, np.ndarray]
    labels: Labels
    place: str

    def geometry(self, resize: Resize) -> tuple[int, int]:
        """Return channels and the image size at which they are not scaled."""
        height, width, _ = next(iter(self.arrays.values())).shape[1:]
        grey = all(array.shape[3] <= 2 for array in self.arrays.values())
        return 1 if grey else 3, typical_size(resize, width, height)

    def read(self, image_format: ImageFormat, on_bad_image: OnBadImage, cache: Cache) -> PartImages:
        """Return all images, converted, in memory, where they are already.

        Raises:
            DhaError: if a value is negative, not finite or above white.
        """
        readers = {name: partial(array_pixels, array, name=name) for name, array in self.arrays.items()}
        converted, _ = read_alike(readers, image_format)
        images = [
            resize_arrays(convert_channels(some.pixels, image_format.channels), image_format)
            for some in converted.values()
        ]
        integer, floats = ([getattr(some, name) or 0 for some in converted.values()] for name in _NAMES)
        return PartImages(torch.cat(images), None, max(integer) or None, max(floats) or None)


class Items(Protocol):
    """Encoded images (paths, open files or Pillow images), listed anew or read again every time they are wanted."""

    def chunks(self, size: int) -> Iterator[Sequence[Any]]:
        """Yield all of them in order, at most `size` of them at a time."""
        ...

    def sample(self, count: int) -> Sequence[Any]:
        """Return at most `count` of them, from all over."""
        ...


@dataclass(frozen=True)
class Sliced:
    """Items of what can be sliced, and is `count` long."""

    items: Any
    count: int

    def chunks(self, size: int) -> Iterator[Sequence[Any]]:
        """Yield slices."""
        return (self.items[first : first + size] for first in range(0, self.count, size))

    def sample(self, count: int) -> Sequence[Any]:
        """Return evenly spread items."""
        return [self.items[i : i + 1][0] for i in spread(self.count, count)]


@dataclass(frozen=True)
class ItemPart:
    """Images to decode one by one."""

    items: Items
    labels: Labels
    place: str

    def geometry(self, resize: Resize) -> tuple[int, int]:
        """Return channels and median image size of a sample; 1 channel only if all of it is grey."""
        headers, problem = [], None
        for item in self.items.sample(_SAMPLE):
            try:
                headers.append(read_header(item))
            except DhaError as error:
                problem = error  # `read` reports or skips it
        if not headers:
            raise DhaError(f"{self.place} seems to hold no image at all: {problem}") from problem
        sizes = [typical_size(resize, header.width, header.height) for header in headers]
        return 1 if all(header.grey for header in headers) else 3, int(np.median(sizes))

    def read(self, image_format: ImageFormat, on_bad_image: OnBadImage, cache: Cache) -> PartImages:
        """Decode the images in threads, where the cache says.

        Raises:
            DhaError: naming the first image that cannot be decoded, unless `on_bad_image` is "skip".
        """
        shape = len(self.labels), image_format.channels, image_format.image_size, image_format.image_size
        name = f"{self.place}, {image_format}, on_bad_image={on_bad_image}"
        images, states = cache.keep(shape, name, lambda images: self._decode(images, image_format, on_bad_image))
        readable = None if states.all() else states.nonzero()[:, 0]
        return PartImages(images, readable, *_deepest(states))

    def _decode(self, images: Tensor, image_format: ImageFormat, on_bad_image: OnBadImage) -> Tensor:
        states = torch.zeros(len(images), dtype=torch.uint8)
        self._decode_some(None, images, states, image_format, on_bad_image)
        # What is white is known only now; images whose own values fit less have been scaled by less.
        found = {
            n: white for n, white in zip(_NAMES, _deepest(states), strict=True) if getattr(image_format, n) is None
        }
        differ = [s for s, own in enumerate(_STATES) if any(own.get(n) not in (None, found[n]) for n in found)]
        again = torch.isin(states, torch.tensor(differ, dtype=torch.uint8))
        if again.any():
            self._decode_some(again, images, states, replace(image_format, **found), on_bad_image)
        return states

    def _decode_some(
        self,
        wanted: Tensor | None,
        images: Tensor,
        states: Tensor,
        image_format: ImageFormat,
        on_bad_image: OnBadImage,
    ) -> None:
        def decode(index: int, item: Any) -> DhaError | None:
            if wanted is not None and not wanted[index]:
                return None
            name = str(item) if isinstance(item, str | Path) else f"{self.place}[{index}]"
            try:
                pixels, facts = read_image(item, image_format, name)
            except DhaError as error:
                return error
            images[index] = pixels
            states[index] = _STATES.index({name: getattr(facts, name) for name in _NAMES})
            return None

        def finish(decoded: list[Future[DhaError | None]]) -> None:
            for future in decoded:
                error = future.result()
                if error is not None and on_bad_image == "error":
                    raise DhaError(f"{error}, or leave it out with --on-bad-image skip") from error

        under_way: list[Future[DhaError | None]] = []
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            count = 0
            # Two chunks of encoded images are in memory: one is read while the one before it is decoded.
            for items in self.items.chunks(_CHUNK):
                if count + len(items) > len(images):
                    raise self._changed()
                begun = [pool.submit(decode, index, item) for index, item in enumerate(items, count)]
                finish(under_way)
                under_way = begun
                count += len(items)
            finish(under_way)
            if count < len(images):
                raise self._changed()
        finally:
            pool.shutdown(cancel_futures=True)

    def _changed(self) -> DhaError:
        return DhaError(f"{self.place} has changed while it was read; begin again")


def _deepest(states: Tensor) -> tuple[int | None, int | None]:
    """Return the largest white of integers, and of floats, among images in these states; None where there is none."""
    own = [_STATES[state] for state in states.unique().tolist() if state]
    integer, floats = ([white for whites in own if (white := whites[name])] for name in _NAMES)
    return max(integer, default=None), max(floats, default=None)


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` numbers in 0..total-1, evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()
