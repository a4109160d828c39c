"""What space, size and precision of a network follow from: images, budget, and how fast this machine trains.

The rule: of a ladder of residual networks that keep the limits on parameters and multiply-adds, the largest that passes
over the training images at least ``PASSES`` times within the budget. Each rung is timed for a few steps of plain
training at full size, until one is too slow or the timing itself has taken ``SHARE`` of the budget; learning makes
steps slower and smaller images make them faster, both reckoned with. A search, in whatever space, may go to slower
architectures than it begins with, as long as ``SEARCHED_PASSES`` passes fit in. Where float32 and bfloat16 are both
open, a rung is timed in both, and the faster one counts. The measurements behind it are in ``docs/results.md`` and
``docs/performance.md``.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import (
    SIZES,
    ResidualNetwork,
    Size,
    candidate_seconds,
    count,
    layout,
    referred,
    search_network,
    sparse_codes,
)
from dha.config import Config, learned_parts, parse_budget
from dha.data import Preprocessing
from dha.engine import computes_in_bf16, precision_of
from dha.resizing import gain

LADDER = [(8, 1), (12, 1), (16, 1), (24, 1), (32, 1), (48, 1), (64, 1), (64, 2), (96, 2), (128, 2), (128, 3)]
"""Width and depth of residual networks, from small to large."""

PASSES = 30.0
"""Passes over the training images that a budget should hold."""

SEARCHED_PASSES = 15.0
"""Passes that every architecture leaves time for that a search takes up, if any does."""

LEARNING = 1.25
"""Time of a step that learns everything, over that of a plain one."""

TIMED = 32
"""Images that candidates are timed on."""

SHARE = 0.03
"""Of the budget, at most spent on timing; a rung that has begun is finished."""

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


def fastest(seconds: Mapping[str, float]) -> str:
    """Return the precision with the shortest time of a step; float32 unless bfloat16 gains something.

    Args:
        seconds: precision -> time of a step; at least one.
    """
    return min(seconds, key=lambda precision: seconds[precision] * (GAIN if precision == "32" else 1.0))


def within_reach(seconds: Mapping[str, float]) -> list[str]:
    """Return the precisions that may still be the fastest of a somewhat larger network.

    Args:
        seconds: precision -> time of a step.
    """
    return [precision for precision, taken in seconds.items() if taken <= HOPELESS * min(seconds.values())]


def choose_size(
    config: Config,
    images: int,
    classes: int,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Sequence[str],
) -> tuple[str, Size, list[str]]:
    """Return the space and the size of the network, and the precisions that are still open; what the settings name is
    kept.

    Args:
        config: the settings, with budget or epochs decided.
        images: number of training images.
        classes: number of classes.
        preprocessing: channels and size of the images.
        fabric: the device.
        precisions: to choose from.
    """
    space = "residual" if config.space == "auto" else config.space
    settings = config.architecture
    width, depth, resolution = SIZES[space]
    still_open = list(precisions)
    if space == "residual" and settings.width is None:
        ladder = LADDER
        if settings.depth is not None:
            ladder = sorted({(width, settings.depth) for width, _ in LADDER})
        sizes = {rung: Size(*rung, settings.resolution or resolution) for rung in ladder}
        ladder = [rung for rung in ladder if keeps_limits(config, sizes[rung], classes, preprocessing)] or ladder[:1]
        if config.budget is None:
            width, depth = ([rung for rung in ladder if rung[0] <= width] or ladder)[-1]
        else:
            budget, began = parse_budget(config.budget), time.monotonic()
            most = affordable(config, images, preprocessing.image_size, PASSES)
            times: dict[tuple[int, int], dict[str, float]] = {}

            def seconds_of(rung: tuple[int, int]) -> float | None:
                nonlocal still_open
                if time.monotonic() - began > SHARE * budget:
                    return None
                times[rung] = seconds_of_size(sizes[rung], config, classes, preprocessing, fabric, still_open)
                still_open = within_reach(times[rung])
                return min(times[rung].values())

            width, depth = largest(ladder, seconds_of, most)
            still_open = [fastest(times[width, depth])]
    given = settings.width, settings.depth, settings.resolution
    chosen = (width, depth, resolution)
    return space, Size(*(b if a is None else a for a, b in zip(given, chosen, strict=True))), still_open


def affordable(config: Config, images: int, side: int, passes: float) -> float:
    """Return how long a plain training step may take per image at full size, in seconds, for a number of passes.

    Args:
        config: the settings, with a budget.
        images: number of training images.
        side: of the images, in pixels.
        passes: over the training images, within the budget.
    """
    assert config.budget is not None
    factor = LEARNING if learned_parts(config.learn) else 1.0
    if config.progressive_resizing:
        factor /= gain(side)
    return parse_budget(config.budget) / (passes * images * factor)


def affordable_choices(
    network: nn.Module, config: Config, images: int, preprocessing: Preprocessing, fabric: Fabric
) -> tuple[tuple[list[Tensor], float], float]:
    """Return how long a training step of a search network takes with each candidate and without any, per image, and how
    long it may take for ``SEARCHED_PASSES`` passes.

    A candidate is taken to have the same share in a step as in its forward pass.

    Args:
        network: a search network; moved to the device, the statistics of its BatchNorm layers do not stay as they are.
        config: the settings, with a budget and a precision.
        images: number of training images.
        preprocessing: channels and size of the images.
        fabric: the device.
    """
    side, count = preprocessing.image_size, min(TIMED, config.images_per_step())
    step = seconds_per_image(network, config, preprocessing, fabric, [config.precision])[config.precision]
    inputs = torch.randn(count, preprocessing.channels, side, side, device=fabric.device)
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        forward, rest = candidate_seconds(network, inputs.contiguous(memory_format=layout(network)))
    chosen = sum(float(s.gather(1, c.chosen.cpu()).sum()) for s, c in zip(forward, sparse_codes(network), strict=True))
    scale = step / (rest + chosen)
    return ([scale * seconds for seconds in forward], scale * rest), affordable(config, images, side, SEARCHED_PASSES)


def largest(
    ladder: list[tuple[int, int]], seconds_of: Callable[[tuple[int, int]], float | None], most: float
) -> tuple[int, int]:
    """Return the last rung before the first that takes more than ``most`` seconds per image; at least the first rung.

    Args:
        ladder: (width, depth) from small to large.
        seconds_of: a rung, or None when there is no time left to measure it.
        most: the limit.
    """
    best = ladder[0]
    for rung in ladder:
        seconds = seconds_of(rung)
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


def seconds_of_size(
    size: Size, config: Config, classes: int, preprocessing: Preprocessing, fabric: Fabric, precisions: Iterable[str]
) -> dict[str, float]:
    """Return ``seconds_per_image`` of the residual network of a size that a search starts from."""
    with torch.random.fork_rng(devices=[]):
        network = search_network("residual", preprocessing.channels, classes, preprocessing.image_size, size)
    return seconds_per_image(network, config, preprocessing, fabric, precisions)


def seconds_per_image(
    network: nn.Module,
    config: Config,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Iterable[str],
    most: float = math.inf,
    steps: int = 2,
) -> dict[str, float]:
    """Return how long a plain training step takes in each precision, per image: the fastest of a few.

    Args:
        network: moved to the device; its weights stay as they are, the statistics of its BatchNorm layers do not.
        config: the batch size.
        preprocessing: channels and size of the images.
        fabric: the device.
        precisions: "32", "bf16" or both.
        most: seconds after which no further round of steps is begun.
        steps: how many are timed in each precision, taking turns, after one that counts only if there is no other.
    """
    side, size, device = preprocessing.image_size, config.images_per_step(), fabric.device
    network.to(device, memory_format=layout(network)).train()  # pyright: ignore[reportCallIssue]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, fused=True)
    images = torch.randn(size, preprocessing.channels, side, side, device=device)
    images = images.contiguous(memory_format=layout(network))
    labels = torch.zeros(size, dtype=torch.long, device=device)
    times: dict[str, list[float]] = {precision: [] for precision in precisions}
    first = time.monotonic()
    for _ in range(steps + 1):
        for precision, taken in times.items():
            began = time.monotonic()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            taken.append(time.monotonic() - began)
        if time.monotonic() - first > most:
            break
    return {precision: min(taken[1:] or taken) / size for precision, taken in times.items()}
