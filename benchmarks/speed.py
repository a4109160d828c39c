"""What the joint step costs, beside plainly training the network that comes out of it.

    python benchmarks/speed.py --tasks residual wide cells mobile --blocks 5 --device cpu

`residual` is 16 wide, `wide` 32, and `large`, for a GPU, 128 and three times as deep. Images have their full size all
the time. Everything runs side by side: blocks of steps of every row take turns, a figure is the median over the blocks,
and a block is as long as it takes for everything that the row learns now and then to be learned once. On one thread of
a CPU the clock is that of the process, which stands still while other programs have the core. Rows:

- `plain`: the derived network, nothing learned beside its weights; `plain, SGD`: with SGD in place of Muon; and what
  torch does by itself with the same network and SGD: `torch, float32`, `torch, channels-last` and `torch,
  channels-last, bfloat16`, with `--compile` also that, compiled (bfloat16 where the hardware computes in it);
- `architecture`, `augmentation`, `hyperparameters`: one of them learned, while the search goes on; `all` three;
  `all, found`: after the search; `all, settled`: after everything that is learned has settled; `every 48th`: looking at
  validation images half as often, as runs do from about step 540 on;
- the parts alone: augmenting a batch by the policy that a run begins with, drawing a batch, recovering all codes.

`memory` is the most that a process that does nothing else has held (on CUDA: what of the device its tensors have), "of
it for steps" what that is over what it held before its first one. `peak` is the share of the matrix product's speed,
measured in the same run, that the multiply-adds of the derived network reach, three passes' worth per step. Prints a
Markdown table per task and writes speed.json.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import count
from dha.augmentation import AugmentationPolicy
from dha.config import ArchitectureConfig, Config, HyperparametersConfig
from dha.data import Batches, LabelledImages, Preprocessing, Splits
from dha.engine import computes_in_bf16, make_fabric
from dha.joint import JointTraining
from dha.prepare import prepare, resolve

ALL = "architecture,augmentation,hyperparameters"
IMAGES, CLASSES = 1024, 10


@dataclass(frozen=True)
class Task:
    """What is measured: the space, side of the images in pixels, images per step, size of the network."""

    space: str
    side: int
    batch: int
    width: int
    depth: int
    resolution: int


TASKS = {
    "residual": Task("residual", 32, 128, 16, 1, 40),
    "wide": Task("residual", 32, 128, 32, 1, 40),
    "large": Task("residual", 32, 128, 128, 3, 40),
    "cells": Task("cells", 32, 64, 16, 8, 20),
    "mobile": Task("mobile", 224, 16, 32, 4, 224),
}


class Joint(NamedTuple):
    """A row of joint steps: parts that are learned, if the search is over, if all has settled, `every`, optimiser."""

    learn: str
    found: bool = False
    settled: bool = False
    every: int = Config().every
    optimizer: Literal["auto", "sgd"] = "auto"


JOINT = {
    "plain": Joint("none"),
    "plain, SGD": Joint("none", optimizer="sgd"),
    "architecture": Joint("architecture"),
    "augmentation": Joint("augmentation"),
    "hyperparameters": Joint("hyperparameters"),
    "all": Joint(ALL),
    "all, every 48th": Joint(ALL, every=48),
    "all, found": Joint(ALL, found=True),
    "all, found, every 48th": Joint(ALL, found=True, every=48),
    "all, settled": Joint(ALL, found=True, settled=True),
}
TORCH = {
    "torch, float32": (torch.contiguous_format, False, False),
    "torch, channels-last": (torch.channels_last, False, False),
    "torch, channels-last, bfloat16": (torch.channels_last, True, False),
    "torch, compiled": (torch.channels_last, True, True),
}


def images(task: Task, number: int) -> LabelledImages:
    """Return images of noise."""
    pixels = torch.randint(256, (number, 3, task.side, task.side), dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(number) % CLASSES)


def joint_training(name: str, row: str, device: str) -> tuple[Batches, JointTraining]:
    """Return the batches and the joint training of a row."""
    task = TASKS[name]
    learn, found, settled, every, optimizer = JOINT[row]
    size = ArchitectureConfig(width=task.width, depth=task.depth, resolution=task.resolution)
    config = Config(
        space=task.space,  # pyright: ignore[reportArgumentType]
        learn=learn,
        epochs=1,
        batch_size=task.batch,
        every=every,
        progressive_resizing=False,
        architecture=size,
        hyperparameters=HyperparametersConfig(optimizer=optimizer),
        device=device,  # pyright: ignore[reportArgumentType]
    )
    number = min(IMAGES, 8 * task.batch)
    splits = Splits(images(task, number), images(task, number), None, tuple(map(str, range(CLASSES))), held_out=True)
    preprocessing = Preprocessing(task.side, 3, (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric(config.device, config.precision, task.side)
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    if found:
        joint.finish_search()
    if settled:
        joint.settle()
    joint.network.train()
    return batches, joint


def joint_block(name: str, row: str, device: str) -> Callable[[], int]:
    """Return what takes one block of joint steps, and tells how many."""
    batches, joint = joint_training(name, row, device)
    drawn, length = joint.batching.drawn(batches.forever(), lambda: 0.2), block_length(row)

    def block() -> int:
        began = joint.steps
        while joint.steps < began + length:
            for batch in next(drawn):
                joint.train(batch, progress=0.2)
        return joint.steps - began

    return block


def torch_block(name: str, row: str, device: str) -> Callable[[], int]:
    """Return what takes one block of steps of an ordinary training loop with the same network."""
    batches, joint = joint_training(name, "plain", device)
    layout, half, compiled = TORCH[row]
    half = half and computes_in_bf16(device)
    network: nn.Module = joint.plain.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    optimizer = torch.optim.SGD(network.parameters(), **settings, fused=True)
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network
    several, length = batches.forever(), block_length(row)

    def block() -> int:
        for _ in range(length):
            pixels, labels = next(several)
            inputs = joint.preprocessing.normalise(pixels.float() / 255).contiguous(memory_format=layout)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = F.cross_entropy(forward(inputs), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return length

    return block


def part_blocks(name: str, device: str) -> dict[str, Callable[[], int]]:
    """Return what does one block of each part of a step alone."""
    batches, joint = joint_training(name, "all", device)
    policy, several = AugmentationPolicy(), batches.forever()
    pixels = next(several)[0].float() / 255
    together = len(pixels) // TASKS[name].batch

    def augment() -> int:
        for _ in range(8):
            policy(pixels)
        return 8 * together

    def draw() -> int:
        for _ in range(8):
            next(several)
        return 8 * together

    def recover() -> int:
        joint.recover()
        return 1

    return {"augmenting alone": augment, "drawing a batch alone": draw, "recovering all codes, once": recover}


def block_length(row: str) -> int:
    """Return the steps after which everything that a row learns has been learned once, at least a few."""
    learn, _, settled, every, _ = JOINT.get(row, JOINT["plain"])
    return every if not settled and ("hyperparameters" in learn or "augmentation" in learn) else 4


def timed(block: Callable[[], int], device: str) -> float:
    """Return the seconds that one step of a block takes."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.monotonic
    began = clock()
    steps = block()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / steps


