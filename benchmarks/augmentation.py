"""How many images per second are augmented: this library, a Pillow pipeline in one worker, and kornia's RandAugment.

    pip install kornia
    python benchmarks/augmentation.py --sides 32 224 --blocks 5 --threads 2

All get batches of bytes and give batches of floats, two random operations per image; 512 images of less than 100
pixels at once, as in a run, and 16 larger ones. torch has one thread, and the clock is that of the process, unless
`--threads` gives it more, or `--device cuda` moves the batched ones to a GPU: then it is the one on the wall. Pillow is
one worker. Blocks take turns, figures are medians over blocks. Ours is the uniform policy over all operations, Pillow
draws from the same operations but flip and crop. kornia draws one pair of operations for a whole batch, which is a
smaller job; "one by one" gives it batches of a single image, so that every image has a pair of its own, as with the
others. Prints a Markdown table and writes augmentation.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from dha.augmentation import OPERATIONS, AugmentationPolicy
from dha.engine import make_fabric


def _signed(low: float, high: float) -> float:
    return random.choice((-1, 1)) * random.uniform(low, high)


def _enhanced(kind: Any) -> Callable[[Image.Image], Image.Image]:
    return lambda image: kind(image).enhance(1 + _signed(0, 0.9))


def _affine(make: Callable[[int], tuple[float, ...]]) -> Callable[[Image.Image], Image.Image]:
    def apply(image: Image.Image) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, make(image.width), Image.Resampling.BILINEAR)

    return apply


def _cutout(image: Image.Image) -> Image.Image:
    side = random.uniform(0, 0.5) * image.width
    left, top = random.uniform(0, image.width), random.uniform(0, image.height)
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left - side / 2, top - side / 2, left + side / 2, top + side / 2), fill=0)
    return image


PILLOW: list[Callable[[Image.Image], Image.Image]] = [
    lambda image: image,
    ImageOps.autocontrast,
    ImageOps.equalize,
    ImageOps.invert,
    lambda image: image.rotate(_signed(0, 30), Image.Resampling.BILINEAR),
    lambda image: ImageOps.posterize(image, random.randint(4, 8)),
    lambda image: ImageOps.solarize(image, random.randint(0, 256)),
    *map(_enhanced, (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)),
    _affine(lambda side: (1, _signed(0, 0.3), 0, 0, 1, 0)),
    _affine(lambda side: (1, 0, 0, _signed(0, 0.3), 1, 0)),
    _affine(lambda side: (1, 0, _signed(0, 0.3) * side, 0, 1, 0)),
    _affine(lambda side: (1, 0, 0, 0, 1, _signed(0, 0.3) * side)),
    _cutout,
]


def pillow(images: np.ndarray) -> Tensor:
    """Augment one image after the other, (N, S, S, 3) bytes, and collate them."""
    done = []
    for pixels in images:
        image = Image.fromarray(pixels)
        for _ in range(2):
            image = random.choice(PILLOW)(image)
        done.append(torch.from_numpy(np.array(image)))
    return torch.stack(done).permute(0, 3, 1, 2).float() / 255


def measure(side: int, batch: int, blocks: int, device: str) -> dict[str, float]:
    """Return the images per second of each."""
    from kornia.augmentation.auto import RandAugment  # pyright: ignore[reportMissingImports]

    raw = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    tensor = torch.from_numpy(raw).permute(0, 3, 1, 2).contiguous().to(device)
    policy = AugmentationPolicy(identity_probability=1 / len(OPERATIONS))
    other = RandAugment(n=2, m=10)
    ways: dict[str, Callable[[], Any]] = {
        "dha": lambda: policy(tensor),
        "Pillow": lambda: pillow(raw),
        "kornia RandAugment": lambda: other(tensor.float() / 255),
        "kornia, one by one": lambda: torch.cat([other(image[None]) for image in tensor.float() / 255]),
    }
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.monotonic
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(blocks + 1):
        for name, way in ways.items():
            began, count = clock(), 0
            while clock() - began < 1.0:
                way()
                count += batch
                if device == "cuda":
                    torch.cuda.synchronize()
            if block:  # The first block of each warms up.
                rates[name].append(count / (clock() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make_fabric(options.device, "32", 32)  # memory is kept as in a run
    results = {side: measure(side, 512 if side < 100 else 16, options.blocks, options.device) for side in options.sides}
    print("| side | way | images/s | dha over it |\n|---|---|---|---|")
    for side, rates in results.items():
        for name, rate in rates.items():
            print(f"| {side} | {name} | {rate:.0f} | {rates['dha'] / rate:.2f} |")
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"command": ["python", *sys.argv], "machine": machine, "results": results}
    Path("augmentation.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
