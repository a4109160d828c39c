"""SGD and AdamW whose learning rates and weight decays are learned while they train, looking back over a horizon."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dha.engine import MovingAverage
from dha.hyperparameters.hypergradients import cosine
from dha.hyperparameters.schedule import LateScalar, LearnedScalar

ONE_STEP = 0.1
"""Of the rate, what values move by that are judged by the last step alone: cosines with it are about ten times as large
as those over a horizon, and noise."""

DOUBLING = 0.7
"""The farthest that the logarithm of a learning rate rises at once: the first looks alone tell a rate far too low."""

TRUST = 0.01
"""Cosine, beyond its rest, that takes a value away from its start for good: those at values that suit are smaller for
hundreds of looks, of one sign or the other; those at rates that are far too low are many times as large."""

DECAYS = 3.0
"""How much farther the logarithm of a weight decay moves than that of a learning rate: what moves it is
small and steady, and bad starts are a thousandfold away."""


class LearnedOptimizer(ABC):
    """What ``LearnedSGD`` and ``LearnedAdamW`` share: a learning rate and a weight decay for each group of weights.

    What is learned from is the gradient g_v of the validation loss at the new weights: the derivative of the weights
    with respect to the logarithm of a learning rate, in discounted forward mode and to first order, is how far they
    have come from their moving average, so that

        log lr += rate (cos(g_v, average - theta) - rest),    log wd += 3 rate (cos(g_v, average) - rest),

    whatever the optimiser makes of a gradient, as long as its step is in proportion to the learning rate. A look back
    that is still short speaks for shorter steps and less decay than a long one; so what it says for more counts in
    full, and what it says for less as far as it covers its horizon. What is left of being short-sighted is small and
    of one sign for long, and would add up in a run of many steps. So a start is believed in, as in a prior that lets
    go of what is far from it: ``TRUST`` times ``LearnedScalar.distance`` is taken off either cosine over a horizon,
    which draws a rate back from above and from below, and a decay from below alone. A momentum is learned, where it
    is, at a constant length of the steps: more of it puts older gradients in the place of the newest,

        log (1 - momentum) -= rate cos(g_v, average gradient - newest gradient),

    both scaled as the optimiser scales a step. This looks at the last step alone.

    Source: forward-mode hypergradients with discount (MARTHE, Donini et al., IJCAI 2020), in the scale-free form of
    ``LearnedScalar``; with a horizon of 0, DHA (Zhou et al., TMLR 2022), eq. 7-9.

    Args:
        groups: weights that share a learning rate and a weight decay.
        peaks: the learning rate of each group at the peak of the schedule; learned in place.
        decays: the weight decay of each group; learned in place.
        momentum: in [0, 1).
        friction: 1 minus the momentum that is used, where that is to be learned; learned in place. The learning rates
            are then those for ``momentum``.
        horizon: share of the run that the average goes back over; 0 looks at the last step alone.
        resting_cosine: cosine at which a learning rate or a weight decay stays where it is.
        clip: the largest norm of the gradient of all weights together; None for no limit.

    Attributes:
        optimizer: the optimiser of torch that moves the weights, without its weight decay.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        peaks: Sequence[LearnedScalar],
        decays: Sequence[LearnedScalar],
        *,
        momentum: float = 0.9,
        friction: LateScalar | None = None,
        horizon: float = 0.25,
        resting_cosine: float = -0.007,
        clip: float | None = None,
    ) -> None:
        self.peaks, self.decays, self.friction = list(peaks), list(decays), friction
        self.momentum = momentum
        self.resting_cosine, self.clip = resting_cosine, clip
        self.weights = [weight for group in groups for weight in group]
        # Fused, because those are the steps of torch that read a learning rate from the device without waiting for it.
        self.optimizer = self._optimizer(
            [{"params": list(group), "lr": peak.value} for group, peak in zip(groups, self.peaks, strict=True)],
            momentum,
        )
        # Of weights from when they are looked at first: what no architecture has used yet takes no memory.
        self.trail = MovingAverage([], horizon)

    @abstractmethod
    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """Return the optimiser of torch, fused and without weight decay."""

    @abstractmethod
    def _before(self, weights: list[Tensor], share: Tensor, group: dict[str, Any], sound: Tensor | None) -> None:
        """Let weights of a group, which have a gradient, decay if the step is sound, or their gradients know of it.

        What has no gradient afterwards has been moved, and is left alone by the optimiser of torch.

        Args:
            weights: of the group.
            share: its weight decay.
            group: that of the optimiser of torch, with its learning rate and what else ``_take`` sets.
            sound: as in ``step``.
        """

    @abstractmethod
    def _take(self, group: dict[str, Any], rate: Tensor, momentum: float) -> None:
        """Set learning rate and momentum of a group; the rate is that for ``self.momentum``."""

    @abstractmethod
    def _older(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the average gradient minus the newest, as they are scaled in a step that has just been made."""

    @property
    def recordable(self) -> bool:
        """Whether ``step``, given tensors, does the same at every call, so that a CUDA graph can repeat it."""
        return False

    def active(self) -> list[Tensor]:
        """Return the weights that have a gradient: others neither move nor decay."""
        return [weight for weight in self.weights if weight.grad is not None]

    def look(self, progress: float) -> None:
        """Take the weights into the average, before a step that is to be learned from.

        Args:
            progress: share of the run that is over, in [0, 1].
        """
        known = set(map(id, self.trail.weights))
        self.trail.join(weight for weight in self.active() if id(weight) not in known)
        self.trail.update(progress)

    @torch.no_grad()
    def step(self, schedule: float | Tensor, sound: Tensor | None = None) -> None:
        """Move the weights.

        Args:
            schedule: share of the peak learning rates, in [0, 1]; float32 without dimensions if a tensor.
            sound: bool, without dimensions, on the device: where it is false nothing moves. True when not given.
        """
        if self.clip is not None:
            gradients = gradients_of(self.weights)
            length = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (self.clip / length).clamp_max(1.0))
        momentum = self.momentum if self.friction is None else 1 - self.friction.late
        for peak, decay, group in zip(self.peaks, self.decays, self.optimizer.param_groups, strict=True):
            self._take(group, peak.value * schedule, momentum)
            moving = [weight for weight in group["params"] if weight.grad is not None]
            if moving:
                # Not left to the optimiser: the coefficient is learned, and lives on the device.
                self._before(moving, decay.value, group, sound)
        # What a gradient scaler would set: the fused step reads it on the device.
        self.optimizer.found_inf = None if sound is None else (~sound).float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()

    @torch.no_grad()
    def learn(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        rate: float,
        learning_rates: bool = True,
    ) -> None:
        """Move what is learned.

        Args:
            weights: those that the last step has moved, which were looked at before it, with the gradients that it
                was made from.
            gradients: of the validation loss at them, after that step.
            rate: how far a logarithm moves where a cosine over the horizon is 1; ``ONE_STEP`` of it where one with the
                last step is.
            learning_rates: whether the learning rates move, too.
        """
        if self.friction is not None:
            self.friction.move(-cosine(gradients, self._older(weights)), ONE_STEP * rate)
        # With nothing to look back on yet, the way is the last step alone, which is not what a horizon is for.
        rate *= float(self.trail.covered() > 0) if self.trail.horizon else ONE_STEP
        held_out = dict(zip(weights, gradients, strict=True))
        past: dict[Tensor, Tensor] = dict(zip(self.trail.weights, self.trail.values, strict=True))
        for peak, decay, group in zip(self.peaks, self.decays, self.optimizer.param_groups, strict=True):
            moved = [weight for weight in group["params"] if weight in held_out]
            slopes, before = [held_out[weight] for weight in moved], [past[weight] for weight in moved]
            if learning_rates:
                peak.move(self._direction(slopes, torch._foreach_sub(before, moved), peak.distance()), rate, DOUBLING)
            if not decay.has_room():
                continue
            # What is short-sighted never asks for more decay than a run needs.
            decay.move(self._direction(slopes, before, decay.distance().clamp_max(0.0)), DECAYS * rate)

    def _direction(self, slopes: Sequence[Tensor], way: Sequence[Tensor], distance: Tensor) -> Tensor:
        direction = cosine(slopes, way) - self.resting_cosine
        believed = torch.where(direction > 0, direction, self.trail.covered() * direction)
        return believed - TRUST * distance if self.trail.horizon else believed

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step or ``learn`` depends on, beside the weights."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "trail": self.trail.state_dict()}
        places = {id(weight): place for place, weight in enumerate(self.weights)}
        state["looked_at"] = [places[id(weight)] for weight in self.trail.weights]
        state["learned"] = [scalar.value for scalar in (*self.peaks, *self.decays)]
        state["starts"] = [peak.start for peak in self.peaks]
        if self.friction is not None:
            state["friction"] = self.friction.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, with weights of the same shapes."""
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        for scalar, saved in zip((*self.peaks, *self.decays), state["learned"], strict=True):
            scalar.value.copy_(saved)
        for peak, saved in zip(self.peaks, state["starts"], strict=True):
            peak.start.copy_(saved)
        self.trail = MovingAverage([self.weights[place] for place in state["looked_at"]], self.trail.horizon)
        self.trail.load_state_dict(state["trail"])
        if self.friction is not None:
            self.friction.load_state_dict(state["friction"])


class LearnedSGD(LearnedOptimizer):
    """SGD with Nesterov momentum and L2 decay: a step is that of ``torch.optim.SGD``.

    Arguments and learning rule are those of ``LearnedOptimizer``.
    """

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph can repeat ``step``: not if momentum, a number of the host, is learned."""
        return self.friction is None

    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)

    def _before(self, weights: list[Tensor], share: Tensor, group: dict[str, Any], sound: Tensor | None) -> None:
        torch._foreach_add_(gradients_of(weights), torch._foreach_mul(weights, share))
        # Here, because the fused step wants all of them to have one, and some join later.
        self._sums(weights)

    def _sums(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return what the gradients of each weight have added up to, which begins as zeros."""
        states = [self.optimizer.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
        return [state["momentum_buffer"] for state in states]

    def _take(self, group: dict[str, Any], rate: Tensor, momentum: float) -> None:
        # Gradients are added up, not averaged: a step grows with 1 / (1 - momentum).
        group["lr"], group["momentum"] = rate * ((1 - momentum) / (1 - self.momentum)), momentum

    def _older(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        share = 1 - self.optimizer.param_groups[0]["momentum"]
        return torch._foreach_sub(torch._foreach_mul(self._sums(weights), share), gradients_of(weights))


class LearnedAdamW(LearnedOptimizer):
    """Adam with decoupled weight decay: a step is that of ``torch.optim.AdamW`` with its second beta, .999.

    Arguments and learning rule are those of ``LearnedOptimizer``; ``momentum`` is the first beta.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), algorithm 2.
    """

    def _optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(momentum, 0.999), weight_decay=0.0, fused=True)

    def _before(self, weights: list[Tensor], share: Tensor, group: dict[str, Any], sound: Tensor | None) -> None:
        share = group["lr"] * share
        torch._foreach_mul_(weights, 1 - (share if sound is None else share * sound))

    def _take(self, group: dict[str, Any], rate: Tensor, momentum: float) -> None:
        group["lr"], group["betas"] = rate, (momentum, 0.999)

    def _older(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        states = [self.optimizer.state[weight] for weight in weights]
        older = torch._foreach_sub([state["exp_avg"] for state in states], gradients_of(weights))
        scales = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
        return torch._foreach_div(older, torch._foreach_add(scales, 1e-8))


def gradients_of(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of those weights that have one."""
    return [weight.grad for weight in weights if weight.grad is not None]
