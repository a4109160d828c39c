"""Dense convolution of images with few pixels, forward and backward, on a CPU: PyTorch's kernels and dha's.

    python benchmarks/convolution.py --threads 2

Prints a Markdown table of medians of 15 repetitions in ms, batches of 128, bfloat16 by autocast, channels-last; the two
take turns.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from dha.architecture.convolution import SameConv2d
from dha.engine import make_fabric


def milliseconds(module: nn.Conv2d, method: type[nn.Conv2d], images: torch.Tensor) -> float:
    """Return the time of a forward and a backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        out = method.forward(module, images)
    out.backward(torch.ones_like(out))
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    make_fabric("cpu", "bf16", 32)  # memory is kept as in a run
    print("| channels | side | kernel | PyTorch | dha | PyTorch over dha |")
    print("|---|---|---|---|---|---|")
    for channels in (64, 128, 256, 384):
        for side in (2, 3, 4, 5):
            for kernel in (3, 5):
                module = SameConv2d(channels, channels, kernel)
                module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                images = torch.randn(128, channels, side, side).bfloat16()
                images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
                times = [[milliseconds(module, m, images) for m in (nn.Conv2d, SameConv2d)] for _ in range(18)][3:]
                plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
                print(f"| {channels} | {side} | {kernel} | {plain:.2f} | {ours:.2f} | {plain / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
