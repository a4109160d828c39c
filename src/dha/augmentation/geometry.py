"""Operations that move pixels or hide them. What enters the image is black.

Rotations and shears are one function, `warp`, of images and coefficients; translations and crops are one, `take`, of
images and the places that pixels come from. The functions before each of them plan such arguments from magnitudes (n,),
positions (n, 2) in [0, 1) and the size (height, width) of the images, so that images with different operations can be
moved in one call. All others have the arguments of `intensity`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def rotation(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor]:
    """Turn about the centre, counter-clockwise for positive magnitude; magnitude in degrees."""
    angle = torch.deg2rad(magnitude)
    cosine, sine = angle.cos(), angle.sin()
    return (torch.stack([cosine, -sine, sine, cosine], 1),)


def shear_x(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor]:
    """Slide rows against each other about the centre row; magnitude is the shift in pixels per row."""
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return (torch.stack([one, magnitude, zero, one], 1),)


def shear_y(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor]:
    """Slide columns against each other about the centre column; magnitude is the shift in pixels per column."""
    one, zero = torch.ones_like(magnitude), torch.zeros_like(magnitude)
    return (torch.stack([one, zero, magnitude, one], 1),)


def warp(images: Tensor, coefficients: Tensor) -> Tensor:
    """Take pixel (x, y), from the centre, from (a x + b y, c x + d y), bilinear; coefficients a, b, c, d (n, 4)."""
    height, width = images.shape[-2:]
    across, down = _from_centre(width, images)[None, None], _from_centre(height, images)[None, :, None]
    a, b, c, d = coefficients[..., None, None].unbind(1)
    # In halves of the image, as grid_sample counts them.
    x = torch.addcmul(b * (2 / width) * down, a * (2 / width), across)
    y = torch.addcmul(d * (2 / height) * down, c * (2 / height), across)
    # The grid is built by hand: affine_grid multiplies matrices, and so loses precision under autocast. As complex
    # numbers, because that lays x and y side by side in a quarter of the time of `stack`.
    grid = torch.view_as_real(torch.complex(x, y))
    inside = _nearer(torch.maximum(x.abs(), y.abs()), 1.0)[:, None]
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # As in Pillow the edge is hard: "zeros" padding would instead fade the outermost half pixel to black.
    return sampled.mul_(inside).clamp_(0, 1)


def translation_x(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Move to the right (magnitude > 0) or left by whole pixels; magnitude is a share of the width."""
    columns, rows = _places(magnitude, size)
    return columns - (magnitude[:, None] * size[1]).round().long(), rows


def translation_y(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Move down (magnitude > 0) or up by whole pixels; magnitude is a share of the height."""
    columns, rows = _places(magnitude, size)
    return columns, rows - (magnitude[:, None] * size[0]).round().long()


def crop(magnitude: Tensor, position: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Pad by reflection and cut out the original size at the offset that `position` names (x, y; .5 is the middle).

    Magnitude is the padding as a share of each side, rounded up to whole pixels, at most .5.
    """
    columns, rows = _places(magnitude, size)
    down, across = (_offset(magnitude * side, position[:, 1 - axis]) for axis, side in enumerate(size))
    return _reflect(columns + across, size[1]), _reflect(rows + down, size[0])


def take(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Take the pixels at whole columns (n, W) and rows (n, H), black where these lie outside the image."""
    height, width = images.shape[-2:]
    inside = _within(rows, height)[:, :, None] * _within(columns, width)[:, None, :]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    taken = images.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.view(images.shape).mul_(inside[:, None])


def cutout(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Blacken a rectangle around `position` (x, y as shares of width and height; DeVries & Taylor, arXiv 1708.04552).

    Magnitude is the rectangle's share of each side; what falls outside the image is lost, and a pixel is black if its
    centre lies in the rectangle.
    """
    half = magnitude[:, None] / 2
    height, width = images.shape[-2:]
    across, down = (torch.arange(0.5, side, device=images.device) / side for side in (width, height))
    hidden = (
        _nearer(down - position[:, 1:], half)[:, None, :, None] * _nearer(across - position[:, :1], half)[:, None, None]
    )
    return torch.addcmul(images, images, hidden, value=-1)


def horizontal_flip(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Mirror left and right; magnitude and position are ignored."""
    return images.flip(-1)


def _offset(padding: Tensor, position: Tensor) -> Tensor:
    padding = padding.ceil()
    return ((position * (2 * padding + 1)).floor() - padding).long()[:, None]


def _reflect(index: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()


def _places(magnitude: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Column (n, W) and row (n, H) numbers for as many images as magnitudes."""
    rows, columns = (torch.arange(side, device=magnitude.device).expand(len(magnitude), -1) for side in size)
    return columns, rows


def _from_centre(side: int, images: Tensor) -> Tensor:
    """Where the pixels (side,) of a row or a column lie, from its centre."""
    return torch.arange((1 - side) / 2, (side + 1) / 2, device=images.device)


# Masks are numbers from the start: on a CPU, booleans take several times as long to combine and to multiply by.


def _nearer(distance: Tensor, limit: Tensor | float) -> Tensor:
    """1 where a distance, of either sign, is below a limit, and 0 elsewhere; in the memory of the distance."""
    return torch.lt(distance.abs_(), limit, out=distance)


def _within(index: Tensor, size: int) -> Tensor:
    """1 where an index lies in 0..size-1, and 0 elsewhere."""
    return ((index >= 0) & (index < size)).float()
