"""Averages of weights, and BatchNorm statistics estimated anew."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


class WeightAverage:
    """An exponential moving average of the weights of a network, over a share of the run instead of a number of steps.

    Args:
        network: the network whose parameters are averaged.
        horizon: the share of the run after which a weight counts 1/e.
    """

    def __init__(self, network: nn.Module, horizon: float = 0.02) -> None:
        self.network, self.horizon = network, horizon
        self.weights = [p.detach().clone() for p in network.parameters()]
        self.progress: float | None = None

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights as they are when ``progress``, a share in [0, 1], of the run is over."""
        passed = self.horizon if self.progress is None else max(0.0, progress - self.progress)
        torch._foreach_lerp_(self.weights, list(self.network.parameters()), min(1.0, passed / self.horizon))
        self.progress = progress

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """Return a copy of the network with the averaged weights; its BatchNorm statistics are still the old ones."""
        network = copy.deepcopy(self.network)
        for parameter, weight in zip(network.parameters(), self.weights, strict=True):
            parameter.copy_(weight)
        return network


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """Return the BatchNorm layers that keep running statistics."""
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all BatchNorm layers by their mean over some batches of inputs.

    Args:
        network: changed in place, left in evaluation mode.
        batches: normalised inputs (N, C, H, W), N > 1.
    """
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    if norms:
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
