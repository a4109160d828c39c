"""Different operations for the images of one batch, with as few calls as possible."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from dha.augmentation.operations import OPERATIONS
from dha.engine import to_device


def apply_operations(names: Sequence[str], images: Tensor, choice: Tensor, uniforms: Tensor) -> Tensor:
    """Return each image after the operation that was chosen for it.

    Images are sorted by operation, so that each function runs once on a slice, and put back in order. Nothing waits for
    the device.

    Args:
        names: of operations.
        images: float32 (n, C, H, W) in [0, 1] on any device; not modified.
        choice: place of the operation among the names, int64 (n,), on the CPU.
        uniforms: what magnitudes and positions follow from, (n, 3) in [0, 1), on the CPU.
    """
    ranked, ranks = _ranking(tuple(names))
    choice = ranks[choice]
    order = choice.argsort(stable=True)
    counts = choice.bincount(minlength=len(ranked)).tolist()
    forward, back = to_device(torch.stack([order, order.argsort()]), images.device)
    parameters = to_device(uniforms[order], images.device).split(counts)
    used = [(OPERATIONS[name], part) for name, part in zip(ranked, parameters, strict=True) if len(part)]
    size = images.shape[-2], images.shape[-1]
    results, rest = [], images.index_select(0, forward)
    for function, members in groupby(used, lambda pair: pair[0].function):
        plans = [operation.planned(part, size) for operation, part in members]
        arguments = [torch.cat(list(values)) for values in zip(*plans, strict=True)]
        group, rest = rest.split([len(arguments[0]), len(rest) - len(arguments[0])])
        results.append(function(group, *arguments))
    return torch.cat(results).index_select(0, back)


@cache
def _ranking(names: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """Return the names in an order in which those with one function follow each other, and the rank of each."""
    functions = [OPERATIONS[name].function for name in names]
    ranking = sorted(range(len(names)), key=lambda place: functions.index(functions[place]))
    return [names[place] for place in ranking], torch.tensor(ranking).argsort()
