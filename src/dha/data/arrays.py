"""Images given from Python: arrays, tensors, Pillow images and paths, also lists of them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dha.data.array_pixels import image_array, images_array, predicted_array
from dha.data.cache import Cache
from dha.data.image_format import ImageFormat
from dha.data.labels import Labels, check_labels
from dha.data.parts import ArrayPart, ItemPart, Part, Parts, Sliced
from dha.errors import DhaError

_KINDS = np.ndarray, Tensor, Image.Image, str, Path


def images_from_arrays(x: Any, image_format: ImageFormat) -> Tensor:
    """Convert images without labels to the pixels of a network.

    Args:
        x: array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W) with C from 1 to 4: grey, grey with alpha, RGB, RGB
            with alpha; or one image, (H, W), (H, W, C) or, as a tensor, (C, H, W); integers, floats or booleans from 0
            to white (see `ImageFormat`; 255 for 8-bit integers). Or a Pillow image; or a list of images of any of these
            kinds and of any sizes, and of paths of image files.
        image_format: what to convert them to.

    Returns:
        uint8, (N, channels, S, S).

    Raises:
        DhaError: if `x` has another type, shape or range, or holds no images.
    """
    if isinstance(x, np.ndarray | Tensor) and x.dtype != object:
        array = predicted_array(x, image_format.channels, "x")
        part: Part = ArrayPart({"x": array}, _labels(None, len(array)), "x")
    else:
        x = [x] if isinstance(x, Image.Image | str | Path) else _items(x, "x")
        part = ItemPart(Sliced(x, len(x)), _labels(None, len(x)), "x")
    return part.read(image_format, "error", Cache("memory")).images


def open_arrays(x: Any, labels: Any) -> Parts:
    """Check images and labels given from Python.

    Args:
        x: as in `images_from_arrays`, but no single image.
        labels: (N,), whole numbers, strings or booleans.

    Raises:
        DhaError: if either has another type or shape, or their lengths differ.
    """
    if labels is None:
        raise DhaError("labels are missing; pass one label for each image along with the images")
    if isinstance(x, np.ndarray | Tensor) and x.dtype != object:
        array = images_array(x, "x")
        return Parts("arrays", ArrayPart({"x": array}, _labels(labels, len(array)), "x"), layout="images in memory")
    x = _items(x, "x")
    return Parts("arrays", ItemPart(Sliced(x, len(x)), _labels(labels, len(x)), "x"), layout="images in memory")


def _items(x: Any, place: str) -> list[Any]:
    if isinstance(x, dict | str | bytes) or not hasattr(x, "__len__") or not hasattr(x, "__iter__"):
        raise DhaError(
            f"{place} is a {type(x).__name__}; pass an array, a tensor, a Pillow image, a path or a list of them"
        )
    items = list(x)
    if not items:
        raise DhaError(f"{place} is an empty {type(x).__name__}; pass at least one image")
    for index, item in enumerate(items):
        if not isinstance(item, _KINDS):
            raise DhaError(
                f"{place}[{index}] is a {type(item).__name__}; a list holds arrays, tensors, Pillow images or paths, "
                "one for each image"
            )
        if isinstance(item, np.ndarray | Tensor):
            image_array(item, f"{place}[{index}]")
        if isinstance(item, str | Path) and not os.path.exists(item):
            raise DhaError(f"{place}[{index}] is {str(item)!r:.200}: no such image file; pass paths of image files")
    return items


def _labels(labels: Any, count: int) -> Labels:
    return Labels.of(np.zeros(count, dtype=np.int64) if labels is None else check_labels(labels, count, "labels"))
