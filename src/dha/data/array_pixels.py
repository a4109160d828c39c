"""From arrays of numbers to 8 bits a channel, grey or RGB, without transparency."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dha.data.image_format import FLOAT_WHITES, INTEGER_WHITES, NEARLY, SLACK, ImageFormat
from dha.errors import DhaError

CHANNELS = (1, 2, 3, 4)
"""Grey, grey and alpha, RGB, RGB and alpha."""

_CHUNK = 2**22
"""Values that are converted at a time."""


@dataclass(frozen=True)
class ArrayPixels:
    """Converted images.

    Attributes:
        pixels: uint8, (N, C, H, W) with C 1 or 3.
        integer_white, float_white: the least white that their values fit, as `ImageFormat` has it; None for images of
            8 bits.
        transparent: how many of them had transparent pixels.
        blank: how many of these have nothing to see on the background.
    """

    pixels: Tensor
    integer_white: int | None
    float_white: int | None
    transparent: int
    blank: int


def image_array(x: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Return one image, an array or tensor (H, W), (H, W, C) or (C, H, W), as (H, W, C).

    Raises:
        DhaError: if it has another shape, or is not of numbers.
    """
    array = _numpy(x, name)
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3:
        return images_array(x[None], name)[0]
    raise DhaError(f"{name} has shape {array.shape}; pass an image as (H, W), (H, W, C) or (C, H, W)")


