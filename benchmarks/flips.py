"""`dha` whose training images are mirrored and cropped at random before anything else is done to them.

    python benchmarks/flips.py fit SOURCE --out runs/flips --space residual

Half of the images are mirrored, and each is cut out of itself padded by an eighth of its side in black, as the careful
recipe does. All else is `dha`: the policy is applied on top, and probes measure what it adds. Validation and test
images stay as they are.
"""

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from careful import crops
from dha.batching import Batch, Batching
from dha.cli import main

plain_batches = Batching.batches


def batches(
    self: Batching, images: Tensor, labels: Tensor, progress: float, weights: Tensor | None = None
) -> list[Batch]:
    """Make of images what is trained on as `Batching` does, after flips and crops."""
    side = images.shape[-1]
    padded = F.pad(images, [side // 8] * 4).permute(0, 2, 3, 1)
    every = torch.arange(len(images), device=images.device)
    return plain_batches(self, crops(padded, every, side, flip=True), labels, progress, weights)


if __name__ == "__main__":
    Batching.batches = batches
    sys.exit(main())
