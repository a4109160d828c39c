"""Images given from Python: NumPy arrays, torch tensors, lists of Pillow images."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dha.data.cache import Cache
from dha.data.image_format import ImageFormat
from dha.data.labels import Labels, check_labels
from dha.data.parts import ArrayPart, ItemPart, Part, Parts, Sliced
from dha.errors import DhaError

_CHUNK = 4096


def images_from_arrays(x: Any, image_format: ImageFormat) -> Tensor:
    """Convert images without labels to the pixels of a network.

    Args:
        x: array or tensor (N, H, W) or (N, H, W, C) with C 1, 3 or 4 (the fourth, alpha, is dropped), whole numbers
            0..255, floats in [0, 1] or booleans; or a list or tuple of Pillow images, maybe of different sizes.
        image_format: what to convert them to.

    Returns:
        uint8, (N, channels, S, S).

    Raises:
        DhaError: if `x` has another type, shape or range, or holds no images.
    """
    return _part(x, None, "x").read(image_format, "error", Cache("memory")).images


def open_arrays(x: Any, labels: Any) -> Parts:
    """Check images and labels given from Python.

    Args:
        x: as in `images_from_arrays`.
        labels: (N,), whole numbers or strings.

    Raises:
        DhaError: if either has another type, shape or range, or their lengths differ.
    """
    if labels is None:
        raise DhaError("labels are missing; pass one label for each image along with the images")
    return Parts("arrays", _part(x, labels, "x"))


def pixels_from_array(x: Any, place: str) -> Tensor:
    """Turn an array into uint8 pixels.

    Args:
        x: array or tensor as in `images_from_arrays`.
        place: what errors call it.

    Returns:
        uint8, (N, C, H, W) with C 1 or 3; shares no memory with `x`.

    Raises:
        DhaError: if `x` has another type, shape or range, or holds no images.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    if x.ndim not in (3, 4):
        raise DhaError(f"{place} has shape {x.shape}; pass images as (N, H, W) or (N, H, W, C)")
    if x.ndim == 3:
        x = x[..., None]
    if x.shape[3] not in (1, 3, 4):
        raise DhaError(
            f"{place} has shape {x.shape}, so {x.shape[3]} channels; channels come last and are 1, 3 or 4 "
            "(move them with np.moveaxis(x, 1, -1))"
        )
    if x.size == 0:
        raise DhaError(f"{place} has shape {x.shape}, so it holds no images; pass at least one")
    if x.shape[3] == 4:
        x = x[..., :3]
    return torch.from_numpy(np.array(_to_uint8(x, place).transpose(0, 3, 1, 2), order="C"))


def _part(x: Any, labels: Any, place: str) -> Part:
    if not isinstance(x, list | tuple):
        if not isinstance(x, np.ndarray | Tensor):
            raise DhaError(f"{place} is a {type(x).__name__}; pass an array, a tensor or a list of Pillow images")
        images = pixels_from_array(x, place)
        return ArrayPart(images, _labels(labels, len(images)), place)
    if not x:
        raise DhaError(f"{place} is an empty {type(x).__name__}; pass at least one image")
    for index, item in enumerate(x):
        if not isinstance(item, Image.Image):
            raise DhaError(
                f"{place}[{index}] is a {type(item).__name__}; a list holds Pillow images "
                "(join arrays of one size with np.stack)"
            )
    return ItemPart(Sliced(x, len(x)), _labels(labels, len(x)), place)


def _labels(labels: Any, count: int) -> Labels:
    return Labels.of(np.zeros(count, dtype=np.int64) if labels is None else check_labels(labels, count, "labels"))


def _to_uint8(x: np.ndarray, place: str) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * np.uint8(255)
    if x.dtype.kind not in "iuf":
        raise DhaError(f"{place} has dtype {x.dtype}; pass uint8, floats in [0, 1] or booleans")
    floats = x.dtype.kind == "f"
    pixels = np.empty(x.shape, dtype=np.uint8)
    for start in range(0, len(x), _CHUNK):
        chunk = x[start : start + _CHUNK]
        bad = ~((chunk >= 0) & (chunk <= (1 if floats else 255)))  # written so that NaN is bad
        if bad.any():
            first, *rest = (int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
            _refuse(x, (start + first, *rest), place)
        pixels[start : start + _CHUNK] = np.rint(chunk * np.float32(255)) if floats else chunk
    return pixels


def _refuse(x: np.ndarray, index: tuple[int, ...], place: str) -> None:
    remedy = "pass uint8 or floats in [0, 1]"
    if x.dtype.kind == "f":
        low, high = x.min(), x.max()
        if not np.isfinite([low, high]).all():
            remedy = "replace NaN and infinite pixels"
        elif low >= 0 and high <= 255:
            remedy = "it looks like 0..255: divide by 255, or pass uint8"
    wanted = "[0, 1]" if x.dtype.kind == "f" else "0..255"
    raise DhaError(f"{place}{list(index)} is {x[index]}, outside {wanted} ({x.dtype} images); {remedy}")
