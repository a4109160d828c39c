"""Different operations for the images of one batch, with as few calls and as little copying as possible."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from dha.augmentation.intensity import identity
from dha.augmentation.operations import OPERATIONS, signed
from dha.augmentation.strength import magnitudes
from dha.engine import Graphs, side_by_side, to_device

SMALL = 2**22
"""Values in a batch up to which a GPU runs every function on all images faster than it is told what each one wants."""


class _Table(NamedTuple):
    """The functions of some operations, and what they want to know of each operation.

    Attributes:
        functions: each one once, and how many numbers tell the operations that have it apart.
        places: of the function of every operation, int64 (K,).
        idle: whether an operation leaves images alone, bool (K,).
        low, high, signed: range of the magnitude of every operation, (K,).
        kinds: the numbers that tell them apart, (K, the most there are), 0 beyond those that an operation has.
    """

    functions: list[tuple[Callable[..., None], int]]
    places: Tensor
    idle: Tensor
    low: Tensor
    high: Tensor
    signed: Tensor
    kinds: Tensor


def apply_operations(names: Sequence[str], images: Tensor, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return each image after the operations that were chosen for it, one after the other.

    In each slot images are sorted by function, so that each runs once on a slice; in the end they are put back in
    order. Small batches on a CUDA device instead go through every function whole, which is always the same work, and so
    one launch. Slots in which no image is changed cost nothing. Nothing waits for the device.

    Args:
        names: of operations.
        images: float32 (n, C, H, W) in [0, 1] on any device; not modified.
        choices: places of the operations among the names, int64 (n, slots), on the CPU.
        uniforms: what magnitudes and positions follow from, (n, slots, 3) in [0, 1), on the CPU.
    """
    table = _table(tuple(names))
    busy = ~table.idle[choices].all(0)
    if not busy.any():
        return images.clone()
    choices, uniforms = choices[:, busy], uniforms[:, busy]
    places, numbers = table.places[choices], _numbers(table, choices, uniforms)
    if images.numel() <= SMALL and images.is_cuda and images.device.index == torch.cuda.current_device():
        arguments = [to_device(part, images.device) for part in spread(places, numbers, len(table.functions))]
        (changed,) = _graphs()(through_all(tuple(names)), images.contiguous(), *arguments)
        assert changed is not None
        return changed.clone()
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


def _numbers(table: _Table, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return what functions are told of each image, (n, slots, numbers): magnitude, position, and what tells kinds
    apart.
    """
    magnitude = magnitudes(table.low[choices], table.high[choices], uniforms[..., 0], table.signed[choices])
    return torch.cat([magnitude[..., None], uniforms[..., 1:], table.kinds[choices]], -1)


def spread(places: Tensor, numbers: Tensor, functions: int) -> tuple[Tensor, Tensor]:
    """Return what each function is told of each image, (slots, functions, n, numbers), 0 where the image is not meant;
    and where the images that are meant lie among those of all functions, one after the other, int64 (slots, n).

    Args:
        places: of the function of each image, int64 (n, slots).
        numbers: that it is told, (n, slots, numbers).
        functions: their number.
    """
    meant = (places.T[:, None] == torch.arange(functions)[:, None])[..., None]
    return numbers.transpose(0, 1)[:, None] * meant, places.T * len(places) + torch.arange(len(places))


@cache
def through_all(names: tuple[str, ...]) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """Return a function of images (n, C, H, W), contiguous, and of what ``spread`` returned: it lets every function of
    some operations change a copy of all images, and keeps what is meant.
    """
    table = _table(names)

    def apply(images: Tensor, told: Tensor, meant: Tensor) -> list[Tensor]:
        for slot, rows in zip(told, meant, strict=True):
            copies = images.repeat(len(slot), 1, 1, 1, 1)
            calls = [
                partial(function, copy, numbers[:, 0], numbers[:, 1:3], *numbers[:, 3 : 3 + kinds].unbind(1))
                for (function, kinds), copy, numbers in zip(table.functions, copies, slot, strict=True)
            ]
            side_by_side(calls, images.device)
            images = copies.flatten(0, 1).index_select(0, rows)
        return [images]

    return apply


@cache
def _graphs() -> Graphs:
    return Graphs(possible=True)


@cache
def _table(names: tuple[str, ...]) -> _Table:
    operations = [OPERATIONS[name] for name in names]
    kinds = {operation.function: len(operation.kind) for operation in operations}
    functions = list(kinds)
    most = max(kinds.values())
    return _Table(
        functions=list(kinds.items()),
        places=torch.tensor([functions.index(operation.function) for operation in operations]),
        idle=torch.tensor([operation.function is identity for operation in operations]),
        low=torch.tensor([operation.low for operation in operations]),
        high=torch.tensor([operation.high for operation in operations]),
        signed=signed(names),
        kinds=torch.tensor([operation.kind + (0.0,) * (most - len(operation.kind)) for operation in operations]),
    )
