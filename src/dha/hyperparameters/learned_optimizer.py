"""SGD and AdamW whose learning rates and weight decay are learned while they train, looking back over a horizon."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dha.engine import MovingAverage
from dha.hyperparameters.hypergradients import cosine
from dha.hyperparameters.schedule import LearnedScalar


class LearnedOptimizer(ABC):
    """What ``LearnedSGD`` and ``LearnedAdamW`` share: a learning rate for each group of weights, and one weight decay.

    What is learned from is the gradient g_v of the validation loss at the new weights: the derivative of the weights
    with respect to the logarithm of a learning rate, in discounted forward mode and to first order, is how far they
    have come from their moving average, so that

        log lr += rate (cos(g_v, average - theta) - resting_cosine),    log wd += rate cos(g_v, average),

    whatever the optimiser makes of a gradient, as long as its step is in proportion to the learning rate.

    Source: forward-mode hypergradients with discount (MARTHE, Donini et al., IJCAI 2020), in the scale-free form of
    ``LearnedScalar``; with a horizon of 0, DHA (Zhou et al., TMLR 2022), eq. 7-9.

    Args:
        groups: weights that share a learning rate.
        peaks: the learning rate of each group at the peak of the schedule; learned in place.
        weight_decay: coefficient of all weights; learned in place.
        momentum: in [0, 1).
        horizon: share of the run that the average goes back over; 0 looks at the last step alone.
        resting_cosine: cosine at which a learning rate stays where it is.
        clip: the largest norm of the gradient of all weights together; None for no limit.

    Attributes:
        optimizer: the optimiser of torch that moves the weights, without its weight decay.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        peaks: Sequence[LearnedScalar],
        weight_decay: LearnedScalar,
        *,
        momentum: float = 0.9,
        horizon: float = 0.25,
        resting_cosine: float = -0.005,
        clip: float | None = None,
    ) -> None:
        self.peaks, self.weight_decay = list(peaks), weight_decay
        self.resting_cosine, self.clip = resting_cosine, clip
        self.weights = [weight for group in groups for weight in group]
        # Fused, because those are the steps of torch that read a learning rate from the device without waiting for it.
        self.optimizer = self._optimizer(
            [{"params": list(group), "lr": peak.value} for group, peak in zip(groups, self.peaks, strict=True)],
            momentum,
        )
        self.trail = MovingAverage(self.weights, horizon)

    @abstractmethod
    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """Return the optimiser of torch, fused and without weight decay."""

    @abstractmethod
    def _decay(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Let the weights decay, or their gradients know of it; learning rates are those of the step to come."""

    def active(self) -> list[Tensor]:
        """Return the weights that have a gradient: others neither move nor decay."""
        return [weight for weight in self.weights if weight.grad is not None]

    def look(self, progress: float) -> None:
        """Take the weights into the average, before a step that is to be learned from.

        Args:
            progress: share of the run that is over, in [0, 1].
        """
        self.trail.update(progress)

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        """Move the weights.

        Args:
            schedule: share of the peak learning rates, in [0, 1].
        """
        weights = self.active()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if self.clip is not None:
            length = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (self.clip / length).clamp_max(1.0))
        for peak, group in zip(self.peaks, self.optimizer.param_groups, strict=True):
            group["lr"] = peak.value * schedule
        # Not left to the optimiser: the coefficient is learned, and lives on the device.
        self._decay(weights, gradients)
        self.optimizer.step()

    @torch.no_grad()
    def learn(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
        """Move learning rates and weight decay; less as long as the average does not go back over its horizon.

        Args:
            weights: those that the last step has moved.
            gradients: of the validation loss at them, after that step.
            rate: how far a logarithm moves where a cosine is 1.
        """
        rate *= self.trail.covered()
        held_out = dict(zip(weights, gradients, strict=True))
        past: dict[Tensor, Tensor] = dict(zip(self.weights, self.trail.values, strict=True))
        for peak, group in zip(self.peaks, self.optimizer.param_groups, strict=True):
            moved = [weight for weight in group["params"] if weight in held_out]
            way = torch._foreach_sub([past[weight] for weight in moved], moved)
            peak.move(cosine([held_out[weight] for weight in moved], way) - self.resting_cosine, rate)
        self.weight_decay.move(cosine(gradients, [past[weight] for weight in weights]), rate)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()


class LearnedSGD(LearnedOptimizer):
    """SGD with Nesterov momentum and L2 decay: a step is that of ``torch.optim.SGD``.

    Arguments and learning rule are those of ``LearnedOptimizer``.
    """

    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)
        # From the start, because the fused step wants all weights to have one, and some join later.
        for weight in self.weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer

    def _decay(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        torch._foreach_add_(gradients, torch._foreach_mul(weights, self.weight_decay.value))


class LearnedAdamW(LearnedOptimizer):
    """Adam with decoupled weight decay: a step is that of ``torch.optim.AdamW`` with its second beta, .999.

    Arguments and learning rule are those of ``LearnedOptimizer``; ``momentum`` is the first beta.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), algorithm 2.
    """

    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(momentum, 0.999), weight_decay=0.0, fused=True)

    def _decay(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        for group in self.optimizer.param_groups:
            moving = [weight for weight in group["params"] if weight.grad is not None]
            if moving:
                torch._foreach_mul_(moving, 1 - group["lr"] * self.weight_decay.value)
