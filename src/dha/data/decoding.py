"""From an image file or a Pillow image to pixels: the one way in for training data and for prediction."""

from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dha.errors import DhaError

ImageLike = str | Path | IO[bytes] | Image.Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What files may hold, whatever their name says: Pillow hands others to programs (EPS to Ghostscript)."""

_DEEP_GREY = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_GREY = _DEEP_GREY | {"1", "L", "LA", "F"}


def read_image(image: ImageLike, channels: int, image_size: int, name: str = "") -> Tensor:
    """Decode one image (of an animation the first), turn it upright, and scale its central square to `image_size`.

    Args:
        image: path or open binary file of an image, or a Pillow image (which is left as it is).
        channels: 1 (grey) or 3 (RGB). Transparency is dropped; 16-bit grey is scaled to 8 bits.
        image_size: side S of the result in pixels.
        name: what errors call the image; the path by default.

    Returns:
        uint8, (channels, S, S).

    Raises:
        DhaError: if the image cannot be decoded, or has more pixels than Pillow decodes (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), which is found before they are.
    """
    try:
        if isinstance(image, Image.Image):
            return _to_tensor(image, channels, image_size)
        with Image.open(image, formats=FORMATS) as opened:
            # The JPEG decoder may skip detail that the resize would drop; twice the size keeps the resize antialiased.
            opened.draft("L" if channels == 1 else "RGB", (2 * image_size, 2 * image_size))
            return _to_tensor(opened, channels, image_size)
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise _unreadable(image, name, error) from error


def read_header(image: ImageLike) -> tuple[bool, int]:
    """Look at an image without decoding its pixels.

    Returns:
        Whether it is grey, and its shorter side in pixels.

    Raises:
        DhaError: if it is not an image.
    """
    try:
        if isinstance(image, Image.Image):
            return image.mode in _GREY, min(image.size)
        with Image.open(image, formats=FORMATS) as opened:
            return opened.mode in _GREY, min(opened.size)
    except Exception as error:
        raise _unreadable(image, "", error) from error


def _to_tensor(image: Image.Image, channels: int, image_size: int) -> Tensor:
    image = _to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped before resizing, not with resize's `box`: that blends in pixels from outside, unlike `resize_arrays`.
    square = image.crop((left, top, left + side, top + side))
    pixels = np.array(square.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).view(image_size, image_size, channels).permute(2, 0, 1).contiguous()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _DEEP_GREY:
        # Pillow's own conversion of 32-bit modes clips at 255, which turns 16-bit images white.
        image = Image.fromarray(_to_bytes(np.asarray(image), 65535))
    elif image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image), 1))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB makes Pillow warn
    if mode == "L" and image.mode not in _GREY:
        image = image.convert("RGB")  # not every mode converts to grey directly
    return image.convert(mode)


def _to_bytes(pixels: np.ndarray, white: int) -> np.ndarray:
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):  # written so that NaN fails too
        raise ValueError(f"its pixels are {low}..{high}, but 0..{white} is needed; save it with 8 bits a channel")
    return np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)


def _unreadable(image: ImageLike, name: str, error: Exception) -> DhaError:
    name = name or (str(image) if isinstance(image, str | Path) else "the image")
    # A line break in a file name would make two lines of one error, and not every byte of it can be printed.
    name = name if name.isprintable() else repr(name)
    if isinstance(error, Image.DecompressionBombError):
        return DhaError(f"{name} is refused ({error}): scale it down or remove it")
    said = str(error) if str(error).isprintable() else repr(str(error))
    return DhaError(f"{name} cannot be read as an image ({type(error).__name__}: {said}): repair or remove it")