def images_array(x: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Return images, an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), as (N, H, W, C).

    Channels come first where only that can be; where both can be, as in (N, 3, 4, 3), they come last, in a tensor of
    square images first.

    Raises:
        DhaError: if they have another shape, are not of numbers, or there are none.
    """
    array = _numpy(x, name)
    if array.ndim == 3:
        return array[..., None]
    if array.ndim != 4:
        raise DhaError(f"{name} has shape {array.shape}; pass images as (N, H, W), (N, H, W, C) or (N, C, H, W)")
    first, last = (array.shape[axis] in CHANNELS for axis in (1, 3))
    if first and (not last or (isinstance(x, Tensor) and array.shape[2] == array.shape[3])):
        return np.moveaxis(array, 1, 3)
    if not last:
        raise DhaError(
            f"{name} has shape {array.shape}; channels, 1 to 4 of them (grey, with alpha, RGB, with alpha), are the "
            "second or the last of four axes"
        )
    return array


def predicted_array(x: np.ndarray | Tensor, channels: int, name: str) -> np.ndarray:
    """Return images without labels as (N, H, W, C): as `images_array`, or one image, which makes N = 1.

    Three axes are one image where the last one can only be channels; (3, H, W) is one image to a model of colour
    images if it is a tensor.

    Raises:
        DhaError: if they have another shape, or an array (3, H, W) could be one image in colour or three grey ones.
    """
    shape = tuple(x.shape)
    if len(shape) == 2:
        return image_array(x, name)[None]
    if len(shape) == 3:
        if shape[2] in CHANNELS and shape[1] not in CHANNELS:
            return image_array(x, name)[None]
        if shape[0] == 3 == channels:
            if isinstance(x, Tensor):
                return image_array(x, name)[None]
            raise DhaError(
                f"{name} has shape {shape}: one image in colour with its channels first, or 3 grey ones? Pass it as "
                f"{(1, *shape)} for the former, as {(*shape, 1)} for the latter"
            )
    return images_array(x, name)


def array_pixels(x: np.ndarray, image_format: ImageFormat, name: str) -> ArrayPixels:
    """Convert images to 8 bits a channel without transparency.

    Args:
        x: (N, H, W, C): booleans, integers or floats from 0 (black) to white. 8-bit integers and booleans have a white
            of their own; where `image_format` leaves the white of others open, it is the least that all values fit.
            What is opaque is the least that all values of alpha and of the colours fit.
        image_format: of which background, integer_white and float_white count.
        name: what errors call them.

    Raises:
        DhaError: if a value is negative, not finite or above white.
    """
    colours = 1 if x.shape[3] <= 2 else 3
    colour, alpha = x[..., :colours], x[..., colours:]
    integer_white, float_white, white, opaque = None, None, 255, 255
    if x.dtype.kind == "f":
        float_white = _white(colour, FLOAT_WHITES, image_format.float_white, name)
        white = image_format.float_white or float_white
        opaque = max(float_white, _white(alpha, FLOAT_WHITES, None, name)) if alpha.size else opaque
    elif x.dtype.kind in "ui" and x.dtype != np.uint8:
        integer_white = _white(colour, INTEGER_WHITES, image_format.integer_white, name)
        white = image_format.integer_white or integer_white
        opaque = max(integer_white, _white(alpha, INTEGER_WHITES, None, name)) if alpha.size else opaque
    pixels = torch.empty((len(x), colours, *x.shape[1:3]), dtype=torch.uint8)
    transparent, blank = 0, 0
    for rows in _chunks(x):
        levels = _to_uint8(colour[rows], white)
        if alpha.size:
            shown = _to_uint8(alpha[rows], opaque)
            has_transparent = (shown < 255).any((1, 2, 3))
            levels = _composited(levels, shown, image_format.background == "white")
            is_blank = (np.ptp(levels, axis=(1, 2)) <= NEARLY).all(1)
            transparent += int(has_transparent.sum())
            blank += int((has_transparent & is_blank).sum())
        pixels.numpy()[rows] = levels.transpose(0, 3, 1, 2)
    return ArrayPixels(pixels, integer_white, float_white, transparent, blank)


def _numpy(x: np.ndarray | Tensor, name: str) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()  # NumPy has no bfloat16
    if x.size == 0:
        raise DhaError(f"{name} has shape {x.shape}, so it holds no images; pass at least one")
    if x.dtype == np.int8:
        raise DhaError(f"{name} has dtype int8, which has no usual white; pass uint8, or floats in [0, 1]")
    if x.dtype.kind not in "buif":
        raise DhaError(f"{name} has dtype {x.dtype}; pass integers, floats or booleans")
    return x


def _chunks(x: np.ndarray) -> Iterator[slice]:
    count = max(1, _CHUNK // max(1, x[0].size))
    return (slice(first, first + count) for first in range(0, len(x), count))


def _white(x: np.ndarray, whites: tuple[int, ...], known: int | None, name: str) -> int:
    slack = SLACK if x.dtype.kind == "f" else 0
    most = known or whites[-1]
    largest = 0
    for rows in _chunks(x):
        chunk = x[rows]
        low, high = chunk.min(), chunk.max()
        if not (low >= 0 and high <= most * (1 + slack)):  # written so that NaN fails too
            bad = ~((chunk >= 0) & (chunk <= most * (1 + slack)))
            index, *rest = (int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
            _refuse(chunk[(index, *rest)], [rows.start + index, *rest], most, known is not None, name)
        largest = max(largest, high)
    white = next(white for white in whites if largest <= white * (1 + slack))
    # One image of many may be that dark, all of them are not.
    if known is None and white > 1 and largest < 2 and len(x) > 1 and whites[0] == 1:
        raise DhaError(
            f"{name} has values up to {largest}: floats are taken for [0, 1] or for 0..255, and these fit neither; "
            "scale them to [0, 1]"
        )
    return white


def _refuse(value: Any, index: list[int], most: int, known: bool, name: str) -> None:
    remedy = f"scale pixels to 0..{most}"
    if not np.isfinite(value):
        remedy = "replace NaN and infinite pixels"
    elif known and value > 0:
        remedy = f"{most} is white in the images that the model was trained on: {remedy}"
    raise DhaError(f"{name}{index} is {value}, outside 0..{most} ({value.dtype} images); {remedy}")


def _to_uint8(x: np.ndarray, white: int) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * np.uint8(255)
    return np.rint(x.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)


def _composited(levels: np.ndarray, alpha: np.ndarray, white: bool) -> np.ndarray:
    if (alpha == 255).all():
        return levels
    opaque = alpha.astype(np.uint32)
    behind = (255 - opaque) * 255 if white else np.zeros_like(opaque)
    return ((levels * opaque + behind + 127) // 255).astype(np.uint8)
