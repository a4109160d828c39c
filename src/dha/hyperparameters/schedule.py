"""The base schedule of the learning rate, and positive hyper-parameters that are learned."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dha.engine import HostCopy


def linear_schedule(progress: float, warmup: float = 0.05) -> float:
    """Return the share of the peak learning rate at ``progress`` in [0, 1]: linear warm-up, then a straight line to 0.

    Source: warm-up of Goyal et al., "Accurate, Large Minibatch SGD" (2017); the line down as in DAWNBench's ResNet-9.
    """
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 1 - min(1.0, (progress - warmup) / (1 - warmup))


LARGEST = 0.2
"""The farthest that the logarithm of a learned value moves at once, however much the gradients agree."""

NEAR = 0.5
"""How far from its start the logarithm of a learned value is where it is drawn back most."""


class LearnedScalar:
    """A positive hyper-parameter that moves in log space by a bounded step, so that no scale has to be known.

    Hypergradients of learning rate and weight decay differ by orders of magnitude between tasks and moments, and a
    plain gradient step on them explodes, vanishes or leaves the positive numbers. What is comparable is the cosine of
    the angle between the validation gradient and the direction that the hyper-parameter acts along, in [-1, 1].

    Args:
        initial: the value it starts with, > 0.
        low, high: the box it stays in; widened to hold ``initial``.
        device: where the value lives, so that reading it in a step needs no synchronisation.

    Attributes:
        value: the current value, a float32 tensor without dimensions.
        start: the value that it is drawn back to by code that asks for ``distance``, likewise.
    """

    def __init__(self, initial: float, low: float, high: float, device: torch.device | str = "cpu") -> None:
        self.low, self.high = min(low, initial), max(high, initial)
        self.value = torch.tensor(float(initial), device=device)
        self.start = self.value.clone()

    def has_room(self) -> bool:
        """Return whether there is another value in its box."""
        return self.low < self.high

    def distance(self) -> Tensor:
        """Return how much the value has left a start that may have been right, in [-1, 1], without dimensions.

        It is 0 at the start, grows until the logarithm is ``NEAR`` away, and goes back to 0 where that is far away: the
        slope of a belief that has the shape of a normal distribution and lets go of what it does not explain.
        """
        away = (self.value / self.start).log() / NEAR
        return away * (0.5 - 0.5 * away**2).exp()

    @torch.no_grad()
    def move(self, direction: Tensor, rate: float, highest: float = LARGEST) -> None:
        """Multiply the value by ``exp(rate * direction)``, and keep it in its box.

        Args:
            direction: without dimensions, on the device of the value; where it is not a number nothing moves.
            rate: how far the logarithm moves in a direction of 1.
            highest: the farthest that it moves upwards; downwards that is ``LARGEST``.
        """
        step = (rate * direction.nan_to_num()).clamp(-LARGEST, highest)
        self.value.mul_(step.exp()).clamp_(self.low, self.high)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the value, and what it is drawn back to, by ``factor``, within the box."""
        for value in (self.value, self.start):
            value.mul_(factor).clamp_(self.low, self.high)


class LateScalar(LearnedScalar):
    """A learned scalar for code that wants a plain number: there it arrives one move late, so that nothing waits.

    Args:
        initial, low, high, device: as in ``LearnedScalar``.

    Attributes:
        late: the value before the latest move, a number on the host.
    """

    def __init__(self, initial: float, low: float, high: float, device: torch.device | str = "cpu") -> None:
        super().__init__(initial, low, high, device)
        self.late = initial
        self.copy = HostCopy(self.value.clone())

    def move(self, direction: Tensor, rate: float, highest: float = LARGEST) -> None:
        """Move the value as a ``LearnedScalar``, and take up on the host what the move before this one made of it."""
        self.late = self.copy.wait().item()
        super().move(direction, rate, highest)
        self.copy = HostCopy(self.value.clone())

    def state_dict(self) -> dict[str, Any]:
        """Return the value, and what of it is in use and on its way to the host."""
        return {"value": self.value, "late": self.late, "copy": self.copy.wait()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.value.copy_(state["value"])
        self.late, self.copy = state["late"], HostCopy(state["copy"])
