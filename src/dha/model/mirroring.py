"""Predictions from an image and its mirror image, and whether they are better than those from the image alone."""

import math

import torch
from torch import Tensor, nn


def logits_of(network: nn.Module, inputs: Tensor, mirrored: bool) -> Tensor:
    """Return the logits of images (N, C, H, W), (N, classes): if ``mirrored`` the mean of theirs and those of their
    mirror images, which takes twice as long.
    """
    logits = network(inputs)
    return (logits + network(inputs.flip(-1))) / 2 if mirrored else logits


def better_mirrored(plain: Tensor, mirrored: Tensor, labels: Tensor, classes: int) -> bool:
    """Return whether mirror images make predictions better, and those of no class worse.

    The mean loss has to be lower with them by more than its standard error, because predictions take twice as long,
    and that of no class higher by more than so many draws of chance explain: where two classes are each other's
    mirror images (arrows, hands), a few images of them would not show in the mean of all, and neither could be told
    from the other any more.

    Args:
        plain: loss of each image, (N,).
        mirrored: the same with its mirror image, (N,).
        labels: int64, in [0, classes), (N,).
        classes: number of classes.
    """
    change = mirrored - plain
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    sums = torch.zeros(classes, device=change.device).index_add(0, labels, change)
    deviation = change.std(correction=0)
    # The largest of so many draws from a normal distribution is hardly ever more than this many deviations.
    chance = deviation * (1 + math.sqrt(2 * math.log(classes))) / counts.sqrt()
    return bool((change.mean() < -deviation / math.sqrt(len(change))) & (sums / counts <= chance).all())
