"""Progressive resizing: a run begins on smaller images, which cost less, and comes to the full size towards its end.

What is coarse is learned first, and from more images in the same time. Source: the DAWNBench entry of fast.ai (Howard
et al., 2018); why the full size has to come in the end: Touvron et al., NeurIPS 2019 (FixRes).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

STAGES = ((0.3, 5 / 8), (0.55, 6 / 8), (0.75, 7 / 8))
"""(share of the run, share of the side): until so much of the run is over, images have so much of their side."""

SMALLEST = 20
"""Side in pixels below which no image is brought."""


def training_side(image_size: int, progress: float) -> int:
    """Return the side in pixels of the images that are trained on, a multiple of 4 or the full size.

    Args:
        image_size: the full size.
        progress: share of the run that is over, in [0, 1].
    """
    for until, share in STAGES:
        if progress < until:
            return min(image_size, max(SMALLEST, 4 * round(image_size * share / 4)))
    return image_size


def gain(image_size: int) -> float:
    """Return how many times as many images a run trains on as one at full size does in the same time, if a step takes
    as long as its pixels are many.

    Args:
        image_size: the full size.
    """
    ends = [*(until for until, _ in STAGES), 1.0]
    starts = [0.0, *ends[:-1]]
    stages = zip(starts, ends, strict=True)
    return sum((end - start) * (image_size / training_side(image_size, start)) ** 2 for start, end in stages)


@torch.no_grad()
def pixels(images: Tensor, side: int) -> Tensor:
    """Return images as float32 in [0, 1], (N, C, side, side).

    Args:
        images: uint8, (N, C, S, S), with S at least ``side``.
        side: in pixels.
    """
    values = images.float().div_(255)
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, size=(side, side), mode="bilinear", antialias=True).clamp_(0, 1)
