"""What space, size and precision of a network follow from: images, budget, and how fast this machine trains.

The rule: of a ladder of residual networks that keep the limits on parameters and multiply-adds, the largest that
passes over the training images at least ``PASSES`` times within what is left of the budget. Rungs are timed for a few
steps of plain training, with images of full and of smallest size, until the largest is found, or the timing itself has
taken ``SHARE`` of the budget; those in between are left out that are fast enough even if time grows with the
multiply-adds. Learning makes steps slower, which is reckoned with. In the other spaces a network has its usual size, or
the largest that keeps the limits, and a smaller one only where the light start leaves no time for ``SEARCHED_PASSES``;
a search begins with the heavy start where that leaves time for ``HEAVY_PASSES``, else with the light one. In whatever
space it may go to slower architectures than it begins with, as long as ``SEARCHED_PASSES`` passes fit in. Where float32
and bfloat16 are both open, what is timed is timed in both, and the faster one counts. The measurements behind it are in
``docs/results.md`` and ``docs/performance.md``.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from lightning_fabric import Fabric

from dha.architecture import HEAVY, SIZES, Size
from dha.config import Config, learned_parts, parse_budget
from dha.data import Preprocessing
from dha.engine import computes_in_bf16, precision_of
from dha.pace import Pace, seconds_of_size
from dha.sizes import possible_sizes, space_of, start_costs, start_keeps_limits

Rung = TypeVar("Rung")

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
        start: where a search begins: "light", "heavy" or "random".
    """

    space: str
    size: Size
    precisions: list[str]
    resizing: bool | None
    start: str


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

    Raises:
        DhaError: if no network of the space keeps the limits.
    """
    space, named = space_of(config), config.architecture.start
    sizes = possible_sizes(config, classes, preprocessing)
    size, start = sizes[-1], "light" if named == "reference" else named
    chosen = Chosen(space, size, list(precisions), config.progressive_resizing, start)
    if config.budget is None:
        usual = [size for size in sizes if size.width <= SIZES[space].width]
        return chosen._replace(size=(usual or sizes)[-1])
    share = SHARE * parse_budget(config.budget)

    def paces_of(size: Size, precisions: Sequence[str], start: str, most: float = math.inf) -> dict[str, Pace]:
        return seconds_of_size(size, config, classes, preprocessing, fabric, precisions, start, most)

    def most_seconds(passes: float) -> float:
        return affordable(config, images, passes, spent)

    def flops(size: Size, start: str) -> int:
        return start_costs(config, size, classes, preprocessing, start)[1]

    trials: list[tuple[str, float]] = []
    if space in HEAVY:
        # The largest size comes first: a smaller one is taken only if that one is known to be too slow.
        if named == "reference" and start_keeps_limits(config, size, classes, preprocessing, "heavy"):
            trials.append(("heavy", HEAVY_PASSES))
        if len(sizes) > 1:
            trials.append((start, SEARCHED_PASSES))
    paces, per_flop = dict[str, Pace](), 0.0
    for trial, passes in trials:
        if per_flop and per_flop * flops(size, trial) > most_seconds(passes):
            continue
        paces = paces_of(size, precisions, trial, share)
        seconds = paces[fastest(paces)].seconds
        if seconds <= most_seconds(passes):
            start = trial
            break
        # Networks that do less take about as long per multiply-add, or longer; half of it is taken to be the least.
        per_flop = seconds / flops(size, trial) / 2
    else:
        if len(sizes) > 1:
            smaller, passes = (sizes[:-1], SEARCHED_PASSES) if space in HEAVY else (sizes, PASSES)
            costs, most = [flops(size, start) for size in smaller], most_seconds(passes)
            possible = max(1, sum(per_flop * cost <= most for cost in costs))
            rungs = smaller[:possible], partial(paces_of, start=start), precisions, most, share, costs[:possible]
            size, paces = climb(*rungs)
    if not paces:
        return chosen
    precision = fastest(paces)
    return Chosen(space, size, [precision], paces[precision].resizing, start)


def climb(
    sizes: Sequence[Size],
    paces_of: Callable[[Size, Sequence[str]], dict[str, Pace]],
    precisions: Sequence[str],
    most: float,
    share: float,
    costs: Sequence[float],
) -> tuple[Size, dict[str, Pace]]:
    """Return the largest size that takes at most ``most`` seconds per image, or else the first, and how fast it is.

    Args:
        sizes: from small to large; larger ones take longer.
        paces_of: how fast a size is in each of some precisions.
        precisions: to choose from.
        most: the limit.
        share: seconds that may be spent on timing after the first size.
        costs: as in ``largest``.
    """
    paces, began = dict[Size, dict[str, Pace]](), math.inf

    def seconds_of(size: Size) -> float | None:
        nonlocal precisions, began
        if time.monotonic() - began > share:
            return None
        paces[size] = paces_of(size, precisions)
        precisions = within_reach(paces[size])
        # With the first, a device and its libraries have made themselves ready.
        began = min(began, time.monotonic())
        return min(pace.seconds for pace in paces[size].values())

    size = largest(sizes, seconds_of, most, costs)
    return size, paces[size]


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
    ladder: Sequence[Rung], seconds_of: Callable[[Rung], float | None], most: float, costs: Sequence[float]
) -> Rung:
    """Return the largest rung that was measured and takes at most ``most`` seconds per image; at least the first rung.

    Args:
        ladder: sizes from small to large; larger ones take longer.
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
