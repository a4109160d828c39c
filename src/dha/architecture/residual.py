"""The residual space: dense convolutions that keep a machine busy, in the skeleton of a small residual network.

Skeleton: the nine-layer residual network that won DAWNBench (Page, "How to train your ResNet", 2018), with the residual
branch of every block chosen by a sparse code.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dha.architecture.blocks import BlockNetwork, Choice
from dha.architecture.convolution import SameConv2d
from dha.architecture.depthwise import DepthwiseConv2d
from dha.architecture.drop_path import DropPath
from dha.architecture.operations import Scale

STAGES = 3
SMALLEST = 4
"""Side in pixels below which nothing is halved any more."""


def conv_norm(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution with "same" padding, and BatchNorm."""
    return [SameConv2d(channels_in, channels_out, kernel, stride), nn.BatchNorm2d(channels_out)]


def conv_norm_relu(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution with "same" padding, BatchNorm and ReLU."""
    return [*conv_norm(channels_in, channels_out, kernel, stride), nn.ReLU(inplace=True)]


def shrinking(
    layer: Callable[..., list[nn.Module]], channels_in: int, width: int, side: int, resolution: int
) -> tuple[list[nn.Module], int, int]:
    """Return strided layers that halve images until they fit, and channels and side of what comes out of them.

    Args:
        layer: makes one, as ``conv_norm_relu`` does.
        channels_in: channels of the images.
        width: channels of every layer.
        side: of the images in pixels.
        resolution: largest side that fits.
    """
    layers, channels = [], channels_in
    while side > resolution:
        layers += layer(channels, width, stride=2)
        channels, side = width, (side + 1) // 2
    return layers, channels, side


def _pair(channels: int, between: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(channels, between), *conv_norm(between, channels))


def _bottleneck(channels: int) -> nn.Sequential:
    half = max(1, channels // 2)
    return nn.Sequential(*conv_norm_relu(channels, half, 1), *conv_norm_relu(half, half), *conv_norm(half, channels, 1))


def _inverted(channels: int) -> nn.Sequential:
    between = 3 * channels
    depthwise = [DepthwiseConv2d(between, 3), nn.BatchNorm2d(between), nn.ReLU(inplace=True)]
    return nn.Sequential(*conv_norm_relu(channels, between, 1), *depthwise, *conv_norm(between, channels, 1))


BRANCHES = {
    "pair_3x3": lambda c: _pair(c, c),
    "wide_3x3": lambda c: _pair(c, 2 * c),
    "narrow_3x3": lambda c: _pair(c, max(1, c // 2)),
    "bottleneck": _bottleneck,
    "single_5x5": lambda c: nn.Sequential(*conv_norm(c, c, 5)),
    "inverted_3x3": _inverted,
    "skip": lambda c: nn.Sequential(Scale()),
}
"""Name -> constructor of a residual branch from its channels; all keep the shape."""


REFERENCES = ("pair_3x3", "skip", "single_5x5")
"""Where a search starts in the first block of every stage; in further ones it is a pair of 3x3. These are the blocks of
the nine-layer network but for the last stage, of whose few pixels a 5x5 sees all."""


class Residual(nn.Module):
    """Adds a chosen branch to its input: ``relu(x + branch(x))``.

    Args:
        channels: of input and output.
        choice: makes the branch.
        reference: the candidate that a search starts from.
        further: whether there is a block before it in its stage. It begins as the identity then (or twice that, for a
            skip), because the BatchNorm at the end of its branch gives 0 at first: else deep and wide networks learn
            nothing for some passes at learning rates that suit others. Source: Goyal et al., "Accurate, Large
            Minibatch SGD" (2017), section 5.1.
    """

    def __init__(self, channels: int, choice: Choice, reference: str = "pair_3x3", further: bool = False) -> None:
        super().__init__()

        def candidate(make: Callable[[int], nn.Sequential]) -> nn.Sequential:
            branch = make(channels)
            last = branch[-1]
            if further and isinstance(last, nn.BatchNorm2d):
                nn.init.zeros_(last.weight)
            return branch

        self.branch = choice({name: partial(candidate, make) for name, make in BRANCHES.items()}, reference)
        self.drop = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return torch.relu_(x + self.drop(self.branch(x)))


class ResidualNetwork(BlockNetwork):
    """A network of the residual space: stem, three stages that double the channels, linear head.

    Args:
        channels_in: channels of the images.
        classes: number of outputs.
        image_size: side of the images in pixels.
        choice: makes the blocks: ``searched(...)`` for a search, ``written(...)`` for the plain network of a genotype.
        width: channels of the stem.
        depth: residual blocks per stage.
        resolution: largest side in pixels that the first stage works on; the stem halves images until they fit.
    """

    def __init__(
        self,
        channels_in: int,
        classes: int,
        image_size: int,
        choice: Choice,
        *,
        width: int = 16,
        depth: int = 1,
        resolution: int = 40,
    ) -> None:
        super().__init__("residual", width, depth, resolution)
        layers, channels, side = shrinking(conv_norm_relu, channels_in, width, image_size, resolution)
        layers += conv_norm_relu(channels, width)
        channels = width
        for stage in range(STAGES):
            layers += conv_norm_relu(channels, 2 * channels)
            channels *= 2
            if side >= 2 * SMALLEST:
                # Before the ReLU, which then has a quarter of the pixels to see: the same function and gradients.
                layers.insert(-1, nn.MaxPool2d(2))
                side //= 2
            references, further = [REFERENCES[stage], *["pair_3x3"] * (depth - 1)], [False, *[True] * (depth - 1)]
            layers += [Residual(channels, choice, *block) for block in zip(references, further, strict=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.head(0.125 * self.body(images).amax(dim=(2, 3)))
