"""Our rival: the recipe of a careful engineer, beside `dha fit`, on the same images in the same wall-clock time.

    python benchmarks/careful.py SOURCE --budget 5m --images 5000 --seeds 3 --rows careful dha residual-none

`careful` is the 9-layer residual network of DAWNBench ("ResNet-9") in plain PyTorch: random crops and, for photographs,
mirror images; SGD with Nesterov momentum, one cycle of the learning rate, label smoothing; all training images, none
held out for validation. The other rows are `dha fit`. Each run is a process of its own with all cores to itself, and
the budget covers all of it, from the start of the process to the test accuracy. Runs follow one another seed by seed,
so that the rows share the machine's moods. `careful, mirrored` is what the same networks of the recipe predict from an
image and its mirror image, as `dha` may, found after the time is over. Prints a Markdown table and writes careful.json
to the current folder.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dha.data import load_source, measure, split
from dha.engine import computes_in_bf16
from repeated import report

ROWS = {"careful": [], "dha": [], "residual-none": ["--space=residual", "--learn=none"]}
PROBES = 6  # steps of each precision that are timed at the start


@dataclass(frozen=True)
class Recipe:
    """What the engineer chooses for a data set: `width` is that of the first convolution, `learning_rate` the peak."""

    width: int
    batch_size: int
    learning_rate: float
    flip: bool


class Residual(nn.Sequential):
    """Layers whose result is added to what they were given."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the sum, (N, C, H, W)."""
        return input + super().forward(input)


