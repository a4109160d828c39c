"""SGD whose learning rates and weight decay are learned while it trains, each looking back over a horizon."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dha.engine import MovingAverage
from dha.hyperparameters.hypergradients import cosine
from dha.hyperparameters.schedule import LearnedScalar


class LearnedSGD:
    """SGD with Nesterov momentum; a learning rate for each group of weights, and one weight decay.

    A step is that of ``torch.optim.SGD``. What is learned from is the gradient g_v of the validation loss at the new
    weights: the derivative of the weights with respect to the logarithm of a learning rate, in discounted forward mode
    and to first order, is how far they have come from their moving average, so that

        log lr += rate (cos(g_v, average - theta) - resting_cosine),    log wd += rate cos(g_v, average).

    Source: forward-mode hypergradients with discount (MARTHE, Donini et al., IJCAI 2020), in the scale-free form of
    ``LearnedScalar``; with a horizon of 0, DHA (Zhou et al., TMLR 2022), eq. 7-9.

    Args:
        groups: weights that share a learning rate.
        peaks: the learning rate of each group at the peak of the schedule; learned in place.
        weight_decay: L2 coefficient of all weights; learned in place.
        momentum: in [0, 1).
        horizon: share of the run that the average goes back over; 0 looks at the last step alone.
        resting_cosine: cosine at which a learning rate stays where it is.
        clip: the largest norm of the gradient of all weights together; None for no limit.
    """

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
        # Fused, because that is the SGD of torch that reads a learning rate from the device without waiting for it.
        self.optimizer = torch.optim.SGD(
            [{"params": list(group), "lr": peak.value} for group, peak in zip(groups, self.peaks, strict=True)],
            momentum=momentum,
            nesterov=momentum > 0,
            fused=True,
        )
        # From the start, because the fused step wants all weights to have one, and some join later.
        for weight in self.weights:
            self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        self.trail = MovingAverage(self.weights, horizon)

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
    def step(self, schedule: float, sound: Tensor | None = None) -> None:
        """Move the weights.

        Args:
            schedule: share of the peak learning rates, in [0, 1].
            sound: bool, without dimensions, on the device: where it is false nothing moves. True when not given.
        """
        weights = self.active()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if self.clip is not None:
            length = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (self.clip / length).clamp_max(1.0))
        # Not left to the optimiser: the coefficient is learned, and lives on the device.
        torch._foreach_add_(gradients, torch._foreach_mul(weights, self.weight_decay.value))
        for peak, group in zip(self.peaks, self.optimizer.param_groups, strict=True):
            group["lr"] = peak.value * schedule
        # What a gradient scaler would set: the fused step reads it on the device.
        self.optimizer.found_inf = None if sound is None else (~sound).float()  # pyright: ignore[reportAttributeAccessIssue]
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

    @torch.no_grad()
    def slow_down(self, factor: float) -> None:
        """Multiply the learning rates by ``factor``, within their bounds."""
        for peak in self.peaks:
            peak.value.mul_(factor).clamp_(peak.low, peak.high)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step or ``learn`` depends on, beside the weights."""
        learned = [scalar.value for scalar in (*self.peaks, self.weight_decay)]
        return {"optimizer": self.optimizer.state_dict(), "learned": learned, "trail": self.trail.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, with weights of the same shapes."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        for scalar, saved in zip((*self.peaks, self.weight_decay), state["learned"], strict=True):
            scalar.value.copy_(saved)
        self.trail.load_state_dict(state["trail"])