def resident(what: str) -> float:
    """Return what Linux says of the memory of this process, in MiB; not `getrusage`, which remembers the parent."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 2**10


def memory(name: str, row: str, device: str, threads: int) -> tuple[float, float]:
    """Return the most MiB that a block of steps holds with all that it works on, and how much more that is than before;
    on a CPU, where all that the process holds counts, to be called in a process of its own.
    """
    torch.set_num_threads(threads)
    others = torch.cuda.memory_allocated() if device == "cuda" else 0
    block = joint_block(name, row, device) if row in JOINT else torch_block(name, row, device)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        block()
        most = torch.cuda.max_memory_allocated()
        return (most - others) / 2**20, (most - before) / 2**20
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the high-water mark
    block()
    most = resident("VmHWM")
    return most, most - before


def matmul_speed(device: str, half: bool) -> float:
    """Return the multiply-adds per second of a large matrix product: the best of a few."""
    side = 8192 if device == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if half else torch.float32)

    def product() -> int:
        torch.mm(matrix, matrix)
        return 1

    return side**3 / min(timed(product, device) for _ in range(8))


def measure(name: str, device: str, blocks: int, compiled: bool) -> dict[str, Any]:
    """Return the figures of a task."""
    task = TASKS[name]
    _, plain = joint_training(name, "plain", device)
    shape = (3, task.side, task.side)
    flops = count(plain.derived(), shape)[1]
    speed = matmul_speed(device, plain.config.precision == "bf16")
    steps = {row: joint_block(name, row, device) for row in JOINT}
    # Where bfloat16 is emulated, a block of steps would take many minutes.
    left_out = [*([] if compiled else ["compiled"]), *([] if computes_in_bf16(device) else ["bfloat16"])]
    steps |= {row: torch_block(name, row, device) for row in TORCH if not any(word in row for word in left_out)}
    parts = part_blocks(name, device)
    seconds: dict[str, list[float]] = {row: [] for row in [*steps, *parts]}
    for number in range(blocks + 1):
        for row, block in (steps | parts).items():
            taken = timed(block, device)
            if number:  # The first block of each warms up.
                seconds[row].append(taken)
        print(f"{name}: block {number} of {blocks}", file=sys.stderr)
    rows: dict[str, Any] = {}
    # Processes that have loaded all modules, and nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dha.prepare"])
    for row, taken in seconds.items():
        middle = statistics.median(taken)
        rows[row] = {"ms": 1000 * middle, "ratio": middle / statistics.median(seconds["plain"])}
        if row in steps:
            if device == "cuda":
                gc.collect()
                used = memory(name, row, device, torch.get_num_threads())
            else:
                with ProcessPoolExecutor(1, context) as process:
                    used = process.submit(memory, name, row, device, torch.get_num_threads()).result()
            rows[row]["MiB"], rows[row]["MiB_of_steps"] = used
            rows[row]["images_per_second"] = task.batch / middle
            rows[row]["peak"] = 3 * flops * task.batch / middle / speed
    return {"rows": rows, "matmul_multiply_adds_per_second": speed, "precision": plain.config.precision}


def table(rows: dict[str, Any]) -> str:
    """Return a Markdown table of a task."""
    lines = [
        "| step | ms | ratio to plain | memory, MiB | ratio to plain | of it for steps | images/s | share of peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        line = f"| {name} | {row['ms']:.1f} | {row['ratio']:.3f} |"
        if "MiB" in row:
            more = row["MiB"] / rows["plain"]["MiB"]
            line += f" {row['MiB']:.0f} | {more:.3f} | {row['MiB_of_steps']:.0f} | {row['images_per_second']:.0f} |"
            line += f" {100 * row['peak']:.0f} % |"
        else:
            line += " | | | | |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["residual", "wide", "cells", "mobile"])
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of steps per row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="time the compiled network, too; takes minutes")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = {}
    for name in options.tasks:
        results[name] = measure(name, options.device, options.blocks, options.compile)
        speed = results[name]["matmul_multiply_adds_per_second"]
        print(f"\n{name}, {results[name]['precision']}, {TASKS[name]}, {speed / 1e9:.0f} G multiply-adds/s\n")
        print(table(results[name]["rows"]), flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    content = {"command": ["python", *sys.argv], "machine": machine, "results": results}
    Path("speed.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
