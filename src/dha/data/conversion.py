"""From a Pillow image of any mode to 8 bits a channel, grey or RGB, without transparency."""

import math
from typing import Any

import numpy as np
from PIL import Image

from dha.data.deep_colour import raw_mode
from dha.data.image_format import FLOAT_WHITES, INTEGER_WHITES, NEARLY, SLACK, Background

DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
"""Modes of more than 8 bits a channel, all of them grey."""

GREY = DEEP | {"1", "L", "LA", "La"}

_BAND = 2**22
"""Pixels that are converted at a time, so that a large image has few copies in memory."""

Box = tuple[int, int, int, int]


def is_reduced(image: Image.Image) -> bool:
    """Tell whether an image that is not loaded yet has 16 bits a channel of which Pillow decodes the upper 8."""
    return image.mode not in DEEP and ";16" in raw_mode(image)


def is_grey(image: Image.Image) -> bool:
    """Tell whether an image that is not loaded yet, or comes from elsewhere, is grey, with or without alpha."""
    return image.mode in GREY or raw_mode(image).startswith("LA")


def is_blank(image: Image.Image) -> bool:
    """Tell whether all pixels of an image of mode L or RGB have nearly one colour."""
    return all(int(np.ptp(band.getextrema())) <= NEARLY for band in image.split())


def transparent_colour(image: Image.Image) -> Any:
    """Return the colour that stands for transparent pixels, as they will be decoded; None if no colour does.

    Args:
        image: not loaded yet, if it was opened from a file; then the values that it gives count as the file does.
    """
    colour, raw = image.info.get("transparency"), raw_mode(image)
    if colour is None or image.mode not in GREY | {"RGB"} or isinstance(colour, bytes):
        return None
    if image.mode == "1":
        return 255 if colour else 0
    if image.mode == "L":
        return colour * {"L;2": 85, "L;4": 17}.get(raw, 1)
    return colour


def white_of(image: Image.Image) -> int:
    """Return the least white that all pixel values of an image of a deep mode fit.

    Raises:
        ValueError: if a value is negative, not finite or beyond 16 bits.
    """
    whites, slack = (FLOAT_WHITES, SLACK) if image.mode == "F" else (INTEGER_WHITES, 0)
    for row in range(0, image.height, rows := max(1, _BAND // image.width)):
        pixels = np.asarray(image.crop((0, row, image.width, min(row + rows, image.height))))
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= whites[-1] * (1 + slack)):  # written so that NaN fails too
            raise ValueError(f"its pixel values are {low}..{high}, but 0..{whites[-1]} is needed")
        whites = whites[sum(bool(high > white * (1 + slack)) for white in whites) :]
    return whites[0]


def convert(
    image: Image.Image, box: Box, factor: int, background: Background, white: int, colour: Any
) -> tuple[Image.Image, bool]:
    """Convert a part of an image, and make it smaller where it is very large.

    Args:
        image: of any mode; not changed.
        box: left, top, right, bottom of the part.
        factor: by which it is made smaller.
        background: what shows through transparent pixels.
        white: pixel value that is white, in images of deep modes.
        colour: as `transparent_colour` returns it.

    Returns:
        An image of mode L or RGB, and whether a pixel was transparent, at least in part.
    """
    left, top, right, bottom = box
    if factor == 1 and (right - left) * (bottom - top) <= _BAND:
        whole = box == (0, 0, *image.size) and colour is None
        return _opaque(image if whole else image.crop(box), background, white, colour)
    smaller, any_transparent = None, False
    rows = factor * max(1, _BAND // ((right - left) * factor))
    for row in range(top, bottom, rows):
        band = image.crop((left, row, right, min(row + rows, bottom)))
        converted, transparent = _opaque(band, background, white, colour)
        any_transparent |= transparent
        if smaller is None:
            size = math.ceil((right - left) / factor), math.ceil((bottom - top) / factor)
            smaller = Image.new(converted.mode, size)
        smaller.paste(converted.reduce(factor) if factor > 1 else converted, (0, (row - top) // factor))
    assert smaller is not None
    return smaller, any_transparent


def _opaque(image: Image.Image, background: Background, white: int, colour: Any) -> tuple[Image.Image, bool]:
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode in DEEP:
        pixels = np.asarray(image)
        # Pillow's own conversion of these modes clips at 255, which turns 16-bit images white.
        flat = Image.fromarray(np.rint(pixels * np.float64(255 / white)).clip(0, 255).astype(np.uint8))
        alpha = None if colour is None else Image.fromarray(np.where(pixels == colour, 0, 255).astype(np.uint8))
    else:
        if colour is not None:
            image.info["transparency"] = colour
        if not image.has_transparency_data:
            return image if image.mode == mode else image.convert(mode), False
        image = image.convert("LA" if mode == "L" else "RGBA")
        flat, alpha = image.convert(mode), image.getchannel("A")
    if alpha is None or alpha.getextrema() == (255, 255):
        return flat, False
    behind = Image.new(mode, flat.size, background)
    behind.paste(flat, mask=alpha)
    return behind, True
