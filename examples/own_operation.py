"""Adds an operation to the cells, and lets a run decide where it is used.

    python examples/own_operation.py

An operation is a constructor from (channels, stride) of an ``nn.Sequential`` that maps (N, C, H, W) to (N, C, H/stride,
W/stride) and ends in a BatchNorm, so that a mixing weight can be absorbed. The table has to be extended before a model
that uses the operation is loaded, too: the saved genotype names it, and nothing in a model folder is code.
"""

from torch import nn

from dha import ArchitectureConfig, ImageClassifier
from dha.architecture import OPERATIONS


def dense_3x3(channels: int, stride: int) -> nn.Sequential:
    """Return a dense 3x3 convolution, which DARTS left out."""
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels))


def main() -> None:
    """Train on digits with eight operations instead of seven."""
    OPERATIONS["dense_3x3"] = dense_3x3
    settings = ArchitectureConfig(width=8, depth=3, start="random")
    classifier = ImageClassifier(space="cells", epochs=4, architecture=settings).fit("digits")
    print(classifier.genotype_)
    print(f"test accuracy: {100 * classifier.test_accuracy_:.2f} %")


if __name__ == "__main__":
    main()
