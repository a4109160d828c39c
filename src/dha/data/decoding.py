"""From an image file or a Pillow image to pixels: the one way in for training data and for prediction."""

import os
import stat
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dha.data.array_pixels import array_pixels, image_array
from dha.data.conversion import DEEP, GREY, convert, is_reduced, transparent_colour, white_of
from dha.data.image_format import ImageFormat
from dha.data.resizing import convert_channels, resize_arrays, resize_image, square_box
from dha.errors import DhaError

ImageLike = str | Path | IO[bytes] | Image.Image | np.ndarray | Tensor

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What files may hold, whatever their name says: Pillow hands others to programs (EPS to Ghostscript)."""

_ORIENTATION = 0x0112

_LARGE = 2**24
"""Pixels above which an image is made smaller while it is converted, and no second one is decoded beside it."""

_one_large = threading.Lock()


class ImageFacts(NamedTuple):
    """What an image file held and what was converted.

    Attributes:
        width, height: in pixels, of the upright image.
        mode: as Pillow names it, such as "RGB", "LA" or "I;16".
        integer_white: the least white (see `ImageFormat`) that its pixel values fit, if they are integers of more than
            8 bits; else None.
        float_white: the same for floats.
        transparent: whether any pixel was, at least in part; these show the background.
        turned: whether its EXIF orientation turned or mirrored it.
        animated: whether it has more frames or pages, of which the first was read.
        reduced: whether it is a colour image of 16 bits a channel, of which Pillow decodes the upper 8.
    """

    width: int
    height: int
    mode: str
    integer_white: int | None
    float_white: int | None
    transparent: bool
    turned: bool
    animated: bool
    reduced: bool


class DecodedImage(NamedTuple):
    """Pixels, uint8 (channels, S, S), and where they come from."""

    pixels: Tensor
    facts: ImageFacts


class ImageHeader(NamedTuple):
    """What is known of an image before its pixels are decoded: whether it is grey, and its size in pixels."""

    grey: bool
    width: int
    height: int


def read_image(image: ImageLike, image_format: ImageFormat, name: str = "") -> DecodedImage:
    """Decode one image (of an animation the first frame), turn it upright, and convert it to the pixels of a network.

    Args:
        image: path or open binary file of an image, or a Pillow image (which is not changed), or an array or tensor
            (H, W), (H, W, C) or (C, H, W) as `array_pixels` takes them.
        image_format: what to convert it to. Transparent pixels show the background; 16-bit grey is scaled to 8 bits.
        name: what errors call the image; the path by default.

    Returns:
        Pixels, uint8 (channels, S, S), and what the image was.

    Raises:
        DhaError: if the image cannot be decoded, or has more pixels than Pillow decodes (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), which is found before they are.
    """
    name = name or (str(image) if isinstance(image, str | Path) else "the image")
    try:
        _check_file(image)
        if isinstance(image, np.ndarray | Tensor):
            return _of_array(image, image_format, name)
        if isinstance(image, Image.Image):
            return _decoded(image, image_format, image.size, name)
        with Image.open(image, formats=FORMATS) as opened:
            size = opened.size
            # The JPEG decoder may skip detail that the resize would drop; twice the size keeps the resize antialiased.
            width, height = image_format.content(*size)
            opened.draft("L" if image_format.channels == 1 else "RGB", (2 * width, 2 * height))
            with _one_large if opened.width * opened.height > _LARGE else nullcontext():
                return _decoded(opened, image_format, size, name)
    except DhaError:
        raise
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise _unreadable(name, error) from error


def read_header(image: ImageLike) -> ImageHeader:
    """Return what is known of an image without decoding its pixels.

    Raises:
        DhaError: if it is not an image.
    """
    try:
        _check_file(image)
        if isinstance(image, np.ndarray | Tensor):
            height, width, channels = image_array(image, "the image").shape
            return ImageHeader(channels <= 2, width, height)
        if isinstance(image, Image.Image):
            return ImageHeader(image.mode in GREY, *image.size)
        with Image.open(image, formats=FORMATS) as opened:
            return ImageHeader(opened.mode in GREY, *opened.size)
    except Exception as error:
        raise _unreadable(str(image) if isinstance(image, str | Path) else "the image", error) from error


def _decoded(image: Image.Image, image_format: ImageFormat, size: tuple[int, int], name: str) -> DecodedImage:
    mode, animated = image.mode, bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    # Asked before the pixels are decoded, after which Pillow does not know it any more.
    reduced, colour = is_reduced(image), transparent_colour(image)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        size = (size[1], size[0]) if orientation >= 5 else size
    white = white_of(image) if mode in DEEP else None
    known = image_format.float_white if mode == "F" else image_format.integer_white
    if white is not None and known is not None and white > known:
        raise DhaError(
            f"{_printable(name)} has pixel values above {known}, which is white in the images that the model was "
            f"trained on: scale them to 0..{known} or remove it"
        )
    box, channels = square_box(*image.size, image_format), image_format.channels
    content = image_format.content(box[2] - box[0], box[3] - box[1])
    factor = 1
    if image.width * image.height > _LARGE:
        factor = max(1, min((box[2] - box[0]) // (4 * content[0]), (box[3] - box[1]) // (4 * content[1])))
    flat, transparent = convert(image, box, factor, image_format.background, known or white or 255, colour)
    if channels == 1:
        flat = flat.convert("L")
    pixels = np.array(resize_image(flat, image_format).convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()
    turned, whites = orientation in range(2, 9), (None, white) if mode == "F" else (white, None)
    return DecodedImage(tensor, ImageFacts(*size, mode, *whites, transparent, turned, animated, reduced))


def _of_array(image: np.ndarray | Tensor, image_format: ImageFormat, name: str) -> DecodedImage:
    array = image_array(image, name)
    height, width, channels = array.shape
    converted = array_pixels(array[None], image_format, name)
    pixels = resize_arrays(convert_channels(converted.pixels, image_format.channels), image_format)[0]
    whites = converted.integer_white, converted.float_white
    mode = f"{array.dtype} {('grey', 'grey with alpha', 'RGB', 'RGB with alpha')[channels - 1]}"
    return DecodedImage(
        pixels, ImageFacts(width, height, mode, *whites, converted.transparent > 0, False, False, False)
    )


def _check_file(image: ImageLike) -> None:
    # Opening a pipe would wait for ever, and a device may have no end.
    if isinstance(image, str | Path) and not stat.S_ISREG(os.stat(image).st_mode):
        raise ValueError("it is no regular file")


def _unreadable(name: str, error: Exception) -> DhaError:
    name = _printable(name)
    if isinstance(error, Image.DecompressionBombError):
        return DhaError(f"{name} is refused ({error}): scale it down or remove it")
    if isinstance(error, OSError) and error.strerror:  # Pillow's own errors of this type have none
        return DhaError(f"{name} cannot be opened ({error.strerror}): check the path and its permissions, or remove it")
    return DhaError(
        f"{name} cannot be read as an image ({type(error).__name__}: {_printable(str(error))}): repair or remove it"
    )


def _printable(text: str) -> str:
    # A line break in a file name would make two lines of one error, and not every byte of it can be printed.
    return text if text.isprintable() else repr(text)
