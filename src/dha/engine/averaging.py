"""Averages of weights, and BatchNorm statistics estimated anew."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


class MovingAverage:
    """An exponential moving average of weights, over a share of the run instead of a number of steps.

    Args:
        weights: what is averaged.
        horizon: the share of the run after which a weight counts 1/e; 0 remembers the latest alone.

    Attributes:
        values: the averages, in the order of ``weights``.
    """

    def __init__(self, weights: Iterable[Tensor], horizon: float) -> None:
        self.weights, self.horizon = list(weights), horizon
        self.values = [w.detach().clone() for w in self.weights]
        self.began: float | None = None
        self.progress = 0.0

    def join(self, weights: Iterable[Tensor]) -> None:
        """Average these weights, too; what they are now is all that their averages know of the past."""
        for weight in weights:
            self.weights.append(weight)
            self.values.append(weight.detach().clone())

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights as they are when ``progress``, a share in [0, 1], of the run is over."""
        passed = progress - self.progress
        share = 1.0 if self.began is None or passed >= self.horizon else max(0.0, passed / self.horizon)
        torch._foreach_lerp_(self.values, self.weights, share)
        self.began = progress if self.began is None else self.began
        self.progress = progress

    def covered(self) -> float:
        """Return how much of its horizon the average looks back over, in [0, 1]."""
        passed = 0.0 if self.began is None else self.progress - self.began
        return 1.0 - math.exp(-passed / self.horizon) if self.horizon else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and what of the run they go back over."""
        return {"values": self.values, "began": self.began, "progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, of weights of the same shapes."""
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
        self.began, self.progress = state["began"], state["progress"]


class WeightAverage(MovingAverage):
    """The moving average of all parameters of a network.

    Args:
        network: the network whose parameters are averaged.
        horizon: as in ``MovingAverage``.
    """

    def __init__(self, network: nn.Module, horizon: float = 0.02) -> None:
        super().__init__(network.parameters(), horizon)
        self.network = network

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """Return a copy of the network with the averaged weights; its BatchNorm statistics are still the old ones."""
        network = copy.deepcopy(self.network)
        for parameter, weight in zip(network.parameters(), self.values, strict=True):
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
