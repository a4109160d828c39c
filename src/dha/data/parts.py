"""One part (train, validation, test) of a source before its pixels are read, so that errors come before work."""

import os
from collections import Counter
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
from dha.data.decoding import ImageFacts, read_header, read_image
from dha.data.image_format import FLOAT_WHITES, INTEGER_WHITES, ImageFormat, read_alike, typical_size
from dha.data.labels import Labels
from dha.data.report import Facts
from dha.data.resizing import convert_channels, resize_arrays
from dha.errors import DhaError, printable

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

_LOOK_ON = 1024
"""Images that are read at least before an error ends that, so that it can say how many are damaged."""


_Decoded = Future[ImageFacts | tuple[str, DhaError] | None]
"""An image that is being read: what it was, or its name and the error."""


class Part(Protocol):
    """Images to be read, with their labels.

    `labels` are those of all N images; `place` is what errors call the part.
    """

    @property
    def labels(self) -> Labels: ...  # noqa: D102

    @property
    def place(self) -> str: ...  # noqa: D102

    def geometry(self, resize: Resize, on_bad_image: OnBadImage) -> tuple[int, int]:
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
        facts: what they were before they were converted.
    """

    images: Tensor
    readable: Tensor | None
    integer_white: int | None
    float_white: int | None
    facts: Facts


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

    def geometry(self, resize: Resize, on_bad_image: OnBadImage) -> tuple[int, int]:
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
        sizes = Counter[tuple[int, int]]()
        for array in self.arrays.values():
            sizes[array.shape[2], array.shape[1]] += len(array)
        noted = Counter[str]()
        for some in converted.values():
            deep = some.integer_white is not None or some.float_white is not None
            noted.update(transparent=some.transparent, blank=some.blank, deep=len(some.pixels) if deep else 0)
        facts = Facts(sizes, Counter(array=len(self.labels)), noted)
        return PartImages(torch.cat(images), None, max(integer) or None, max(floats) or None, facts)


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

    def geometry(self, resize: Resize, on_bad_image: OnBadImage) -> tuple[int, int]:
        """Return channels and median image size of a sample; 1 channel only if all of it is grey.

        Raises:
            DhaError: if there is no image in it; or, of so many images that reading them takes long, if one of it
                cannot be read, unless `on_bad_image` is "skip".
        """
        headers, errors = [], []
        for item in self.items.sample(_SAMPLE):
            try:
                headers.append(read_header(item))
            except DhaError as error:
                errors.append(error)  # `read` reports or skips it
        if not headers:
            raise DhaError(f"{self.place} seems to hold no image at all: {errors[0]}") from errors[0]
        if errors and on_bad_image == "error" and len(self.labels) > _LOOK_ON:
            raise _refused(errors, f"a sample of {len(headers) + len(errors)}")
        sizes = [typical_size(resize, header.width, header.height) for header in headers]
        return 1 if all(header.grey for header in headers) else 3, int(np.median(sizes))

    def read(self, image_format: ImageFormat, on_bad_image: OnBadImage, cache: Cache) -> PartImages:
        """Decode the images in threads, where the cache says.

        Raises:
            DhaError: naming the first image that cannot be decoded, unless `on_bad_image` is "skip".
        """
        shape = len(self.labels), image_format.channels, image_format.image_size, image_format.image_size
        name = f"{self.place}, {image_format}, on_bad_image={on_bad_image}"

        def fill(images: Tensor) -> tuple[Tensor, Any]:
            states, facts = self._decode(images, image_format, on_bad_image)
            return states, facts.to_dict()

        images, states, facts = cache.keep(shape, name, fill)
        readable = None if states.all() else states.nonzero()[:, 0]
        return PartImages(images, readable, *_deepest(states), Facts.from_dict(facts))

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return what errors call the images at `indices`."""
        wanted, found = set(indices), {}
        first = 0
        for items in self.items.chunks(_CHUNK):
            found |= {i: self._name(i, items[i - first]) for i in range(first, first + len(items)) if i in wanted}
            first += len(items)
            if len(found) == len(wanted):
                break
        return [found.get(i, f"{self.place}[{i}]") for i in indices]

    def _name(self, index: int, item: Any) -> str:
        return str(item) if isinstance(item, str | Path) else f"{self.place}[{index}]"

    def _decode(self, images: Tensor, image_format: ImageFormat, on_bad_image: OnBadImage) -> tuple[Tensor, Facts]:
        states, facts = torch.zeros(len(images), dtype=torch.uint8), Facts()
        self._decode_some(None, images, states, facts, image_format, on_bad_image)
        # What is white is known only now; images whose own values fit less have been scaled by less.
        found = {
            n: white for n, white in zip(_NAMES, _deepest(states), strict=True) if getattr(image_format, n) is None
        }
        differ = [s for s, own in enumerate(_STATES) if any(own.get(n) not in (None, found[n]) for n in found)]
        again = torch.isin(states, torch.tensor(differ, dtype=torch.uint8))
        if again.any():
            self._decode_some(again, images, states, Facts(), replace(image_format, **found), on_bad_image)
        return states, facts

    def _decode_some(
        self,
        wanted: Tensor | None,
        images: Tensor,
        states: Tensor,
        facts: Facts,
        image_format: ImageFormat,
        on_bad_image: OnBadImage,
    ) -> None:
        def decode(index: int, item: Any) -> ImageFacts | tuple[str, DhaError] | None:
            if wanted is not None and not wanted[index]:
                return None
            name = self._name(index, item)
            try:
                pixels, known = read_image(item, image_format, name)
            except DhaError as error:
                return name, error
            images[index] = pixels
            states[index] = _STATES.index({name: getattr(known, name) for name in _NAMES})
            return known

        bad: list[tuple[str, DhaError]] = []
        looked_at = 0

        def finish(decoded: list[_Decoded]) -> None:
            nonlocal looked_at
            looked_at += len(decoded)
            for known in [future.result() for future in decoded]:
                if isinstance(known, ImageFacts):
                    facts.add(known)
                elif known is not None:
                    bad.append(known)

        def refuse_bad() -> None:
            if bad and on_bad_image == "error":
                raise _refused([error for _, error in bad], f"the first {looked_at}") from bad[0][1]

        under_way: list[_Decoded] = []
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
                if looked_at >= _LOOK_ON:
                    refuse_bad()
            finish(under_way)
            refuse_bad()
            facts.unreadable.update((name, str(error).removeprefix(f"{printable(name)} ")) for name, error in bad)
            if count < len(images):
                raise self._changed()
        finally:
            pool.shutdown(cancel_futures=True)

    def _changed(self) -> DhaError:
        return DhaError(f"{self.place} has changed while it was read; begin again")


def _refused(errors: Sequence[DhaError], among: str) -> DhaError:
    more = f" ({len(errors) - 1} more of {among} images cannot be read either)" if errors[1:] else ""
    return DhaError(f"{errors[0]}{more}, or leave it out with --on-bad-image skip")


def _deepest(states: Tensor) -> tuple[int | None, int | None]:
    """Return the largest white of integers, and of floats, among images in these states; None where there is none."""
    own = [_STATES[state] for state in states.unique().tolist() if state]
    integer, floats = ([white for whites in own if (white := whites[name])] for name in _NAMES)
    return max(integer, default=None), max(floats, default=None)


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` numbers in 0..total-1, evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()
