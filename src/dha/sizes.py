"""The sizes that the networks of a space come in, and those of them that keep the limits of a run."""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from dha.architecture import SIZES, Limits, Size, count, search_network, start_network
from dha.config import ArchitectureConfig, Config
from dha.data import Preprocessing
from dha.errors import DhaError

LADDERS = {
    "residual": [
        *[(2, 1), (3, 1), (4, 1), (6, 1), (8, 1), (12, 1), (16, 1), (24, 1), (32, 1), (48, 1), (64, 1), (64, 2)],
        *[(96, 2), (128, 2), (128, 3)],
    ],
    "mobile": [(2, 1), (4, 1), (6, 1), (8, 1), (8, 2), (12, 2), (16, 2), (16, 3), (24, 3), (32, 4)],
    "cells": [(2, 1), (4, 1), (4, 2), (6, 3), (8, 3), (8, 5), (12, 5), (16, 5)],
}
"""Space -> width and depth of its networks, from small to large in parameters and in multiply-adds."""

NARROW = 8
"""Width below which a network is taken only if limits leave no other."""

SMALLEST_SIDE = 8
"""Side in pixels of the smallest images that are suggested."""


def space_of(config: Config) -> Literal["residual", "mobile", "cells"]:
    """Return the space of a run."""
    return "residual" if config.space == "auto" else config.space


def ladder(space: str, settings: ArchitectureConfig) -> list[Size]:
    """Return the sizes to choose from, from small to large; the width, depth and resolution that are set are kept.

    Args:
        space: one of ``SIZES``.
        settings: with a width, no network is deeper than the usual one of the space.
    """
    _, depth, resolution = SIZES[space]
    rungs = LADDERS[space]
    if settings.width is not None:
        rungs = {(settings.width, d) for _, d in rungs if d <= depth}
    if settings.depth is not None:
        rungs = {(width, settings.depth) for width, _ in rungs}
    return [Size(*rung, settings.resolution or resolution) for rung in sorted(rungs)]


def start_of(config: Config, size: Size, classes: int, preprocessing: Preprocessing, start: str = "light") -> nn.Module:
    """Return the plain network that a run of a size begins with, with fresh weights: the light one if "random"."""
    settings = config.architecture
    return start_network(
        space_of(config),
        preprocessing.channels,
        classes,
        preprocessing.image_size,
        size,
        nodes=settings.nodes,
        choose=settings.choose,
        start="heavy" if start == "heavy" else "light",
        squeeze_excite=settings.squeeze_excite,
    )


def start_costs(
    config: Config, size: Size, classes: int, preprocessing: Preprocessing, start: str = "light"
) -> tuple[int, int]:
    """Return the parameters of ``start_of``, and its multiply-adds per image."""
    with torch.device("meta"):
        network = start_of(config, size, classes, preprocessing, start)
    return count(network, (preprocessing.channels, preprocessing.image_size, preprocessing.image_size))


def start_keeps_limits(
    config: Config, size: Size, classes: int, preprocessing: Preprocessing, start: str = "light"
) -> bool:
    """Return whether ``start_of`` keeps the limits of the settings; nothing is counted if there are none."""
    limited = config.max_parameters is not None or config.max_flops is not None
    return not limited or _keeps_limits(config, start_costs(config, size, classes, preprocessing, start))


def possible_sizes(config: Config, classes: int, preprocessing: Preprocessing) -> list[Size]:
    """Return the sizes to choose from, from small to large: those of the ladder with a start that keeps the limits.

    If there are none, it is the smallest size, where a run begins with another architecture. Narrow networks are among
    them only if limits leave no other.

    Raises:
        DhaError: if no architecture of the smallest size keeps the limits.
    """
    sizes = ladder(space_of(config), config.architecture)
    # Parameters and multiply-adds both grow along the ladder.
    kept = bisect(sizes, False, key=lambda size: not start_keeps_limits(config, size, classes, preprocessing))
    if not kept:
        costs = fewest_costs(config, classes, preprocessing)
        if not _keeps_limits(config, costs):
            raise DhaError(_refusal(config, classes, preprocessing, *costs))
    sizes = sizes[: max(1, kept)]
    return [size for size in sizes if size.width >= NARROW] or sizes[-1:]


def fewest_costs(config: Config, classes: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the fewest parameters that a network of a run can have, and the fewest multiply-adds per image of those
    that keep ``max_parameters``, or else of those with the fewest parameters.
    """
    settings, channels, side = config.architecture, preprocessing.channels, preprocessing.image_size
    network = search_network(
        space_of(config),
        channels,
        classes,
        side,
        ladder(space_of(config), settings)[0],
        nodes=settings.nodes,
        choose=settings.choose,
        code_size=settings.code_size,
        squeeze_excite=settings.squeeze_excite,
    )
    return Limits(network, (channels, side, side)).fewest(config.max_parameters)


def _keeps_limits(config: Config, costs: tuple[int, int]) -> bool:
    limits = config.max_parameters, config.max_flops
    return all(limit is None or cost <= limit for cost, limit in zip(costs, limits, strict=True))


def _refusal(config: Config, classes: int, preprocessing: Preprocessing, parameters: int, flops: int) -> str:
    """Return a message with what the smallest network costs, and what would help."""
    space, side = space_of(config), preprocessing.image_size
    smallest = ladder(space, config.architecture)[0]
    limits, costs, raised = [], [], []
    if config.max_parameters is not None:
        limits.append(f"max_parameters={config.max_parameters}")
        if parameters > config.max_parameters:
            costs.append(f"has {parameters} parameters")
            raised.append(f"max_parameters={parameters}")
    if config.max_flops is not None:
        limits.append(f"max_flops={config.max_flops}")
        if flops > config.max_flops:
            costs.append(f"takes {flops} multiply-adds per image")
            raised.append(f"max_flops={flops}")
    remedies = [f"set {' and '.join(raised)} or more", *_other_remedies(config, classes, preprocessing)]
    return (
        f"{' and '.join(limits)}: the smallest network of space {space} (width {smallest.width}, depth "
        f"{smallest.depth}) for {classes} classes and images of {side} pixels {' and '.join(costs)}: "
        f"{', or '.join(remedies)}"
    )


def _other_remedies(config: Config, classes: int, preprocessing: Preprocessing) -> Iterator[str]:
    """Yield the other settings that leave a network within the limits."""

    def works(changed: Config, preprocessing: Preprocessing = preprocessing) -> bool:
        return _keeps_limits(changed, fewest_costs(changed, classes, preprocessing))

    settings, suffix = config.architecture, ""
    if named := [f"architecture.{name}" for name in ("width", "depth") if getattr(settings, name) is not None]:
        config = replace(config, architecture=replace(settings, width=None, depth=None))
        if works(config):
            yield f"leave {' and '.join(named)} out"
            return
        suffix = f" without {' and '.join(named)}"
    for space in SIZES:
        usable = not settings.squeeze_excite and not (space == "cells" and config.hyperparameters.drop_path)
        if usable and space != space_of(config) and works(replace(config, space=space)):
            yield f"space={space}{suffix}"
            break
    for side in (preprocessing.image_size // 2**halvings for halvings in range(1, 9)):
        if side >= SMALLEST_SIDE and works(config, replace(preprocessing, image_size=side)):
            yield f"image_size={side}{suffix}"
            break
