"""The seven candidate operations of the cell space (DARTS, Liu et al., ICLR 2019, section 3.1).

Every operation is an ``nn.Sequential`` whose last layer is linear in its per-channel or scalar parameters: a BatchNorm,
or a ``Scale``. That is what lets a mixing weight of the search network go into these parameters, for a pass
(``weighted``) or for good (``absorb``).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dha.architecture.depthwise import DepthwiseConv2d


class Scale(nn.Module):
    """Multiplies its input by one trained number, so that a skip connection can absorb a mixing weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``weight * x``, in the data type of ``x`` (autocast would otherwise promote it back to float32)."""
        return x * self.weight.to(x.dtype)


class FactorizedReduce(nn.Module):
    """Halves height and width with two 1x1 convolutions on interleaved pixels, so that no pixel is thrown away."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, ceil(H/2), ceil(W/2))."""
        x = torch.relu(x)
        # An odd side has one more even pixel than odd ones: padding gives both halves the same shape.
        shifted = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return torch.cat([self.even(x), self.odd(shifted)], dim=1)


def relu_conv_norm(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return ReLU, 1x1 convolution, BatchNorm: brings an input of a cell to the cell's number of channels."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))


def reduce_norm(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a ``FactorizedReduce`` followed by BatchNorm."""
    return nn.Sequential(FactorizedReduce(channels_in, channels_out), nn.BatchNorm2d(channels_out))


def _depthwise(channels: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    return [
        nn.ReLU(),
        DepthwiseConv2d(channels, kernel, stride, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


def _separable(channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_depthwise(channels, kernel, stride, 1), *_depthwise(channels, kernel, 1, 1))


def _dilated(channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_depthwise(channels, kernel, stride, 2))


def _skip(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Scale()) if stride == 1 else reduce_norm(channels, channels)


OPERATIONS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "max_pool_3x3": lambda c, s: nn.Sequential(nn.MaxPool2d(3, s, 1), nn.BatchNorm2d(c)),
    "avg_pool_3x3": lambda c, s: nn.Sequential(nn.AvgPool2d(3, s, 1, count_include_pad=False), nn.BatchNorm2d(c)),
    "skip": _skip,
    "separable_3x3": lambda c, s: _separable(c, 3, s),
    "separable_5x5": lambda c, s: _separable(c, 5, s),
    "dilated_3x3": lambda c, s: _dilated(c, 3, s),
    "dilated_5x5": lambda c, s: _dilated(c, 5, s),
}
"""Name -> constructor of the operation from (channels, stride); all map (N, C, H, W) to (N, C, H/stride, W/stride)."""


def weighted(operation: nn.Sequential, x: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight`` (a scalar) times what ``operation`` returns for ``x``, differentiable in both.

    It is the parameters of the last layer that are multiplied, not an image's worth of numbers. While it lasts no other
    thread may use the operation.
    """
    last = operation[-1]
    parameters = last._parameters
    # As `torch.func.functional_call` does, which takes several times as long to find one layer of a small network.
    last._parameters = {name: None if p is None else weight * p for name, p in parameters.items()}  # pyright: ignore
    try:
        return operation(x)
    finally:
        last._parameters = parameters


def dense_gradient(x: Tensor) -> Tensor:
    """Return ``x``, the gradient of which will lie channels-last and without gaps from here on.

    The backward pass of BatchNorm takes several times as long on a CPU for one that does not: for slices, which are the
    gradients of what is concatenated, or for what is averaged over its pixels.
    """
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


@torch.no_grad()
def absorb(operation: nn.Sequential, weight: Tensor) -> None:
    """Change ``operation`` in place so that it returns ``weight`` (a scalar) times what it returned before."""
    last = operation[-1]
    for parameter in last.parameters():
        parameter.mul_(weight)
