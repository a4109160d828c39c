"""Operations that change the value of each pixel and leave it where it is.

Every operation here takes

- images: float32 (n, C, H, W), contiguous, values in [0, 1], which it changes in place;
- magnitude: float32 (n,), one number per image, in the unit its docstring states;
- position: float32 (n, 2), uniform in [0, 1), used by the operations that need a random place;

on one device. None synchronises with the device. Colour, contrast and brightness are one function, `blend`, so that
images with any of them are changed in one call; to invert is to solarize from 0 on.

They are plain torch and agree with Pillow, the reference of AutoAugment (Cubuk et al., CVPR 2019): equal where Pillow
works on whole bytes, otherwise within .6/255 in the mean and 1.5/255 at any pixel, because Pillow rounds results and
intermediate images to bytes and these keep the fraction.
"""

import torch
from torch import Tensor


def identity(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Leave the images as they are; magnitude and position are ignored."""


def auto_contrast(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Stretch each channel to the full range; magnitude and position are ignored, a flat channel stays as it is.

    Pillow truncates the result to a byte where this keeps the fraction: up to 1/255 apart.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    # Division rounds to at most 1; a flat channel is shifted by 0 and divided by 1.
    images.sub_(low.masked_fill(flat, 0.0)).div_((high - low).masked_fill_(flat, 1.0))


def equalize(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Flatten the histogram of each channel, on byte values; magnitude and position are ignored.

    Exactly Pillow's integer table, with one exception: where fewer than 255 pixels lie below the channel's highest
    value Pillow returns the image unchanged, which would make this a no-op at 8x8; there the exact quotient is used.
    """
    values = images.mul_(255).round_().long().flatten(2)
    # Counts, and what is computed of them, are floats, masks too: many times as fast on a CPU as whole numbers and
    # booleans, and exact below 2^24, also the floor of a quotient.
    counts = images.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, torch.ones_like(images).flatten(2))
    upto = counts.cumsum(2)
    below = upto - counts
    # Of the pixels below the highest value, and so below any that there is.
    total = torch.lt(upto, values.shape[2], out=counts).mul_(upto).amax(2, keepdim=True)
    step = (total / 255).floor_()
    few, flat = torch.lt(step, 1, out=torch.empty_like(step)), torch.lt(total, 1, out=torch.empty_like(step))
    # (below + step / 2) / step as in Pillow, and where there are few pixels (510 below + total) / (2 total).
    shift, width = torch.lerp((step / 2).floor_(), total, few), torch.addcmul(step, few, total, value=2).add_(flat)
    table = torch.addcmul(shift, below, 1 + 509 * few).div_(width).floor_().clamp_(max=255)
    # A channel of one value keeps it.
    table.lerp_(torch.arange(256.0, device=images.device), flat)
    torch.gather(table.div_(255), 2, values, out=images.view(values.shape))


def posterize(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Keep the first floor(magnitude) of the 8 bits of every byte value; magnitude in bits, 1 to 8."""
    width = _wide(torch.exp2(8 - magnitude.floor()))
    images.mul_(255).round_().div_(width).floor_().mul_(width).div_(255)


def solarize(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Invert the values at or above a threshold; magnitude is that threshold, 0 (all values) to above 1 (none)."""
    # |v - 1| where inverted and |v - 0| elsewhere: many times as fast on CPU as `where`, and the same to the bit.
    inverted = torch.ge(images, _wide(magnitude), out=torch.empty_like(images))
    images.sub_(inverted).abs_()


COLOR = (1.0, 0.0)
"""Kind of `blend` that moves every pixel away from its own grey, or towards it; -1 is grey, and one channel stays."""
CONTRAST = (0.0, 1.0)
"""Kind that moves every pixel away from the image's mean grey, or towards it; -1 is a flat image."""
BRIGHTNESS = (0.0, 0.0)
"""Kind that moves every pixel away from black, or towards it; -1 is black."""


def blend(images: Tensor, magnitude: Tensor, position: Tensor, own: Tensor, mean: Tensor) -> None:
    """Scale the distance of every pixel to a grey by 1 + magnitude: ``own`` of its own and ``mean`` of the image's."""
    grey = _grey(images)
    start = torch.addcmul(grey.mean((2, 3), keepdim=True) * _wide(mean), grey, _wide(own))
    # Magnitude 0 leaves the images alone bit for bit.
    torch.lerp(start, images, _wide(1 + magnitude), out=images).clamp_(0, 1)


def sharpness(images: Tensor, magnitude: Tensor, position: Tensor) -> None:
    """Scale the distance of every value to a smoothed image by 1 + magnitude; -1 is smooth, 1 is very sharp.

    The smoothing is Pillow's: a 3x3 kernel of ones with 5 in the centre, over 13; the outermost pixels stay.
    """
    inner, share = images[..., 1:-1, 1:-1], _wide(-magnitude / 13)
    rows = (images[..., :-2, :] + images[..., 1:-1, :]).add_(images[..., 2:, :])
    # Adding slices is about ten times faster on CPU than a depthwise convolution or average pooling.
    ones = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    # (1 + magnitude) image - magnitude (ones + 4 image) / 13; magnitude 0 leaves the images alone bit for bit.
    inner.mul_(1 - 9 * share).addcmul_(ones, share).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """The luma of three channels (ITU-R 601, as in Pillow), the mean of any other number: (n, 1, H, W)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _wide(numbers: Tensor) -> Tensor:
    """Numbers (n,) as (n, 1, 1, 1)."""
    return numbers.view(-1, 1, 1, 1)