def convolution(inputs: int, outputs: int, *more: nn.Module) -> nn.Sequential:
    """Return a 3x3 convolution with its normalisation, a ReLU and the layers in `more`."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), *more
    )


def resnet9(channels: int, classes: int, width: int) -> nn.Sequential:
    """Return the network, from images (N, channels, S, S), S at least 8, to logits before their scale of 1/8."""
    return nn.Sequential(
        convolution(channels, width),
        convolution(width, 2 * width, nn.MaxPool2d(2)),
        Residual(convolution(2 * width, 2 * width), convolution(2 * width, 2 * width)),
        convolution(2 * width, 4 * width, nn.MaxPool2d(2)),
        convolution(4 * width, 8 * width, nn.MaxPool2d(2)),
        Residual(convolution(8 * width, 8 * width), convolution(8 * width, 8 * width)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes, bias=False),
    )


def one_cycle(progress: float) -> float:
    """Return the share of the peak learning rate: up in the first quarter of the run, then down to 0, both linear."""
    return max(0.0, min(progress / 0.25, (1 - progress) / 0.75))


def crops(padded: Tensor, chosen: Tensor, side: int, flip: bool) -> Tensor:
    """Cut a square at random out of each chosen one of the padded images (N, H, W, C), and mirror half if `flip`."""
    steps = torch.arange(side, device=padded.device)
    top, left = torch.randint(padded.shape[1] - side + 1, (2, len(chosen), 1), device=padded.device)
    mirrored = flip & (torch.rand(len(chosen), 1, device=padded.device) < 0.5)
    rows, columns = top + steps, left + torch.where(mirrored, steps.flip(0), steps)
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def duration(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def careful(folder: Path, recipe: Recipe, budget: float, seed: int, began: float) -> dict[str, Any]:
    """Train and test by the recipe on what `prepare` wrote, in `budget` seconds after `began` (`time.monotonic`)."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = load_source(folder)
    train, test = source.train, source.test
    assert test is not None
    channels, side = train.images.shape[1:3]
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in measure(train.images))
    padded = F.pad(train.images, [side // 8] * 4).permute(0, 2, 3, 1).contiguous().to(device)
    labels = train.labels.to(device)
    network = resnet9(channels, len(source.classes), recipe.width).to(device)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    available, seen = budget, 0

    def progress() -> float:
        return (time.monotonic() - began) / available

    def logits(images: Tensor, half: bool) -> Tensor:
        pixels = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return network(pixels).float() / 8

    def batches() -> Iterator[Tensor]:
        size = min(recipe.batch_size, len(labels))
        while True:
            yield from torch.randperm(len(labels), device=device)[: len(labels) // size * size].split(size)

    def step(half: bool) -> None:
        nonlocal seen
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * one_cycle(progress())
        chosen = next(order)
        images = crops(padded, chosen, side, recipe.flip)
        loss = F.cross_entropy(logits(images, half), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device, so that clocks tell the truth
        seen += len(chosen)

    @torch.no_grad()
    def correct(images: Tensor, truth: Tensor, half: bool, mirrored: bool = False) -> int:
        network.eval()
        found = logits(images.to(device), half)
        if mirrored:
            found += logits(images.to(device).flip(-1), half)
        network.train()
        return int((found.argmax(1) == truth.to(device)).sum())

    order = batches()
    # Where bfloat16 is emulated, its steps would take a good part of the budget.
    precisions = (False, True) if computes_in_bf16(device.type) else (False,)
    probed = {half: min(duration(lambda half=half: step(half)) for _ in range(PROBES)) for half in precisions}
    half = min(precisions, key=lambda half: probed[half])
    few = train.select(range(min(len(train), 512)))
    rehearsal = min(duration(lambda: correct(few.images, few.labels, half)) for _ in range(2))
    available = budget - 0.5 - 1.5 * rehearsal * len(test) / len(few)
    while progress() < 1:
        step(half)

    def accuracy(mirrored: bool) -> float:
        parts = zip(test.images.split(512), test.labels.split(512), strict=True)
        return 100 * sum(correct(images, truth, half, mirrored) for images, truth in parts) / len(test)

    plain, seconds = accuracy(mirrored=False), round(time.monotonic() - began, 1)
    return {
        "seed": seed,
        "test_accuracy": plain,
        "mirrored_accuracy": accuracy(mirrored=True),
        "epochs": round(seen / len(train), 1),
        "seconds": seconds,
        "precision": "bf16" if half else "32",
        **asdict(recipe),
    }


def dha(folder: Path, arguments: list[str], budget: float, seed: int) -> dict[str, Any]:
    """Run `dha fit` and return what it wrote about itself."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        command = [sys.executable, "-m", "dha", "fit", str(folder), f"--out={out}", f"--seed={seed}"]
        began = time.monotonic()
        done = subprocess.run([*command, f"--budget={budget:g}s", *arguments], capture_output=True, text=True)
        seconds = round(time.monotonic() - began, 1)
        if done.returncode:
            sys.exit(done.stderr)
        model = json.loads((out / "model" / "model.json").read_text())
    return {
        "seed": seed,
        "test_accuracy": 100 * model["results"]["test_accuracy"],
        "epochs": model["results"]["epochs"],
        "seconds": seconds,
        "learning_rate": model["schedule"][-1]["learning_rate"],
        "mirrored": model["mirrored"],
    }


def prepare(name: str, count: int | None, folder: Path) -> tuple[int, bool]:
    """Write the first `count` training images and the test images; return the former's number, and if they have colour.

    Where the source has no test images, those that `dha fit` would hold out are taken.
    """
    source = load_source(name)
    parts = split(source, validation_fraction=0.1, test_fraction=0.15, seed=0)
    given = [source.train] if source.test else [parts.train, parts.validation]
    test = parts.test
    assert test is not None
    train = [torch.cat(tensors)[:count] for tensors in zip(*((p.images, p.labels) for p in given), strict=True)]
    for part, images, labels in (("train", *train), ("test", test.images, test.labels)):
        np.savez(folder / f"{part}.npz", x=images.permute(0, 2, 3, 1).numpy(), y=labels.numpy())
    return len(train[0]), train[0].shape[1] == 3


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--budget", default="5m", help="such as 90s, 5m or 1h")
    parser.add_argument("--images", type=int, help="train on the first so many images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--width", type=int, default=32, help="channels of the first convolution")
    parser.add_argument("--batch-size", type=int, help="default: 128; 64 with fewer than 2,000 training images")
    parser.add_argument("--learning-rate", type=float, help="peak of the cycle; default: 0.2 per 128 images of a batch")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, help="default: where images have colour")
    options = parser.parse_args()
    budget = float(options.budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[options.budget[-1]]
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in options.rows}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        count, colour = prepare(options.source, options.images, folder)
        batch_size = options.batch_size or (64 if count < 2000 else 128)
        flip = colour if options.flip is None else options.flip
        recipe = Recipe(options.width, batch_size, options.learning_rate or 0.2 * batch_size / 128, flip)
        for seed in range(options.seeds):
            for row in options.rows:
                if row == "careful":  # in a new process, as the other rows are: its start is part of its time
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                        result = process.submit(careful, folder, recipe, budget, seed, time.monotonic()).result()
                else:
                    result = dha(folder, ROWS[row], budget, seed)
                results[row].append(result)
                print(f"{row} seed {seed}: {result['test_accuracy']:.2f} % in {result['seconds']} s", file=sys.stderr)
                if "mirrored_accuracy" in result:
                    mirrored = {**result, "test_accuracy": result["mirrored_accuracy"]}
                    results.setdefault(f"{row}, mirrored", []).append(mirrored)
    report("careful", results, sys.argv)


if __name__ == "__main__":
    main()
