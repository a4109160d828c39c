"""Operations that move pixels or hide them; the arguments are those of `intensity`. What enters the image is black."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Turn about the centre, counter-clockwise for positive magnitude; magnitude in degrees."""
    angle = torch.deg2rad(magnitude).view(-1, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    x, y = _from_centre(images)
    return _sample(images, cosine * x - sine * y, sine * x + cosine * y)


def shear_x(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Slide rows against each other about the centre row; magnitude is the shift in pixels per row."""
    x, y = _from_centre(images)
    return _sample(images, x + magnitude.view(-1, 1, 1) * y, y)


def shear_y(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Slide columns against each other about the centre column; magnitude is the shift in pixels per column."""
    x, y = _from_centre(images)
    return _sample(images, x, y + magnitude.view(-1, 1, 1) * x)


def translate_x(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Move to the right (magnitude > 0) or left by whole pixels; magnitude is a share of the width."""
    columns, rows = _indices(images)
    return _take(images, columns - (magnitude[:, None] * images.shape[-1]).round().long(), rows)


def translate_y(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Move down (magnitude > 0) or up by whole pixels; magnitude is a share of the height."""
    columns, rows = _indices(images)
    return _take(images, columns, rows - (magnitude[:, None] * images.shape[-2]).round().long())


def cutout(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Blacken a rectangle around `position` (x, y as shares of width and height; DeVries & Taylor, arXiv 1708.04552).

    Magnitude is the rectangle's share of each side; what falls outside the image is lost, and a pixel is black if its
    centre lies in the rectangle.
    """
    half = magnitude.view(-1, 1) / 2
    columns, rows = _indices(images)
    across = _nearer((columns + 0.5) / images.shape[-1] - position[:, :1], half)
    down = _nearer((rows + 0.5) / images.shape[-2] - position[:, 1:], half)
    return images * (1 - down[:, :, None] * across[:, None, :])[:, None]


def horizontal_flip(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Mirror left and right; magnitude and position are ignored."""
    return images.flip(-1)


def crop(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Pad by reflection and cut out the original size at the offset that `position` names (x, y; .5 is the middle).

    Magnitude is the padding as a share of each side, rounded up to whole pixels, at most .5.
    """
    height, width = images.shape[-2:]
    columns, rows = _indices(images)
    across, down = (_offset(magnitude * side, position[:, axis]) for axis, side in enumerate((width, height)))
    return _take(images, _reflect(columns + across, width), _reflect(rows + down, height))


def _offset(padding: Tensor, position: Tensor) -> Tensor:
    padding = padding.ceil()
    return ((position * (2 * padding + 1)).floor() - padding).long()[:, None]


def _reflect(index: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()


def _indices(images: Tensor) -> tuple[Tensor, Tensor]:
    """Column (1, W) and row (1, H) numbers."""
    height, width = images.shape[-2:]
    return torch.arange(width, device=images.device)[None], torch.arange(height, device=images.device)[None]


def _from_centre(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres x (1, 1, W) and y (1, H, 1), in pixels from the image's centre."""
    columns, rows = _indices(images)
    return (columns - (images.shape[-1] - 1) / 2)[None], (rows - (images.shape[-2] - 1) / 2)[..., None]


def _take(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The pixels at whole columns (n or 1, W) and rows (n or 1, H), black where these lie outside the image."""
    height, width = images.shape[-2:]
    inside = _within(rows, height)[:, :, None] * _within(columns, width)[:, None, :]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    taken = images.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.view(images.shape).mul_(inside[:, None])


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The images at points x and y, (n, H, W) after broadcasting, in pixels from the centre; bilinear."""
    # The grid is built by hand: affine_grid multiplies matrices, and so loses precision under autocast.
    height, width = images.shape[-2:]
    # As complex numbers, because that lays x and y side by side in a quarter of the time of `stack`.
    grid = torch.view_as_real(torch.complex(*torch.broadcast_tensors(x * (2 / width), y * (2 / height))))
    inside = _nearer(x, width / 2) * _nearer(y, height / 2)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # As in Pillow the edge is hard: "zeros" padding would instead fade the outermost half pixel to black.
    return sampled.mul_(inside[:, None]).clamp_(0, 1)


# Masks are numbers from the start: on a CPU, booleans take several times as long to combine and to multiply by.


def _nearer(distance: Tensor, limit: Tensor | float) -> Tensor:
    """1 where a distance, of either sign, is below a limit, and 0 elsewhere."""
    return torch.lt(distance.abs(), limit, out=torch.empty_like(distance))


def _within(index: Tensor, size: int) -> Tensor:
    """1 where an index lies in 0..size-1, and 0 elsewhere."""
    return ((index >= 0) & (index < size)).float()
