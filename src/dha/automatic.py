"""What space, size and precision of a network follow from: images, budget, and how fast this machine trains.

The rule: of a ladder of residual networks that keep the limits on parameters and multiply-adds, the largest that
passes over the training images at least ``PASSES`` times within what is left of the budget. Rungs are timed for a few
steps of plain training, with images of full and of smallest size, until the largest is found, or the timing itself has
taken ``SHARE`` of the budget; those in between are left out that are fast enough even if time grows with the
multiply-adds. Learning makes steps slower, which is reckoned with. In the other spaces a search begins with the heavy
start where that leaves time for ``HEAVY_PASSES``, else with the light one; and in whatever space it may go to slower
architectures than it begins with, as long as ``SEARCHED_PASSES`` passes fit in. Where float32 and bfloat16 are both
open, what is timed is timed in both, and the faster one counts. The measurements behind it are in ``docs/results.md``
and ``docs/performance.md``.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from dha.architecture import SIZES, ResidualNetwork, Size, count, referred
from dha.config import Config, learned_parts, parse_budget
from dha.data import Preprocessing
from dha.engine import computes_in_bf16, precision_of
from dha.pace import Pace, seconds_of_size

LADDER = [(8, 1), (12, 1), (16, 1), (24, 1), (32, 1), (48, 1), (64, 1), (64, 2), (96, 2), (128, 2), (128, 3)]
"""Width and depth of residual networks, from small to large."""

PASSES = 45.0
"""Passes over the training images that a budget should hold."""

HEAVY_PASSES = 20.0
"""Passes that the heavy start of a space leaves time for where it is taken."""

SEARCHED_PASSES = 15.0
"""Passes that every architecture leaves time for that a search takes up, if any does."""

LEARNING = 1.25
"""Time of a step that learns everything, over that of a plain one with SGD, with a reserve."""

SHARE = 0.03
"""Of the budget, at most spent on timing after the first rung; one that has begun is finished."""

GAIN = 0.97
"""Share of the time of float32 below which bfloat16 is taken: what rounds less is kept where it costs nothing."""

HOPELESS = 1.5
"""How many times slower than the fastest a precision may be on one rung and still be timed on the next."""


def open_precisions(config: Config, fabric: Fabric) -> list[str]:
    """Return the precisions to choose from by measurement, or the only one there is.

    Without a budget there is one, whatever the times are, so that a run by epochs can be repeated; so there is where
    the hardware does not compute in bfloat16, and with a strategy that has its own precision.
    """
    measured = config.precision == "auto" and config.budget is not None and config.strategy in ("auto", "ddp")
    if measured and computes_in_bf16(fabric.device.type):
        return ["32", "bf16"]
    return [precision_of(fabric)]


def fastest(paces: Mapping[str, Pace]) -> str:
    """Return the precision with the shortest time of a step; float32 unless bfloat16 gains something.

    Args:
        paces: precision -> how fast it trains; at least one.
    """
    return min(paces, key=lambda precision: paces[precision].seconds * (GAIN if precision == "32" else 1.0))


def within_reach(paces: Mapping[str, Pace]) -> list[str]:
    """Return the precisions that may still be the fastest of a somewhat larger network.

    Args:
        paces: precision -> how fast it trains.
    """
    least = min(pace.seconds for pace in paces.values())
    return [precision for precision, pace in paces.items() if pace.seconds <= HOPELESS * least]


class Chosen(NamedTuple):
    """What network a run begins with.

    Attributes:
        space: of architectures.
        size: of the network.
        precisions: that are still open.
        resizing: whether the run begins on smaller images, if that was asked for or measured; else None.
    """

    space: str
    size: Size
    precisions: list[str]
    resizing: bool | None


def choose_size(
    config: Config,
    images: int,
    classes: int,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Sequence[str],
    spent: float = 0.0,
) -> Chosen:
    """Return the network that a run begins with; what the settings name is kept.

    Args:
        config: the settings, with budget or epochs decided.
        images: number of training images.
        classes: number of classes.
        preprocessing: channels and size of the images.
        fabric: the device.
        precisions: to choose from.
        spent: seconds of the budget that are over.
    """
    space = "residual" if config.space == "auto" else config.space
    settings = config.architecture
    width, depth, resolution = SIZES[space]
    still_open, resizing = list(precisions), config.progressive_resizing
    if space == "residual" and settings.width is None:
        ladder = LADDER
        if settings.depth is not None:
            ladder = sorted({(width, settings.depth) for width, _ in LADDER})
        sizes = {rung: Size(*rung, settings.resolution or resolution) for rung in ladder}

        @cache
        def costs(rung: tuple[int, int]) -> tuple[int, int]:
            return plain_costs(sizes[rung], classes, preprocessing)

        if config.max_parameters is not None or config.max_flops is not None:
            ladder = [rung for rung in ladder if keeps_limits(config, costs(rung))] or ladder[:1]
        if config.budget is None:
            width, depth = ([rung for rung in ladder if rung[0] <= width] or ladder)[-1]
        else:
            budget, began = parse_budget(config.budget), math.inf
            most = affordable(config, images, PASSES, spent)
            paces: dict[tuple[int, int], dict[str, Pace]] = {}

            def seconds_of(rung: tuple[int, int]) -> float | None:
                nonlocal still_open, began
                if time.monotonic() - began > SHARE * budget:
                    return None
                paces[rung] = seconds_of_size(sizes[rung], config, classes, preprocessing, fabric, still_open)
                still_open = within_reach(paces[rung])
                # With the first, a device and its libraries have made themselves ready.
                began = min(began, time.monotonic())
                return min(pace.seconds for pace in paces[rung].values())

            width, depth = largest(ladder, seconds_of, most, [costs(rung)[1] for rung in ladder])
            precision = fastest(paces[width, depth])
            still_open, resizing = [precision], paces[width, depth][precision].resizing
    given = settings.width, settings.depth, settings.resolution
    found = width, depth, resolution
    size = Size(*(b if a is None else a for a, b in zip(given, found, strict=True)))
    return Chosen(space, size, still_open, resizing)


def affordable(config: Config, images: int, passes: float, spent: float = 0.0) -> float:
    """Return how long a plain training step may take per image, in the mean over a run, in seconds, for some passes.

    Args:
        config: the settings, with a budget.
        images: number of training images.
        passes: over the training images, within what is left of the budget.
        spent: seconds of it that are over.
    """
    assert config.budget is not None
    factor = LEARNING if learned_parts(config.learn) else 1.0
    return max(0.0, parse_budget(config.budget) - spent) / (passes * images * factor)


def largest(
    ladder: Sequence[tuple[int, int]],
    seconds_of: Callable[[tuple[int, int]], float | None],
    most: float,
    costs: Sequence[float],
) -> tuple[int, int]:
    """Return the largest rung that was measured and takes at most ``most`` seconds per image; at least the first rung.

    Args:
        ladder: (width, depth) from small to large; larger ones take longer.
        seconds_of: a rung, or None when there is no time left to measure it.
        most: the limit.
        costs: of each rung; time is taken to grow with these at most, which says what need not be measured.
    """
    best, slow, reached, per_cost = -1, len(ladder), 0, math.inf
    while best + 1 < slow:
        seconds = seconds_of(ladder[reached])
        if seconds is None:
            break
        if seconds > most:
            slow = reached
        else:
            best, per_cost = reached, seconds / costs[reached]
        sure = [rung for rung in range(best + 1, slow) if costs[rung] * per_cost <= most]
        reached = max(sure, default=best + 1)
    return ladder[max(best, 0)]


def plain_costs(size: Size, classes: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the parameters and multiply-adds of the residual network that a search of a size starts from."""
    channels, side = preprocessing.channels, preprocessing.image_size
    with torch.device("meta"):
        network = ResidualNetwork(channels, classes, side, referred, **size._asdict())
    return count(network, (channels, side, side))


def keeps_limits(config: Config, costs: tuple[int, int]) -> bool:
    """Return whether a network keeps the limits of the settings.

    Args:
        config: the limits.
        costs: parameters and multiply-adds of the network.
    """
    limits = config.max_parameters, config.max_flops
    return all(limit is None or cost <= limit for cost, limit in zip(costs, limits, strict=True))
