"""Passes through a network in training mode that leave no trace in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


@contextmanager
def undisturbed(norms: Sequence[BatchNorm], others: Sequence[nn.Module]) -> Iterator[None]:
    """Let a network in training mode compute the same for the same images, and remember nothing of them.

    Args:
        norms: BatchNorm layers, which use batch statistics without recording them.
        others: what has to be as in evaluation mode, because it may be random in training, as dropout is.
    """
    norms, others = [m for m in norms if m.track_running_stats], [m for m in others if m.training]
    for norm in norms:
        norm.track_running_stats = False
    for module in others:
        module.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module in others:
            module.training = True
