"""Operations that change the value of each pixel and leave it where it is.

Every operation here takes

- images: float32 (n, C, H, W), values in [0, 1];
- magnitude: float32 (n,), one number per image, in the unit its docstring states;
- position: float32 (n, 2), uniform in [0, 1), used by the operations that need a random place;

on one device, and returns new images of the same shape in [0, 1]. None synchronises with the device. Colour, contrast
and brightness are one function, `blend`, of images and of what they are moved away from, which the functions before it
plan; to invert is to solarize from 0 on.
They are plain torch and agree with Pillow, the reference of AutoAugment (Cubuk et al., CVPR 2019): equal where Pillow
works on whole bytes, otherwise within .6/255 in the mean and 1.5/255 at any pixel, because Pillow rounds results and
intermediate images to bytes and these keep the fraction.
"""

import torch
from torch import Tensor


def identity(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Return the images themselves; magnitude and position are ignored."""
    return images


def auto_contrast(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Stretch each channel to the full range; magnitude and position are ignored, a flat channel stays as it is.

    Pillow truncates the result to a byte where this keeps the fraction: up to 1/255 apart.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    # Division rounds to at most 1; a flat channel is shifted by 0 and divided by 1.
    return (images - low.masked_fill(flat, 0.0)).div_((high - low).masked_fill_(flat, 1.0))


def equalize(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Flatten the histogram of each channel, on byte values; magnitude and position are ignored.

    Exactly Pillow's integer table, with one exception: where fewer than 255 pixels lie below the channel's highest
    value Pillow returns the image unchanged, which would make this a no-op at 8x8; there the exact quotient is used.
    """
    values = (images * 255).round().long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    below = counts.cumsum(2) - counts
    total = below.gather(2, values.amax(2, keepdim=True))
    step = total // 255
    pillow = (below + step // 2) // step.clamp(min=1)
    exact = (510 * below + total) // (2 * total).clamp(min=1)
    table = torch.where(step > 0, pillow, exact).clamp(max=255)
    table = torch.where(total > 0, table, torch.arange(256, device=images.device))
    return (table.to(images.dtype) / 255).gather(2, values).view(images.shape)


def posterize(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Keep the first floor(magnitude) of the 8 bits of every byte value; magnitude in bits, 1 to 8."""
    width = _wide(torch.exp2(8 - magnitude.floor()))
    return (images * 255).round_().div_(width).floor_().mul_(width).div_(255)


def solarize(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Invert the values at or above a threshold; magnitude is that threshold, 0 (all values) to 1."""
    # |1 - v| where inverted and |0 - v| elsewhere: many times as fast on CPU as `where`, and the same to the bit.
    inverted = torch.ge(images, _wide(magnitude), out=torch.empty_like(images))
    return inverted.sub_(images).abs_()


def color(magnitude: Tensor, position: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Move every pixel away from its grey value (magnitude > 0) or towards it (< 0), by 1 + magnitude; -1 is grey.

    An image of one channel has no colour and is returned unchanged.
    """
    return magnitude, torch.ones_like(magnitude), torch.zeros_like(magnitude)


def contrast(magnitude: Tensor, position: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the distance of every value to the image's mean grey by 1 + magnitude; -1 is a flat image."""
    return magnitude, torch.zeros_like(magnitude), torch.ones_like(magnitude)


def brightness(magnitude: Tensor, position: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Scale every value by 1 + magnitude; -1 is black."""
    return magnitude, torch.zeros_like(magnitude), torch.zeros_like(magnitude)


def blend(images: Tensor, magnitude: Tensor, own: Tensor, mean: Tensor) -> Tensor:
    """Scale the distance of every pixel to a grey by 1 + magnitude: ``own`` of its own and ``mean`` of the image's."""
    grey = _grey(images)
    start = torch.addcmul(grey.mean((2, 3), keepdim=True) * _wide(mean), grey, _wide(own))
    return _blend(start, images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
    """Scale the distance of every value to a smoothed image by 1 + magnitude; -1 is smooth, 1 is very sharp.

    The smoothing is Pillow's: a 3x3 kernel of ones with 5 in the centre, over 13; the outermost pixels stay.
    """
    inner = images[..., 1:-1, 1:-1]
    rows = (images[..., :-2, :] + images[..., 1:-1, :]).add_(images[..., 2:, :])
    # Adding slices is about ten times faster on CPU than a depthwise convolution or average pooling.
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4).div_(13)
    result = images.clone()
    result[..., 1:-1, 1:-1] = _blend(smooth, inner, magnitude)
    return result


def _blend(start: Tensor, images: Tensor, magnitude: Tensor) -> Tensor:
    """The point 1 + magnitude of the way from `start` to the images, clamped to [0, 1]."""
    # Written so that magnitude 0 gives the images back bit for bit.
    beyond = _wide(magnitude)
    return (images * (1 + beyond)).sub_(start * beyond).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """The luma of three channels (ITU-R 601, as in Pillow), the mean of any other number: (n, 1, H, W)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _wide(numbers: Tensor) -> Tensor:
    """Numbers (n,) as (n, 1, 1, 1)."""
    return numbers.view(-1, 1, 1, 1)
