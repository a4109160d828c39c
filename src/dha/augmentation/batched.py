"""Different operations for the images of one batch, with as few calls as possible."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from dha.augmentation.operations import OPERATIONS
from dha.engine import to_device


def apply_operations(names: Sequence[str], images: Tensor, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return each image after the operations that were chosen for it, one after the other.

    In each slot images are sorted by operation, so that each function runs once on a slice; in the end they are put
    back in order. Nothing waits for the device.

    Args:
        names: of operations.
        images: float32 (n, C, H, W) in [0, 1] on any device; not modified.
        choices: places of the operations among the names, int64 (n, slots), on the CPU.
        uniforms: what magnitudes and positions follow from, (n, slots, 3) in [0, 1), on the CPU.
    """
    ranked, ranks = _ranking(tuple(names))
    orders = ranks[choices].argsort(dim=0, stable=True).unbind(1)
    where = torch.arange(len(images))  # each image lies now
    moves, sizes, ordered = [], [], []
    for slot, order in enumerate(orders):
        moves.append(where[order])
        where = order.argsort()
        sizes.append(ranks[choices[:, slot]].bincount(minlength=len(ranked)).tolist())
        ordered.append(uniforms[order, slot])
    *forward, back = to_device(torch.stack([*moves, where]), images.device)
    parameters = to_device(torch.stack(ordered), images.device)
    for move, part, counts in zip(forward, parameters, sizes, strict=True):
        images = _apply_sorted(ranked, images.index_select(0, move), part, counts)
    return images.index_select(0, back)


def _apply_sorted(names: Sequence[str], images: Tensor, uniforms: Tensor, counts: Sequence[int]) -> Tensor:
    """Apply the first operation to the first images, as many as its count says, the next one to the next, and so on."""
    used = [(OPERATIONS[name], part) for name, part in zip(names, uniforms.split(counts), strict=True) if len(part)]
    size = images.shape[-2], images.shape[-1]
    results = []
    for function, members in groupby(used, lambda pair: pair[0].function):
        plans = [operation.planned(part, size) for operation, part in members]
        arguments = [torch.cat(list(values)) for values in zip(*plans, strict=True)]
        group, images = images.split([len(arguments[0]), len(images) - len(arguments[0])])
        results.append(function(group, *arguments))
    return torch.cat(results)


@cache
def _ranking(names: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """Return the names in an order in which those with one function follow each other, and the rank of each."""
    functions = [OPERATIONS[name].function for name in names]
    ranking = sorted(range(len(names)), key=lambda place: functions.index(functions[place]))
    return [names[place] for place in ranking], torch.tensor(ranking).argsort()
