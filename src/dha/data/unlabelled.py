"""Images without labels, to be classified."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dha.data.arrays import images_from_arrays
from dha.data.decoding import read_image
from dha.data.image_format import ImageFormat
from dha.errors import DhaError


def load_images(images: Any, image_format: ImageFormat) -> Tensor:
    """Read images as a model wants them.

    Args:
        images: one path or a list of paths of image files, or what `images_from_arrays` takes.
        image_format: what to convert them to, `preprocessing.image_format` of a model.

    Returns:
        uint8, (N, channels, S, S).

    Raises:
        DhaError: if a file is missing or not an image, or an array has another type, shape or range.
    """
    paths = [images] if isinstance(images, str | Path) else images
    if not (isinstance(paths, list | tuple) and paths and all(isinstance(path, str | Path) for path in paths)):
        return images_from_arrays(images, image_format)
    for path in paths:
        if not Path(path).is_file():
            raise DhaError(f"{path}: no such image file; pass paths of image files")
    return torch.stack([read_image(path, image_format).pixels for path in paths])
