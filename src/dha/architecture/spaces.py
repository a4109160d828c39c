"""The spaces by name: how a search network is made, and how the plain network of a genotype is."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from dha.architecture.blocks import BlockGenotype, BlockNetwork, Choice, referred, searched, written
from dha.architecture.cells import CellNetwork, CellSearchNetwork, start_genotype
from dha.architecture.genotype import Genotype
from dha.architecture.mobile import MobileNetwork
from dha.architecture.residual import ResidualNetwork
from dha.errors import DhaError


class Size(NamedTuple):
    """Size of a network: ``width``, ``depth`` and ``resolution`` as in ``ArchitectureConfig``."""

    width: int
    depth: int
    resolution: int


SIZES = {"cells": Size(16, 5, 20), "residual": Size(16, 1, 40), "mobile": Size(32, 4, 224)}
"""What each space is built with when nothing else is said."""

HEAVY = ("cells", "mobile")
"""Spaces with a heavy start beside the light one."""


def search_network(
    space: str,
    channels_in: int,
    classes: int,
    image_size: int,
    size: Size,
    *,
    nodes: int = 4,
    choose: int = 1,
    start: Literal["light", "heavy", "random"] = "light",
    code_size: int = 7,
    penalty: float = 0.1,
    gradient: Literal["one_step", "implicit"] = "one_step",
    squeeze_excite: bool = False,
    seed: int = 0,
) -> CellNetwork | BlockNetwork:
    """Return the network of a space as it is when a search begins.

    Args:
        space: one of ``SIZES``.
        channels_in: channels of the images.
        classes: number of outputs.
        image_size: side of the images in pixels.
        size: of the network.
        nodes: nodes per cell.
        choose: candidates per block of the residual space; the other spaces have their own number.
        start: where the search begins: with what suits little time or more of it (the residual space has one start), or
            at random.
        code_size: length of the codes of a node of a cell.
        penalty: as in ``SparseCodes``.
        gradient: as in ``SparseCodes``.
        squeeze_excite: whether every layer of the mobile space reweights its channels.
        seed: of dictionaries and codes.

    Raises:
        DhaError: if there is no such space.
    """
    width, depth, resolution = size
    if space == "cells":
        return CellSearchNetwork(
            channels_in,
            classes,
            image_size,
            cells=depth,
            channels=width,
            resolution=resolution,
            nodes=nodes,
            start=start,
            code_size=code_size,
            penalty=penalty,
            gradient=gradient,
            seed=seed,
        )
    # A layer of a mobile network is one kernel and one expansion.
    choose = 1 if space == "mobile" else choose
    begins = "random" if start == "random" else "reference"
    choice = searched(choose=choose, start=begins, penalty=penalty, gradient=gradient, seed=seed)
    return _block_network(space, channels_in, classes, image_size, choice, size, squeeze_excite, start)


def start_network(
    space: str,
    channels_in: int,
    classes: int,
    image_size: int,
    size: Size,
    *,
    nodes: int = 4,
    choose: int = 1,
    start: Literal["light", "heavy"] = "light",
    squeeze_excite: bool = False,
) -> CellNetwork | BlockNetwork:
    """Return the plain network that a search begins with, with fresh weights; arguments as in ``search_network``.

    Raises:
        DhaError: if there is no such space.
    """
    if space == "cells":
        width, depth, resolution = size
        return CellNetwork(start_genotype(start, nodes, depth, width, resolution), channels_in, classes, image_size)
    choice = partial(referred, choose=1 if space == "mobile" else choose)
    return _block_network(space, channels_in, classes, image_size, choice, size, squeeze_excite, start)


def plain_network(
    data: Mapping[str, Any], channels_in: int, classes: int, image_size: int
) -> CellNetwork | BlockNetwork:
    """Return the network that a genotype describes, with fresh weights.

    Args:
        data: what ``to_dict`` of a genotype returned.
        channels_in: channels of the images.
        classes: number of outputs.
        image_size: side of the images in pixels.

    Raises:
        DhaError: if it is not a genotype of one of the spaces, or names other blocks than its network has.
    """
    space = str(data.get("space"))
    if space == "cells":
        return CellNetwork(Genotype.from_dict(data), channels_in, classes, image_size)
    genotype = BlockGenotype.from_dict(data)
    size = Size(genotype.width, genotype.depth, genotype.resolution)
    choice = written(genotype.blocks)
    network = _block_network(space, channels_in, classes, image_size, choice, size, genotype.squeeze_excite)
    if network.genotype != genotype:
        places = len(network.genotype.blocks)
        raise DhaError(f"genotype of {len(genotype.blocks)} blocks: expected {places}, with no candidate twice in one")
    return network


def _block_network(
    space: str,
    channels_in: int,
    classes: int,
    image_size: int,
    choice: Choice,
    size: Size,
    squeeze_excite: bool,
    start: str = "light",
) -> BlockNetwork:
    sizes: dict[str, Any] = size._asdict()
    if space == "residual":
        return ResidualNetwork(channels_in, classes, image_size, choice, **sizes)
    if space == "mobile":
        sizes |= {"squeeze_excite": squeeze_excite, "start": "light" if start == "random" else start}
        return MobileNetwork(channels_in, classes, image_size, choice, **sizes)
    raise DhaError(f"space {space!r}: this dha knows {', '.join(SIZES)}")
