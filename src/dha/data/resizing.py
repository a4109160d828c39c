"""Size and channels of images: of Pillow images and of arrays alike."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dha.data.image_format import PADDING, ImageFormat

_CHUNK = 1024


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Turn images into grey (1 channel) or colour (3 channels).

    Args:
        images: uint8, (N, C, H, W) with C 1 or 3.
        channels: 1 or 3.

    Returns:
        uint8, (N, channels, H, W); `images` itself if it has that many channels already. Grey is Pillow's luma.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    grey = images.new_empty((len(images), 1, *images.shape[2:]))
    for target, chunk in zip(grey.split(_CHUNK), images.split(_CHUNK), strict=True):
        red, green, blue = chunk.int().unbind(1)
        # Pillow's integer weights, so that an array and a file with the same pixels give the same grey.
        target[:, 0] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey


def resize_arrays(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Scale images, antialiased, to squares as `image_format` says, as `read_image` does.

    Args:
        images: uint8, (N, C, H, W) with C 1 or 3.
        image_format: of which image_size S and resize count; the channels stay.

    Returns:
        uint8, (N, C, S, S); `images` itself if it has that size already.
    """
    channels, height, width = images.shape[1:]
    side = image_format.image_size
    if height == width == side:
        return images
    resized = images.new_empty((len(images), channels, side, side))
    for target, image in zip(resized, images.permute(0, 2, 3, 1).numpy(), strict=True):
        small = resize_image(Image.fromarray(image[..., 0] if channels == 1 else image), image_format)
        target.copy_(torch.from_numpy(np.array(small)).view(side, side, channels).permute(2, 0, 1))
    return resized


def resize_image(image: Image.Image, image_format: ImageFormat, size: tuple[float, float] | None = None) -> Image.Image:
    """Scale an image of mode L or RGB, antialiased, to a square as `image_format` says.

    Args:
        image: to scale.
        image_format: of which image_size and resize count.
        size: width and height that count, of what is already cut out, from the upper left; None for all of an image
            that is not cut yet.
    """
    side = image_format.image_size
    if size is None:
        box = square_box(*image.size, image_format)
        if box != (0, 0, *image.size):
            # Cut out before resizing, not with resize's `box`: that blends in pixels from outside.
            image = image.crop(box)
        size = image.size
    content = image_format.content(*size)
    image = image.resize(content, Image.Resampling.BILINEAR, (0, 0, size[0], size[1]))
    if content == (side, side):
        return image
    padded = Image.new(image.mode, (side, side), (PADDING,) * len(image.getbands()))
    padded.paste(image, (round((side - content[0]) / 2), round((side - content[1]) / 2)))
    return padded


def square_box(width: int, height: int, image_format: ImageFormat) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what is kept of an image: its central square, or all of it."""
    if image_format.resize != "crop":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
