"""From an image file or a Pillow image to pixels: the one way in for training data and for prediction."""

import io
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dha.data.array_pixels import array_pixels, image_array
from dha.data.conversion import DEEP, convert, is_blank, is_grey, is_reduced, transparent_colour, white_of
from dha.data.deep_colour import deep_colour, is_deep_colour
from dha.data.image_format import ImageFormat
from dha.data.opening import open_image, unreadable
from dha.data.resizing import convert_channels, resize_arrays, resize_image, square_box
from dha.errors import DhaError

ImageLike = str | Path | IO[bytes] | Image.Image | np.ndarray | Tensor

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
        blank: whether that left nothing to see, as white shapes on white.
        turned: whether its EXIF orientation turned or mirrored it.
        animated: whether it has more frames or pages, of which the first was read.
        reduced: whether only the upper 8 of 16 bits a channel were decoded, as for a few rare kinds of files.
    """

    width: int
    height: int
    mode: str
    integer_white: int | None
    float_white: int | None
    transparent: bool
    blank: bool
    turned: bool
    animated: bool
    reduced: bool

    @property
    def deep(self) -> bool:
        """Whether its values have more than 8 bits."""
        return self.integer_white is not None or self.float_white is not None


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
        DhaError: if the image cannot be decoded, is enormous (which is found before it is decoded), or has values
            above the white of `image_format`.
    """
    name = name or (str(image) if isinstance(image, str | Path) else "the image")
    if isinstance(image, np.ndarray | Tensor):
        return _of_array(image, image_format, name)
    try:
        if isinstance(image, Image.Image):
            return _decoded(image, image_format, image.size, image.mode)
        with open_image(image) as opened:
            size, mode = opened.size, opened.mode
            # The JPEG decoder may skip detail that the resize would drop; twice the size keeps the resize antialiased.
            width, height = image_format.content(*size)
            opened.draft("L" if image_format.channels == 1 else "RGB", (2 * width, 2 * height))
            with _one_large if opened.width * opened.height > _LARGE else nullcontext():
                if not is_deep_colour(opened):
                    return _decoded(opened, image_format, size, mode)
                scaled, white = _scaled(opened, image, image_format.integer_white)
                return _decoded(scaled, image_format, size, f"{scaled.mode};16", white)
    except Exception as error:
        raise unreadable(name, error) from error


def read_header(image: ImageLike) -> ImageHeader:
    """Return what is known of an image without decoding its pixels.

    Raises:
        DhaError: if it is not an image.
    """
    if isinstance(image, np.ndarray | Tensor):
        height, width, channels = image_array(image, "the image").shape
        return ImageHeader(channels <= 2, width, height)
    try:
        if isinstance(image, Image.Image):
            return ImageHeader(is_grey(image), *image.size)
        with open_image(image) as opened:
            return ImageHeader(is_grey(opened), *opened.size)
    except Exception as error:
        raise unreadable(str(image) if isinstance(image, str | Path) else "the image", error) from error


def _decoded(
    image: Image.Image, image_format: ImageFormat, size: tuple[int, int], mode: str, white: int | None = None
) -> DecodedImage:
    animated = _is_animated(image)
    # Asked before the pixels are decoded, after which Pillow does not know it any more.
    reduced, colour = is_reduced(image), transparent_colour(image)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        size = (size[1], size[0]) if orientation >= 5 else size
    white = white_of(image) if image.mode in DEEP else white
    known = image_format.float_white if image.mode == "F" else image_format.integer_white
    if white is not None and known is not None and white > known:
        raise DhaError(
            f"it has pixel values above {known}, which is white in the images that the model was trained on: scale "
            f"them to 0..{known}"
        )
    box, channels = square_box(*image.size, image_format), image_format.channels
    width, height = box[2] - box[0], box[3] - box[1]
    content = image_format.content(width, height)
    factor = 1
    if image.width * image.height > _LARGE:
        factor = max(1, min(width // (4 * content[0]), height // (4 * content[1])))
    flat, transparent = convert(image, box, factor, image_format.background, known or white or 255, colour)
    if channels == 1:
        flat = flat.convert("L")
    blank = transparent and is_blank(flat)
    square = resize_image(flat, image_format, (width / factor, height / factor))
    pixels = np.array(square.convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()
    turned, whites = orientation in range(2, 9), (None, white) if mode == "F" else (white, None)
    return DecodedImage(tensor, ImageFacts(*size, mode, *whites, transparent, blank, turned, animated, reduced))


def _scaled(opened: Image.Image, image: str | Path | IO[bytes], white: int | None) -> tuple[Image.Image, int]:
    if not isinstance(image, str | Path):
        image.seek(0)
        image = io.BytesIO(image.read())
    with open_image(image) as lower:
        scaled, own = deep_colour(opened, lower, opened.info.get("transparency"), white)
    exif = Image.Exif()
    exif[_ORIENTATION] = opened.getexif().get(_ORIENTATION, 1)
    scaled.info["exif"] = exif.tobytes()
    return scaled, own


def _is_animated(image: Image.Image) -> bool:
    if image.format in ("MPO", "PSD"):  # previews, and layers of the one image
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # only what comes after the first frame is broken
        return False


def _of_array(image: np.ndarray | Tensor, image_format: ImageFormat, name: str) -> DecodedImage:
    array = image_array(image, name)
    height, width, _ = array.shape
    converted = array_pixels(array[None], image_format, name)
    pixels = resize_arrays(convert_channels(converted.pixels, image_format.channels), image_format)[0]
    whites = converted.integer_white, converted.float_white
    transparent, blank = converted.transparent > 0, converted.blank > 0
    return DecodedImage(pixels, ImageFacts(width, height, "array", *whites, transparent, blank, False, False, False))
