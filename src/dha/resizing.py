"""Progressive resizing: a run begins on smaller images, which cost less, and comes to the full size towards its end.

What is coarse is learned first, and from more images in the same time. Source: the DAWNBench entry of fast.ai (Howard
et al., 2018); why the full size has to come in the end: Touvron et al., NeurIPS 2019 (FixRes).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dha.config import Config

STAGES = ((0.3, 5 / 8), (0.55, 6 / 8), (0.75, 7 / 8))
"""(share of the run, share of the side): until so much of the run is over, images have so much of their side."""

SMALLEST = 20
"""Side in pixels below which no image is brought."""

WORTH = 1.4
"""How many times as many images a run has to see for smaller ones to be worth it, where that is measured: at the same
number of passes they cost accuracy."""


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


def side_in_run(config: Config, image_size: int, progress: float) -> int:
    """Return ``training_side`` where the settings of a run ask for it or leave it open, else the full size.

    A network that was brought may be made for one size.
    """
    full = config.progressive_resizing is False or config.network is not None
    return image_size if full else training_side(image_size, progress)


def mean_seconds(image_size: int, full: float, smallest: float) -> float:
    """Return how long an image takes in the mean over a run, if what it takes at the sides between the smallest and the
    full one is between as its pixels are.

    Args:
        image_size: the full size.
        full: seconds that an image of full size takes.
        smallest: seconds that one of the size that a run begins with takes; no more than ``full`` is believed.
    """
    ends = [*(until for until, _ in STAGES), 1.0]
    starts = [0.0, *ends[:-1]]
    first, images = training_side(image_size, 0.0), 0.0
    smallest = min(smallest, full)
    for start, end in zip(starts, ends, strict=True):
        side = training_side(image_size, start)
        part = (side**2 - first**2) / (image_size**2 - first**2) if image_size > first else 1.0
        images += (end - start) / (smallest + part * (full - smallest))
    return 1 / images


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
