"""Images without labels, to be classified."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dha.data.arrays import images_from_arrays
from dha.data.decoding import read_image
from dha.data.image_format import ImageFormat
from dha.data.parts import OnBadImage
from dha.errors import DhaError

_MOST_IMAGES = 256
_MOST_BYTES = 2**27


class ImageChunk(NamedTuple):
    """Some images of many.

    Attributes:
        paths: of the M images that could be read, in the order given.
        pixels: of these, uint8, (M, C, S, S).
        errors: path of each of the others, and what is wrong with it, in one line.
    """

    paths: list[str | Path]
    pixels: Tensor
    errors: list[tuple[str | Path, DhaError]]


def stream_images(
    paths: Iterable[str | Path], image_format: ImageFormat, on_bad_image: OnBadImage = "error"
) -> Iterator[ImageChunk]:
    """Read any number of image files, a few at a time, in threads; while one chunk is used, the next is decoded.

    Args:
        paths: of image files, taken as they are needed.
        image_format: what to convert them to, `preprocessing.image_format` of a model.
        on_bad_image: "error", or "skip" to go on where one cannot be read, which is then among `errors`.

    Yields:
        The images in order, at most 256 (or 128 MB) at a time.

    Raises:
        DhaError: naming the first image that cannot be read, unless `on_bad_image` is "skip".
    """
    bytes_each = image_format.channels * image_format.image_size**2
    size = max(1, min(_MOST_IMAGES, _MOST_BYTES // bytes_each))
    remaining = iter(paths)

    def begun() -> list[tuple[str | Path, Future[Tensor | DhaError]]]:
        return [(path, pool.submit(_read, path, image_format)) for path in islice(remaining, size)]

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        under_way = begun()
        while under_way:
            following = begun()
            read = [(path, future.result()) for path, future in under_way]
            errors = [(path, result) for path, result in read if isinstance(result, DhaError)]
            if errors and on_bad_image == "error":
                raise errors[0][1]
            good = [(path, result) for path, result in read if isinstance(result, Tensor)]
            shape = len(good), image_format.channels, image_format.image_size, image_format.image_size
            pixels = torch.stack([pixels for _, pixels in good]) if good else torch.empty(shape, dtype=torch.uint8)
            yield ImageChunk([path for path, _ in good], pixels, errors)
            under_way = following
    finally:
        pool.shutdown(cancel_futures=True)


def image_chunks(images: Any, image_format: ImageFormat) -> Iterator[Tensor]:
    """Read images a few at a time.

    Args:
        images: one path or a list of paths of image files, or what `images_from_arrays` takes.
        image_format: what to convert them to, `preprocessing.image_format` of a model.

    Yields:
        The images in order, uint8, (M, channels, S, S).

    Raises:
        DhaError: if a file is missing or not an image, or an array has another type, shape or range.
    """
    paths = [images] if isinstance(images, str | Path) else images
    if not (isinstance(paths, list | tuple) and paths and all(isinstance(path, str | Path) for path in paths)):
        yield images_from_arrays(images, image_format)
        return
    # All of them before the first is decoded.
    for path in paths:
        if not os.path.exists(path):
            raise DhaError(f"{path}: no such image file; pass paths of image files")
    for chunk in stream_images(paths, image_format):
        yield chunk.pixels


def load_images(images: Any, image_format: ImageFormat) -> Tensor:
    """Return all that `image_chunks` yields, uint8, (N, channels, S, S)."""
    return torch.cat(list(image_chunks(images, image_format)))


def _read(path: str | Path, image_format: ImageFormat) -> Tensor | DhaError:
    try:
        return read_image(path, image_format).pixels
    except DhaError as error:
        return error
