"""The mobile space: inverted residuals, for accuracy per multiply-add.

Skeleton: MobileNetV2 (Sandler et al., CVPR 2018, table 2). Space: the kernel and the expansion of every layer, and
whether it is there at all, as in ProxylessNAS (Cai et al., ICLR 2019, section 4.2).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from dha.architecture.blocks import BlockNetwork, Choice
from dha.architecture.depthwise import DepthwiseConv2d
from dha.architecture.drop_path import DropPath
from dha.architecture.operations import Scale, dense_gradient
from dha.architecture.residual import SMALLEST, conv_norm, shrinking

WIDTH = 32
"""Channels of the stem of MobileNetV2, which the channels below go with."""

FIRST, LAST = 16, 1280

STAGES = ((24, 2, True), (32, 3, True), (64, 4, True), (96, 3, False), (160, 3, True), (320, 1, False))
"""Channels, layers, and whether the first layer halves the image."""

HALVINGS = 1 + sum(halves for _, _, halves in STAGES)


def conv_norm_relu6(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution with "same" padding, BatchNorm and ReLU6."""
    return [*conv_norm(channels_in, channels_out, kernel, stride), nn.ReLU6()]


class SqueezeExcite(nn.Module):
    """Multiplies every channel by a number in [0, 1] that follows from the means of all channels.

    Source: Hu et al., CVPR 2018; a quarter of the channels between, and a hard sigmoid, as in MobileNetV3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(1, channels // 4)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, between, 1), nn.ReLU(), nn.Conv2d(between, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True))


def inverted(
    channels_in: int, channels_out: int, kernel: int, expansion: int, stride: int = 1, squeeze_excite: bool = False
) -> nn.Sequential:
    """Return a layer of MobileNetV2: expansion, depthwise convolution, projection with no activation after it.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: side of the depthwise convolution in pixels.
        expansion: channels of the depthwise convolution per channel of the input; at 1 there is nothing to expand.
        stride: of the depthwise convolution.
        squeeze_excite: whether a ``SqueezeExcite`` comes before the projection.
    """
    between = expansion * channels_in
    layers = conv_norm_relu6(channels_in, between, 1) if expansion > 1 else []
    layers += [DepthwiseConv2d(between, kernel, stride), nn.BatchNorm2d(between), nn.ReLU6()]
    if squeeze_excite:
        layers.append(SqueezeExcite(between))
    return nn.Sequential(*layers, *conv_norm(between, channels_out, 1))


LAYERS = {f"k{kernel}_e{expansion}": (kernel, expansion) for expansion in (6, 3) for kernel in (3, 5, 7)}
"""Name -> kernel and expansion."""

REFERENCES = {"light": ["k3_e3"] * len(STAGES), "heavy": ["k3_e6"] + ["k5_e6"] * (len(STAGES) - 1)}
"""Where a search starts in the layers of every stage: with little time at half the expansion of MobileNetV2, which
leaves it for more passes, and with more of it at its expansion and a larger kernel, but where images are largest."""


class InvertedResidual(nn.Module):
    """A chosen layer, added to its input where both have one shape; there the choice includes to skip the layer."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        choice: Choice,
        reference: str,
        squeeze_excite: bool = False,
    ) -> None:
        super().__init__()
        self.adds = stride == 1 and channels_in == channels_out
        table: dict[str, Callable[[], nn.Sequential]] = {
            name: partial(inverted, channels_in, channels_out, kernel, expansion, stride, squeeze_excite)
            for name, (kernel, expansion) in LAYERS.items()
        }
        if self.adds:
            table["skip"] = lambda: nn.Sequential(Scale())
            self.drop = DropPath()
        self.branch = choice(table, reference)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, ceil(H/stride), ceil(W/stride))."""
        return x + self.drop(self.branch(x)) if self.adds else self.branch(x)


class MobileNetwork(BlockNetwork):
    """A network of the mobile space: stem, a fixed first layer, six stages of chosen layers, linear head.

    MobileNetV2 halves images five times. Here only the last of these halvings are done, as many as leave a side of at
    least ``SMALLEST`` pixels: all five from 128 pixels on, three at 32 pixels, none below 8.

    Args:
        channels_in: channels of the images.
        classes: number of outputs.
        image_size: side of the images in pixels.
        choice: makes the blocks: ``searched(...)`` for a search, ``written(...)`` for the plain network of a genotype.
        width: channels of the stem; 32 is MobileNetV2, everything else is in proportion.
        depth: the most layers of a stage.
        resolution: largest side in pixels that the skeleton works on; extra strided convolutions halve images until
            they fit.
        squeeze_excite: whether every layer has a ``SqueezeExcite``.
        start: which of the ``REFERENCES`` a search starts from.
    """

    def __init__(
        self,
        channels_in: int,
        classes: int,
        image_size: int,
        choice: Choice,
        *,
        width: int = WIDTH,
        depth: int = 4,
        resolution: int = 224,
        squeeze_excite: bool = False,
        start: Literal["light", "heavy"] = "light",
    ) -> None:
        super().__init__("mobile", width, depth, resolution, squeeze_excite)
        layers, channels, side = shrinking(conv_norm_relu6, channels_in, width, image_size, resolution)
        halvings = sum(side >= SMALLEST * 2**k for k in range(1, HALVINGS + 1))
        strides = iter([1] * (HALVINGS - halvings) + [2] * halvings)
        layers += conv_norm_relu6(channels, width, stride=next(strides))
        channels = proportional(FIRST, width)
        layers.append(inverted(width, channels, 3, 1, squeeze_excite=squeeze_excite))
        for (stage, count, halves), reference in zip(STAGES, REFERENCES[start], strict=True):
            stride = next(strides) if halves else 1
            for _ in range(min(count, depth)):
                wanted = proportional(stage, width)
                layers.append(InvertedResidual(channels, wanted, stride, choice, reference, squeeze_excite))
                channels, stride = wanted, 1
        features = proportional(LAST, width)
        self.body = nn.Sequential(*layers, *conv_norm_relu6(channels, features, 1))
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.head(dense_gradient(self.body(images)).mean(dim=(2, 3)))


def proportional(channels: int, width: int) -> int:
    """Return the channels of a layer in a network with ``width`` channels in its stem.

    As in the literature a multiple of 8 and at least nine tenths of the exact proportion; below a width of 32 a
    multiple of width / 4, so that narrow networks keep their proportions.
    """
    step = min(8, max(1, width // 4))
    exact = channels * width / WIDTH
    rounded = max(step, int(exact + step / 2) // step * step)
    return rounded if rounded >= 0.9 * exact else rounded + step
