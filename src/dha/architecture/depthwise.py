"""A depthwise convolution whose backward pass is fast on a CPU too.

PyTorch's CPU kernels run a depthwise convolution well forwards, and many times slower backwards where the kernel is
dilated. The same gradients come from operations that are fast: the one of the input is a forward convolution with the
flipped kernel; the one of the weight, on small images, is one product per kernel tap. ``benchmarks/depthwise.py``
measures both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dha.architecture.convolution import within

SMALL = 100
"""Pixels per image up to which the weight gradient is computed tap by tap."""


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one filter per channel, "same" padding and no bias: equal in every value."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            channels, channels, kernel, stride, dilation * (kernel // 2), dilation, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        if input.device.type != "cpu":
            return super().forward(input)
        if self.stride[0] > 1:
            # In the precision of the weights, because the kernels of bfloat16 are many times slower.
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype)).to(input.dtype)
        dilation = self.dilation[0]
        weight = within(self.weight, input, dilation)
        if (weight.shape[2] <= 3 and dilation == 1) or not torch.is_grad_enabled():
            return _convolve(input, weight, dilation)
        if torch.is_autocast_enabled("cpu"):
            # Autocast looks inside operations of torch, not inside an autograd function.
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return _Depthwise.apply(input, weight, dilation)


def _convolve(input: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[2] // 2)
    return F.conv2d(input, weight, padding=padding, dilation=dilation, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    """Stride 1 and "same" padding, so that output and input have one shape."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.dilation = dilation
        return _convolve(input, weight, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (input, weight), dilation = gradients, ctx.saved_tensors, ctx.dilation
        for_input = for_weight = None
        if ctx.needs_input_grad[0]:
            for_input = _convolve(gradient, weight.flip(2, 3), dilation)
        if ctx.needs_input_grad[1]:
            height, width = input.shape[2:]
            if height * width <= SMALL:
                for_weight = _weight_gradient(input, gradient, weight.shape, dilation)
            else:
                # In float32, because these kernels are twice as slow in bfloat16.
                padding = dilation * (weight.shape[2] // 2)
                for_weight = conv2d_weight(
                    input.float(), list(weight.shape), gradient.float(), 1, padding, dilation, len(weight)
                ).to(weight.dtype)
        return for_input, for_weight, None


def _weight_gradient(input: Tensor, gradient: Tensor, shape: torch.Size, dilation: int) -> Tensor:
    """Sum over images and pixels of the output gradient times the input as each tap of the kernel sees it."""
    kernel, (height, width) = shape[2], input.shape[2:]
    padding = dilation * (kernel // 2)
    padded, gradient = F.pad(input.float(), [padding] * 4), gradient.float()
    taps = [
        (gradient * padded[:, :, i : i + height, j : j + width]).sum((0, 2, 3))
        for i in range(0, kernel * dilation, dilation)
        for j in range(0, kernel * dilation, dilation)
    ]
    return torch.stack(taps, dim=1).view(shape).to(input.dtype)
