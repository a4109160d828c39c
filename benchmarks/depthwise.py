"""Depthwise convolution, forward and backward, on one CPU core: PyTorch's kernels and dha's backward pass.

    python benchmarks/depthwise.py

Prints a Markdown table of medians of 15 repetitions in ms, batch 64, float32, channels-last.
"""

import statistics
import time

import torch
from torch import nn

from dha.architecture.depthwise import DepthwiseConv2d


def median_ms(module: nn.Conv2d, method: type[nn.Conv2d], images: torch.Tensor) -> tuple[float, float]:
    """Return the median time of the forward and of the backward pass."""
    forward, backward = [], []
    for _ in range(18):
        began = time.perf_counter()
        out = method.forward(module, images)
        middle = time.perf_counter()
        out.backward(torch.ones_like(out))
        forward.append(middle - began)
        backward.append(time.perf_counter() - middle)
    return 1e3 * statistics.median(forward[3:]), 1e3 * statistics.median(backward[3:])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| channels | side | kernel | dilation | forward | PyTorch backward | dha backward |")
    print("|---|---|---|---|---|---|---|")
    for channels, side in ((16, 32), (16, 16), (32, 8), (64, 4)):
        for kernel, dilation in ((3, 1), (5, 1), (3, 2), (5, 2)):
            module = DepthwiseConv2d(channels, kernel, dilation=dilation)
            images = torch.randn(64, channels, side, side).contiguous(memory_format=torch.channels_last)
            images.requires_grad_()
            plain, ours = median_ms(module, nn.Conv2d, images), median_ms(module, DepthwiseConv2d, images)
            print(f"| {channels} | {side} | {kernel} | {dilation} | {plain[0]:.2f} | {plain[1]:.2f} | {ours[1]:.2f} |")


if __name__ == "__main__":
    main()
