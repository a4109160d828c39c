"""Different operations for the images of one batch, with as few calls and as little copying as possible."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from dha.augmentation.intensity import identity
from dha.augmentation.operations import OPERATIONS, Operation
from dha.augmentation.strength import magnitudes
from dha.engine import Graphs, side_by_side, to_device

SMALL = 2**22
"""Values in a batch up to which a GPU runs every function on more images than are meant for it, faster than it is told
how many these are."""

SHARES = (4, 2, 1)
"""One in so many of all images is what every function may be given on a GPU."""

KEPT = 16
"""Lists of operations of which is kept what applying them takes."""


class _Table(NamedTuple):
    """The functions of some operations, and what they want to know of each operation.

    Attributes:
        functions: each one once, and how many numbers tell the operations that have it apart; the identity last.
        places: of the function of every operation, int64 (K,).
        idle: whether an operation leaves images alone, bool (K,).
        numbers: of every operation the ends of the range of its magnitude, 1 if that is signed, and what tells kinds
            apart, 0 beyond what an operation has: float32 (K, 3 + the most there are).
    """

    functions: list[tuple[Callable[..., None], int]]
    places: Tensor
    idle: Tensor
    numbers: Tensor

    def acting(self) -> int:
        """Return how many of the functions change images."""
        return len(self.functions) - int(self.idle.any())


def apply_operations(names: Sequence[str], images: Tensor, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return each image, float32 in [0, 1], after the operations that were chosen for it, one after the other.

    In each slot images are sorted by function, so that each runs once on a slice; in the end they are put back in
    order. With small batches on a CUDA device every function instead runs on equally many images, be they meant for it
    or not, which is always the same work, and so one launch. Slots in which no image is changed cost nothing. Nothing
    waits for the device.

    Args:
        names: of operations.
        images: uint8 (n, C, H, W), or float32 in [0, 1], on any device; not modified.
        choices: places of the operations among the names, int64 (n, slots), on the CPU.
        uniforms: what magnitudes and positions follow from, (n, slots, 3) in [0, 1), on the CPU.
    """
    # By what the names stand for now: an operation may have been replaced since the last call.
    operations = tuple(OPERATIONS[name] for name in names)
    table = _table(operations)
    idle = table.idle[choices].all(0)
    if idle.all():
        return images / 255 if images.dtype == torch.uint8 else images.clone()
    if idle.any():
        choices, uniforms = choices[:, ~idle], uniforms[:, ~idle]
    places, numbers = table.places[choices], _numbers(table, choices, uniforms)
    if images.numel() <= SMALL and images.is_cuda and images.device.index == torch.cuda.current_device():
        arguments = [to_device(part, images.device) for part in spread(places, numbers, table.acting())]
        values = images / 255 if images.dtype == torch.uint8 else images
        (changed,) = _recorded.graphs[images.device](all_alike(operations), values.contiguous(), *arguments)
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
        moved = images.new_empty(images.shape, dtype=torch.float32)
        for (function, kinds), *group in zip(
            table.functions, moved.split(sizes), move.split(sizes), part.split(sizes), strict=True
        ):
            target, sources, arguments = group
            if len(sources):
                # Copied right before it is changed, and so while it is in the cache.
                if images.dtype == torch.uint8:
                    torch.div(images.index_select(0, sources), 255, out=target)
                else:
                    torch.index_select(images, 0, sources, out=target)
                function(target, arguments[:, 0], arguments[:, 1:3], *arguments[:, 3 : 3 + kinds].unbind(1))
        images = moved
    return images.index_select(0, back)


def _numbers(table: _Table, choices: Tensor, uniforms: Tensor) -> Tensor:
    """Return what functions are told of each image, (n, slots, numbers): magnitude, position, and what tells kinds
    apart.
    """
    low, high, both, kinds = table.numbers[choices].split([1, 1, 1, table.numbers.shape[-1] - 3], -1)
    return torch.cat([magnitudes(low, high, uniforms[..., :1], both.bool()), uniforms[..., 1:], kinds], -1)


def spread(places: Tensor, numbers: Tensor, acting: int) -> tuple[Tensor, Tensor]:
    """Return what a GPU is told that gives every function equally many images: as few of ``SHARES`` as are enough.

    Args:
        places: of the function of each image, int64 (n, slots); from ``acting`` on it changes nothing.
        numbers: that it is told, (n, slots, numbers).
        acting: the number of functions that change images.

    Returns:
        What each function is told of each of its m images, (slots, acting, m, numbers), 0 where it has fewer; and which
        images those are, one function after the other, followed by where each image lies afterwards: int64 (slots,
        acting m + n), in the latter counted from n on, with the untouched images before.
    """
    functions, images = places.T, torch.arange(len(places))
    mine = functions[:, None] == torch.arange(acting)[:, None]
    most = int(mine.sum(-1).max())
    size = next(size for size in (-(-len(places) // share) for share in SHARES) if size >= most)
    # The images of a function are numbered; those of none share a last place, which is left out.
    rank = mine.cumsum(-1).sub_(1).gather(1, functions.clamp_max(acting - 1)[:, None])[:, 0]
    idle = functions >= acting
    at = torch.where(idle, acting * size, functions * size + rank)
    taken = torch.zeros(len(at), acting * size + 1, dtype=torch.long).scatter_(1, at, images.expand_as(at))
    told = numbers.new_zeros(len(at), acting * size + 1, numbers.shape[-1])
    told.scatter_(1, at[..., None].expand(*at.shape, numbers.shape[-1]), numbers.transpose(0, 1))
    rows = torch.where(idle, images, len(places) + at)
    return told[:, :-1].unflatten(1, (acting, size)), torch.cat([taken[:, :-1], rows], 1)


@lru_cache(KEPT)
def all_alike(operations: tuple[Operation, ...]) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """Return a function of images (n, C, H, W), contiguous, and of what ``spread`` returned: it lets every function of
    some operations change copies of its images.
    """
    table = _table(operations)

    def apply(images: Tensor, told: Tensor, which: Tensor) -> list[Tensor]:
        untouched = torch.arange(len(images), device=images.device)
        for slot, index in zip(told, which, strict=True):
            taken, rows = index.split([index.numel() - len(images), len(images)])
            copies = images.index_select(0, torch.cat([untouched, taken]))
            parts = copies[len(images) :].split(slot.shape[1])
            calls = [
                partial(function, part, numbers[:, 0], numbers[:, 1:3], *numbers[:, 3 : 3 + kinds].unbind(1))
                for (function, kinds), part, numbers in zip(table.functions, parts, slot, strict=False)
            ]
            side_by_side(calls, images.device)
            images = copies.index_select(0, rows)
        return [images]

    return apply


class _Recorded(threading.local):
    """The recordings of one thread, for each device: what a recording returns is overwritten by the next replay."""

    def __init__(self) -> None:
        self.graphs: dict[torch.device, Graphs] = defaultdict(lambda: Graphs(possible=True))


_recorded = _Recorded()


@lru_cache(KEPT)
def _table(operations: tuple[Operation, ...]) -> _Table:
    kinds = {operation.function: len(operation.kind) for operation in operations}
    functions = sorted(kinds, key=lambda function: function is identity)
    most = max(kinds.values())
    return _Table(
        functions=[(function, kinds[function]) for function in functions],
        places=torch.tensor([functions.index(operation.function) for operation in operations]),
        idle=torch.tensor([operation.function is identity for operation in operations]),
        numbers=torch.tensor([(o.low, o.high, o.signed, *o.kind, *(0.0,) * (most - len(o.kind))) for o in operations]),
    )
