"""What the space and the size of a network follow from: images, budget, and how fast this machine trains.

The rule: of a ladder of residual networks that keep the limits on parameters and multiply-adds, the largest that passes
over the training images at least ``PASSES`` times within the budget. Each rung is timed for a few steps of plain
training at full size, until one is too slow or the timing itself has taken ``SHARE`` of the budget; learning makes
steps slower and smaller images make them faster, both reckoned with. The measurements behind it are in
``docs/results.md``.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from dha.architecture import SIZES, ResidualNetwork, Size, count, referred, search_network
from dha.config import Config, learned_parts, parse_budget
from dha.data import Preprocessing
from dha.resizing import gain

LADDER = [(8, 1), (12, 1), (16, 1), (24, 1), (32, 1), (48, 1), (64, 1), (64, 2), (96, 2), (128, 2), (128, 3)]
"""Width and depth of residual networks, from small to large."""

PASSES = 30.0
"""Passes over the training images that a budget should hold."""

LEARNING = 1.25
"""Time of a step that learns everything, over that of a plain one."""

SHARE = 0.03
"""Of the budget, at most spent on timing; a rung that has begun is finished."""


def choose_size(
    config: Config, images: int, classes: int, preprocessing: Preprocessing, fabric: Fabric
) -> tuple[str, Size]:
    """Return the space and the size of the network; what the settings name is kept.

    Args:
        config: the settings, with budget or epochs decided.
        images: number of training images.
        classes: number of classes.
        preprocessing: channels and size of the images.
        fabric: device and precision.
    """
    space = "residual" if config.space == "auto" else config.space
    settings = config.architecture
    width, depth, resolution = SIZES[space]
    if space == "residual" and settings.width is None:
        factor = LEARNING if learned_parts(config.learn) else 1.0
        if config.progressive_resizing:
            factor /= gain(preprocessing.image_size)
        ladder = LADDER
        if settings.depth is not None:
            ladder = sorted({(width, settings.depth) for width, _ in LADDER})
        sizes = {rung: Size(*rung, settings.resolution or resolution) for rung in ladder}
        ladder = [rung for rung in ladder if keeps_limits(config, sizes[rung], classes, preprocessing)] or ladder[:1]
        began = time.monotonic()

        def seconds_per_pass(rung: tuple[int, int], budget: float) -> float | None:
            if time.monotonic() - began > SHARE * budget:
                return None
            return factor * images * seconds_per_image(config, sizes[rung], classes, preprocessing, fabric)

        if config.budget is None:
            width, depth = ([rung for rung in ladder if rung[0] <= width] or ladder)[-1]
        else:
            budget = parse_budget(config.budget)
            width, depth = largest(ladder, partial(seconds_per_pass, budget=budget), budget / PASSES)
    given = settings.width, settings.depth, settings.resolution
    chosen = (width, depth, resolution)
    return space, Size(*(b if a is None else a for a, b in zip(given, chosen, strict=True)))


def largest(
    ladder: list[tuple[int, int]], seconds_per_pass: Callable[[tuple[int, int]], float | None], most: float
) -> tuple[int, int]:
    """Return the last rung before the first that takes more than ``most`` seconds per pass; at least the first rung.

    Args:
        ladder: (width, depth) from small to large.
        seconds_per_pass: of a rung, or None when there is no time left to measure it.
        most: the limit.
    """
    best = ladder[0]
    for rung in ladder:
        seconds = seconds_per_pass(rung)
        if seconds is None or seconds > most:
            break
        best = rung
    return best


def keeps_limits(config: Config, size: Size, classes: int, preprocessing: Preprocessing) -> bool:
    """Return whether the residual network that a search starts from keeps the limits of the settings.

    Args:
        config: the limits.
        size: of the network.
        classes: number of outputs.
        preprocessing: channels and size of the images.
    """
    if config.max_parameters is None and config.max_flops is None:
        return True
    channels, side = preprocessing.channels, preprocessing.image_size
    with torch.device("meta"):
        network = ResidualNetwork(channels, classes, side, referred, **size._asdict())
    limits = config.max_parameters, config.max_flops
    costs = zip(count(network, (channels, side, side)), limits, strict=True)
    return all(limit is None or cost <= limit for cost, limit in costs)


def seconds_per_image(
    config: Config, size: Size, classes: int, preprocessing: Preprocessing, fabric: Fabric, steps: int = 2
) -> float:
    """Return how long a plain training step of a residual network takes, per image: the fastest of a few.

    Args:
        config: batch size and precision.
        size: of the network.
        classes: number of outputs.
        preprocessing: channels and size of the images.
        fabric: device and precision.
        steps: how many are timed, after one that is not.
    """
    side = preprocessing.image_size
    with torch.random.fork_rng(devices=[]):
        network = search_network("residual", preprocessing.channels, classes, side, size)
        network.to(fabric.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, fused=True)
    images = torch.randn(config.images_per_step(), preprocessing.channels, side, side, device=fabric.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(config.images_per_step(), dtype=torch.long, device=fabric.device)
    times = []
    for _ in range(steps + 1):
        began = time.monotonic()
        with fabric.autocast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        times.append(time.monotonic() - began)
    return min(times[1:]) / config.images_per_step()
