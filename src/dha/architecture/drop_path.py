"""Stochastic depth: blocks that add to their input leave out what they would add, image by image, at random.

Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), with one probability for all blocks, and for
each image apart. What is kept is divided by the probability that it is, so that the whole network, as it is evaluated
and delivered, adds the mean of what each branch adds, with nothing to rescale.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stands after a branch that is added to something, and lets ``dropping`` drop it.

    Attributes:
        factors: what the branch of each image is multiplied by, (N,); None where all branches are as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x if self.factors is None else x * self.factors.to(x.dtype).view(-1, 1, 1, 1)


def drop_paths(network: nn.Module) -> list[DropPath]:
    """Return the places of a network where a branch can be dropped."""
    return [module for module in network.modules() if isinstance(module, DropPath)]


def drop_factors(uniforms: Tensor, probability: float) -> Tensor:
    """Return what branches are multiplied by: 0 where they are dropped, 1 / (1 - probability) where they are kept.

    Args:
        uniforms: drawn from [0, 1), one per branch and image; what is dropped is dropped at a higher probability, too.
        probability: of dropping, in [0, 1).
    """
    return (uniforms >= probability).float() / (1 - probability)


@contextmanager
def dropping(paths: Sequence[DropPath], factors: Tensor) -> Iterator[None]:
    """Multiply branches by factors, (number of branches, N), in passes over N images while the block lasts."""
    for path, row in zip(paths, factors, strict=True):
        path.factors = row
    try:
        yield
    finally:
        for path in paths:
            path.factors = None
