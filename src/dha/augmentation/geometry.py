"""Operations that move pixels or hide them. What enters the image is black.

They take what those of `intensity` take. Rotations and shears are one function, `warp`, translations and crops another,
`take`, so that images with any of them are moved in one call: numbers tell them apart, (n,) like the magnitudes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION = (1.0, 0.0, 0.0)
"""Kind of `warp` that turns about the centre, counter-clockwise for positive magnitudes, in degrees."""
SHEAR_X = (0.0, 1.0, 0.0)
"""Kind that slides rows against each other about the centre row; magnitude is the shift in pixels per row."""
SHEAR_Y = (0.0, 0.0, 1.0)
"""Kind that slides columns against each other about the centre column; magnitude is the shift in pixels per column."""


def warp(images: Tensor, magnitude: Tensor, position: Tensor, turn: Tensor, across: Tensor, down: Tensor) -> None:
    """Turn images by ``turn`` times the magnitude, in degrees, and shear them by it times the others; bilinear.

    ``across`` slides rows and ``down`` columns, by pixels per row or column. Position is ignored.
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(magnitude * turn)
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    columns, rows = _from_centre(width, images), _from_centre(height, images)
    # Where pixels come from, in halves of the image, as grid_sample counts them.
    of_columns, of_rows = columns * (2 / width), rows * (2 / width)
    x = (cosine * of_columns)[:, None, :] + ((magnitude * across)[:, None] - sine).mul(of_rows)[:, :, None]
    of_columns, of_rows = columns * (2 / height), rows * (2 / height)
    y = ((magnitude * down)[:, None] + sine).mul(of_columns)[:, None, :] + (cosine * of_rows)[:, :, None]
    # The grid is built by hand: affine_grid multiplies matrices, and so loses precision under autocast. As complex
    # numbers, because that lays x and y side by side in a quarter of the time of `stack`.
    grid = torch.view_as_real(torch.complex(x, y))
    inside = _nearer(torch.maximum(x.abs_(), y.abs_(), out=x), 1.0)[:, None]
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # As in Pillow the edge is hard: "zeros" padding would instead fade the outermost half pixel to black. A mean of
    # pixels is never below 0, and above 1 only by rounding.
    torch.minimum(sampled, inside, out=images)


TRANSLATION_X = (1.0, 0.0, 0.0)
"""Kind of `take` that moves to the right (magnitude > 0) or left by whole pixels; magnitude is a share of the width."""
TRANSLATION_Y = (0.0, 1.0, 0.0)
"""Kind that moves down (magnitude > 0) or up by whole pixels; magnitude is a share of the height."""
CROP = (0.0, 0.0, 1.0)
"""Kind that pads by reflection and cuts out the original size at the offset that the position names (x, y; .5 is the
middle); magnitude is the padding as a share of each side, rounded up to whole pixels, at most .5."""


def take(images: Tensor, magnitude: Tensor, position: Tensor, right: Tensor, down: Tensor, crop: Tensor) -> None:
    """Move images by whole pixels: by the magnitude times ``right`` and ``down``, as a share of the side, or where
    ``crop`` is 1, by up to the magnitude, as the position says; what enters an image that is cropped is its reflection.

    No image is moved by its whole side or more.
    """
    height, width = images.shape[-2:]
    # Columns and rows at once. Made on the device: what comes from the host would have to be waited for.
    sides = torch.linspace(width, height, 2, device=images.device)[:, None]
    most = magnitude * sides
    padding = most.ceil() * crop
    offset = torch.addcmul(position.T, position.T, padding, value=2).floor_().sub_(padding)
    offset -= most.mul_(torch.stack([right, down])).round_()
    wanted = torch.arange(float(max(height, width)), device=images.device) + offset[:, :, None]
    last = sides[:, :, None] - 1
    found = torch.lerp(wanted, last - (last - wanted.abs()).abs_(), crop[:, None])
    # As grid_sample counts them. It takes whole pixels without touching their values, and black from outside of an
    # image, in less time than `gather` and a mask.
    x, y = found.mul_(2).add_(1).div_(sides[:, :, None]).sub_(1)
    grid = torch.view_as_real(torch.complex(x[:, None, :width], y[:, :height, None]))
    images.copy_(F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False))


def cutout(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Blacken a rectangle around `position` (x, y as shares of width and height; DeVries & Taylor, arXiv 1708.04552).

    Magnitude is the rectangle's share of each side; what falls outside the image is lost, and a pixel is black if its
    centre lies in the rectangle.
    """
    half = magnitude[:, None] / 2
    height, width = images.shape[-2:]
    across, down = (torch.arange(0.5, side, device=images.device) / side for side in (width, height))
    columns, rows = (_nearer((p - at).abs_(), half) for p, at in ((across, position[:, :1]), (down, position[:, 1:])))
    images.addcmul_(images, (rows[:, :, None] * columns[:, None, :])[:, None], value=-1)


def horizontal_flip(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Mirror left and right; magnitude and position are ignored."""
    images.copy_(images.flip(-1))


def _from_centre(side: int, images: Tensor) -> Tensor:
    """Where the pixels (side,) of a row or a column lie, from its centre."""
    return torch.arange((1 - side) / 2, (side + 1) / 2, device=images.device)


# Masks are numbers from the start: on a CPU, booleans take several times as long to combine and to multiply by.


def _nearer(distance: Tensor, limit: Tensor | float) -> Tensor:
    """1 where a distance >= 0 is below a limit, and 0 elsewhere; in the memory of the distance."""
    return torch.lt(distance, limit, out=distance)
