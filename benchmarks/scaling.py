"""How the cost of a joint step grows with what it is made of, each as the exponent of a power law fitted to it.

    python benchmarks/scaling.py --blocks 5

A step learns everything while the search goes on. Measured against: operations in the policy, nodes per cell and number
of cells (space of cells), images in a batch (residual space); and the drawing of a batch alone, shuffling included,
against the number of images in the data set. The sizes of one quantity run side by side: blocks of steps take turns, a
figure is the median over the blocks, and a block is as long as it takes for everything that is learned now and then to
be learned once. Clock as in speed.py. The exponent is the slope of a straight line through the logarithms. Prints a
Markdown table and writes scaling.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from dha.augmentation import OPERATIONS, AugmentationPolicy
from dha.config import ArchitectureConfig, Config
from dha.data import Batches, LabelledImages, Preprocessing, Splits
from dha.engine import make_fabric
from dha.prepare import prepare, resolve
from speed import ALL, CLASSES, block_length, timed

SIDE, BATCH = 16, 32
SIZES = {
    "operations in the policy": [2, 4, 8, 16],
    "nodes per cell": [2, 3, 4, 5, 6],
    "cells": [5, 10, 20],
    "images in a batch": [16, 32, 64, 128, 256],
    "images in the data set": [10**3, 10**4, 10**5, 10**6],
}


def noise(number: int, side: int = SIDE) -> LabelledImages:
    """Return images of noise."""
    pixels = torch.randint(256, (number, 3, side, side), dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(number) % CLASSES)


def joint_steps(config: Config) -> Callable[[], int]:
    """Return what takes one block of joint steps, and tells how many."""
    number = 8 * config.images_per_step()
    splits = Splits(noise(number), noise(number), None, tuple(map(str, range(CLASSES))), held_out=True)
    preprocessing = Preprocessing(SIDE, 3, (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric("cpu", config.precision, SIDE)
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    joint.network.train()
    several, length = batches.forever(), block_length("all")

    def block() -> int:
        began = joint.steps
        while joint.steps < began + length:
            joint.step(*next(several), progress=0.2)
        return joint.steps - began

    return block


def drawing(number: int) -> Callable[[], int]:
    """Return what draws the batches of an epoch of ``number`` images, or of as many as make 500, and tells how many."""
    batches = Batches(noise(number, 4), 128, torch.Generator(), torch.device("cpu"), True)
    several = batches.forever()

    def block() -> int:
        length = -(-500 // len(batches)) * len(batches)
        for _ in range(length):
            next(several)
        return length

    return block


def block_of(quantity: str, size: int) -> Callable[[], int]:
    """Return what takes one block of steps, or draws one epoch of batches, where a quantity has this size."""
    if quantity == "images in the data set":
        return drawing(size)
    config = Config(space="cells", learn=ALL, epochs=1, batch_size=BATCH, device="cpu", precision="32")
    config.architecture = ArchitectureConfig(width=8, depth=5, resolution=SIDE)
    if quantity == "nodes per cell":
        config.architecture.nodes = size
    elif quantity == "cells":
        config.architecture.depth = size
    else:
        config.space, config.architecture.depth = "residual", 1
    if quantity == "images in a batch":
        config.batch_size = size
    if quantity != "operations in the policy":
        return joint_steps(config)
    with tempfile.TemporaryDirectory() as folder:
        config.augmentation.start = f"{folder}/policy.json"
        AugmentationPolicy(list(OPERATIONS)[:size], identity_probability=1 / size).save(config.augmentation.start)
        return joint_steps(config)


def measured(quantity: str, blocks: int) -> Iterator[float]:
    """Yield the milliseconds of a step, or of drawing a batch, for each size of a quantity."""
    made = [block_of(quantity, size) for size in SIZES[quantity]]
    seconds = [[timed(block, "cpu") for block in made] for _ in range(blocks + 1)]
    # The first block of each warms up.
    yield from (1000 * statistics.median(column) for column in zip(*seconds[1:], strict=True))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantities", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of steps per size")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = {}
    print("| quantity | sizes | ms | exponent |\n|---|---|---|---|")
    for quantity in options.quantities:
        sizes, times = SIZES[quantity], list(measured(quantity, options.blocks))
        exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
        results[quantity] = {"sizes": sizes, "milliseconds": times, "exponent": exponent}
        row = ", ".join(f"{size:,}" for size in sizes), ", ".join(f"{t:.3g}" for t in times)
        print(f"| {quantity} | {row[0]} | {row[1]} | {exponent:.2f} |", flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    content = {"command": ["python", *sys.argv], "machine": machine, "results": results}
    Path("scaling.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
