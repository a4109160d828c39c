"""Colour images, and grey ones with alpha, of 16 bits a channel.

Pillow decodes the upper 8 bits of each value only, which are next to nothing where a camera wrote 10 or 12 bits. But it
takes the lower ones for the upper ones if it is told the other order of bytes.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dha.data.image_format import INTEGER_WHITES

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_BAND = 2**21
"""Pixels that are converted at a time."""


def raw_mode(image: Image.Image) -> str:
    """Return how pixels lie in the file, as Pillow names it; "" for an image that is loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_deep_colour(image: Image.Image) -> bool:
    """Tell whether an image that is not loaded has 16 bits a channel that can be decoded here."""
    mode = raw_mode(image)
    return mode == "LA;16B" or (mode[:-1] == f"{image.mode};16" and image.mode in ("RGB", "RGBA"))


def deep_colour(
    upper: Image.Image, lower: Image.Image, colour: Any, known_white: int | None
) -> tuple[Image.Image, int]:
    """Decode an image of 16 bits a channel, and scale it to 8.

    Args:
        upper: the image, opened and not loaded.
        lower: the same, opened once more.
        colour: that stands for transparent pixels, as the file gives it; None if none does.
        known_white: the value that is white; None for the least that all values fit.

    Returns:
        An image of mode LA, RGB or RGBA, and the least white that its values fit.
    """
    grey = raw_mode(upper) == "LA;16B"
    if grey:  # Both bytes of both channels make one pixel of four.
        upper.tile = [tile._replace(args="RGBA") for tile in upper.tile]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        lower.tile = [tile._replace(args=_swapped(tile.args)) for tile in lower.tile]  # pyright: ignore[reportAttributeAccessIssue]

    upper.load()
    if not grey:
        lower.load()

    def bands() -> Iterator[tuple[int, np.ndarray]]:
        for row in range(0, upper.height, rows := max(1, _BAND // upper.width)):
            box = 0, row, upper.width, min(row + rows, upper.height)
            first = np.asarray(upper.crop(box)).astype(np.uint16)
            if grey:
                yield row, (first[..., ::2] << 8) | first[..., 1::2]
            else:
                yield row, (first << 8) | np.asarray(lower.crop(box))

    largest = np.max([band.max((0, 1)) for _, band in bands()], axis=0)
    alpha = len(largest) in (2, 4)
    own = fitting_white(largest[:-1].max() if alpha else largest.max())
    # Opaque is 65535 in a file, but not to everyone who scales colours and alpha alike.
    whites = np.full(len(largest), known_white or own)
    whites[-1] = fitting_white(max(largest[-1], own)) if alpha else whites[-1]
    mode = "LA" if grey else "RGB" if colour is None and upper.mode == "RGB" else "RGBA"
    scaled = Image.new(mode, upper.size)
    for row, band in bands():
        levels = np.rint(np.minimum(band, whites) * (255 / whites)).astype(np.uint8)
        if colour is not None:
            levels = np.dstack([levels, np.where((band == colour).all(2), 0, 255).astype(np.uint8)])
        scaled.paste(Image.frombytes(mode, levels.shape[1::-1], np.ascontiguousarray(levels).tobytes()), (0, row))
    return scaled, own


def fitting_white(value: float) -> int:
    """Return the least white of integers that a value fits."""
    return next(white for white in INTEGER_WHITES if value <= white)


def _swapped(arguments: Any) -> Any:
    if isinstance(arguments, tuple):
        return _swapped(arguments[0]), *arguments[1:]
    return arguments[:-1] + _OTHER_ORDER[arguments[-1]]
