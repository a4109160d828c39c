"""Different operations for the images of one batch, with as few calls and as little copying as possible."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dha.augmentation.operations import OPERATIONS, signed
from dha.augmentation.strength import magnitudes
from dha.engine import to_device


class _Table(NamedTuple):
    """The functions of some operations, and what they want to know of each operation.

    Attributes:
        functions: each one once, and how many numbers tell the operations that have it apart.
        places: of the function of every operation, int64 (K,).
        low, high, signed: range of the magnitude of every operation, (K,).
        kinds: the numbers that tell them apart, (K, the most there are), 0 beyond those that an operation has.
    """

    functions: list[tuple[Callable[..., None], int]]
    places: Tensor
    low: Tensor
    high: Tensor
    signed: Tensor
    kinds: Tensor


def apply_operations(names: Sequence[str], images: Tensor, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return each image after the operations that were chosen for it, one after the other.

    In each slot images are sorted by function, so that each runs once on a slice; in the end they are put back in
    order. Nothing waits for the device.

    Args:
        names: of operations.
        images: float32 (n, C, H, W) in [0, 1] on any device; not modified.
        choices: places of the operations among the names, int64 (n, slots), on the CPU.
        uniforms: what magnitudes and positions follow from, (n, slots, 3) in [0, 1), on the CPU.
    """
    table = _table(tuple(names))
    places = table.places[choices]
    magnitude = magnitudes(table.low[choices], table.high[choices], uniforms[..., 0], table.signed[choices])
    numbers = torch.cat([magnitude[..., None], uniforms[..., 1:], table.kinds[choices]], -1)
    where = torch.arange(len(images))  # each image lies now
    moves, ordered, counts = [], [], []
    for slot, order in enumerate(places.argsort(dim=0, stable=True).unbind(1)):
        moves.append(where[order])
        where = order.argsort()
        ordered.append(numbers[order, slot])
        counts.append(places[:, slot].bincount(minlength=len(table.functions)).tolist())
    *forward, back = to_device(torch.stack([*moves, where]), images.device)
    for move, part, sizes in zip(forward, to_device(torch.stack(ordered), images.device), counts, strict=True):
        moved = images.new_empty(images.shape)
        for (function, kinds), *group in zip(
            table.functions, moved.split(sizes), move.split(sizes), part.split(sizes), strict=True
        ):
            target, sources, arguments = group
            if len(sources):
                # Copied right before it is changed, and so while it is in the cache.
                torch.index_select(images, 0, sources, out=target)
                function(target, arguments[:, 0], arguments[:, 1:3], *arguments[:, 3 : 3 + kinds].unbind(1))
        images = moved
    return images.index_select(0, back)


@cache
def _table(names: tuple[str, ...]) -> _Table:
    operations = [OPERATIONS[name] for name in names]
    kinds = {operation.function: len(operation.kind) for operation in operations}
    functions = list(kinds)
    most = max(kinds.values())
    return _Table(
        functions=list(kinds.items()),
        places=torch.tensor([functions.index(operation.function) for operation in operations]),
        low=torch.tensor([operation.low for operation in operations]),
        high=torch.tensor([operation.high for operation in operations]),
        signed=signed(names),
        kinds=torch.tensor([operation.kind + (0.0,) * (most - len(operation.kind)) for operation in operations]),
    )
