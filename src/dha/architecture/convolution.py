"""A convolution that is fast on a CPU, too, where images have few pixels.

PyTorch's kernels for the weight gradient take two to six times as long as the forward pass there. It is a convolution
itself, in which images and channels change places: of the gradients of the outputs, with the inputs as filters. There
are as many channels then as there were images, which kernels of forward passes are made for. These in turn take up to
four times as long as one product of matrices where filters do not fit into the cache. ``benchmarks/convolution.py``
measures all of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 25
"""Pixels per image up to which this is done."""
MANY = 64
"""Images, and channels before and after, from which on."""
LARGE = 2**20
"""Numbers in the filters from which on a product of matrices is faster."""


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` with "same" padding and no bias: equal in every value, up to the rounding of bfloat16."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, ceil(H/stride), ceil(W/stride))."""
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        few = input.shape[2] * input.shape[3] <= FEW and min(len(input), *self.weight.shape[:2]) >= MANY
        if not (few and half and input.device.type == "cpu" and self.stride[0] == 1 and self.kernel_size[0] > 1):
            return super().forward(input)
        weight = within(self.weight, input)
        # Autocast looks inside operations of torch, not inside an autograd function.
        return _FewPixels.apply(input.bfloat16(), weight.bfloat16())


def within(weight: Tensor, images: Tensor, dilation: int = 1) -> Tensor:
    """Return a kernel (..., K, K) without the taps that only ever see padding, because they reach over whole images."""
    kernel = weight.shape[-1]
    unused = max(0, kernel // 2 - (max(images.shape[2:]) - 1) // dilation)
    return weight[..., unused : kernel - unused, unused : kernel - unused] if unused else weight


class _FewPixels(torch.autograd.Function):
    """Stride 1 and "same" padding, so that output and input have one size."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        if weight.numel() < LARGE:
            return F.conv2d(input, weight, padding=weight.shape[2] // 2)
        return _product(input, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (input, weight) = gradients, ctx.saved_tensors
        padding, for_input, for_weight = weight.shape[2] // 2, None, None
        if ctx.needs_input_grad[0]:
            for_input = _input_gradient(gradient, input, weight, padding)
        if ctx.needs_input_grad[1]:
            # The inputs as filters, so that what comes out lies as the weight does, but for its taps being in reverse.
            for_weight = F.conv2d(_swapped(gradient), _swapped(input), padding=padding).flip(2, 3)
        return for_input, for_weight


def _product(images: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution as the product of what each pixel sees, as a row, with the filters."""
    (n, _, height, width), (filters, _, kernel, _) = images.shape, weight.shape
    seen = F.pad(images, [kernel // 2] * 4).permute(0, 2, 3, 1).unfold(1, kernel, 1).unfold(2, kernel, 1)
    rows = seen.permute(0, 1, 2, 4, 5, 3).reshape(n * height * width, -1)
    product = F.linear(rows, weight.permute(0, 2, 3, 1).reshape(filters, -1))
    return product.view(n, height, width, filters).permute(0, 3, 1, 2)


def _input_gradient(gradient: Tensor, input: Tensor, weight: Tensor, padding: int) -> Tensor:
    stride, dilation, nothing, wanted = [1, 1], [1, 1], [0, 0], [True, False, False]
    backward = torch.ops.aten.convolution_backward
    return backward(gradient, input, weight, None, stride, [padding] * 2, dilation, False, nothing, 1, wanted)[0]


def _swapped(images: Tensor) -> Tensor:
    """Return images with their channels as images, and the other way round."""
    return images.transpose(0, 1).contiguous(memory_format=torch.channels_last)
