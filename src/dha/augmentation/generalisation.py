"""The generalisation rule: an operation is worth the generalisation gap it closes, less the harm it does.

A network that overfits finds training images easy and unseen ones hard. An operation closes that gap as far as it makes
training images harder again; it leaves the distribution of the images as far as it makes unseen ones harder too. Both
are measured on the network as it is, by the loss of the same images with and without the operation:

    worth(o) = E_train[loss(o(x)) - loss(x)] - harm E_validation[loss(o(x)) - loss(x)],

and the policy is softmax(worth / (temperature L_val)) in both slots. A network that does not overfit finds an operation
as hard on training images as on unseen ones, so with ``harm`` > 1 nothing is worth more than leaving the image alone;
a flip does no harm to photographs. What the network has been trained on long enough harms no more, though, be it
mirrored digits: the rule sees no way back from there. The two terms are the diversity and the affinity of
Gontijo-Lopes et al. (ICLR 2021), here measured while training, and decided upon.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dha.augmentation.policy import AugmentationPolicy, Draws

PRIOR = 8.0
"""Weight of the start of the policy, in probed images per operation."""
_ESTIMATES = ("start", "weight", "effect", "total", "progress", "loss")


class GeneralisationRule:
    """Estimates what each operation is worth, and sets the policy by it.

    Args:
        policy: the policy to learn; where it starts is what the first estimates are mixed with.
        temperature: in units of the validation loss; the lower, the more the best operations are preferred.
        harm: what a nat of loss on unseen images weighs against one on training images, > 1.
        memory: share of the run after which a probe counts 1/e, > 0: what an operation is worth changes as the network
            learns.

    Attributes:
        gap: running estimate of validation minus training loss, both on untouched images.
    """

    def __init__(
        self, policy: AugmentationPolicy, temperature: float = 0.1, harm: float = 2.0, memory: float = 0.5
    ) -> None:
        self.policy, self.temperature, self.harm, self.memory = policy, temperature, harm, memory
        self.start = policy.operation_probabilities().log()
        count = len(policy.operations)
        self.weight = torch.zeros(2, count)
        self.effect = torch.zeros(2, count)
        self.total = 0.0
        self.progress = 0.0
        self.loss = torch.zeros(2)

    @property
    def gap(self) -> float:
        """Running estimate of validation minus training loss on untouched images."""
        return float(self.loss[1] - self.loss[0])

    def probe(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """Draw one operation with its parameters for each of n images, all operations equally likely."""
        operations = torch.randint(len(self.policy.operations), (n,), generator=generator)
        pairs = torch.stack([operations, torch.full_like(operations, self._identity())], 1)
        return Draws(pairs, torch.rand(n, 2, 3, generator=generator))

    @torch.no_grad()
    def learn(
        self,
        draws: tuple[Draws, Draws],
        plain: tuple[Tensor, Tensor],
        changed: tuple[Tensor, Tensor],
        progress: float,
    ) -> None:
        """Take in one probe and set the policy anew.

        Args:
            draws: what was applied to the training and to the validation images.
            plain: losses (n,) of the untouched training and of the untouched validation images, on the CPU.
            changed: losses (n,) of the same images after the operation.
            progress: share of the run that was over at the probe, in [0, 1].
        """
        kept = math.exp((self.progress - progress) / self.memory)
        self.progress = progress
        self.weight *= kept
        self.total = kept * self.total + 1
        for part in (0, 1):
            operations = draws[part].pairs[:, 0]
            difference = (changed[part] - plain[part]).float()
            # A loss that overflowed says nothing.
            sound = difference.isfinite()
            operations, difference = operations[sound], difference[sound]
            count = torch.zeros_like(self.weight[part]).index_add_(0, operations, torch.ones_like(difference))
            total = torch.zeros_like(count).index_add_(0, operations, difference)
            self.weight[part] += count
            seen = self.weight[part].clamp_min(1e-9)
            self.effect[part] += (total - count * self.effect[part]) / seen
            loss = plain[part].float().mean().nan_to_num(posinf=0.0)
            self.loss[part] += (loss - self.loss[part]) / self.total
        self.policy.set_slots(self.logits())

    def worth(self) -> Tensor:
        """Return the estimated worth of every operation in nats, (K,); 0 for leaving the image alone."""
        return self.effect[0] - self.harm * self.effect[1]

    def logits(self) -> Tensor:
        """Return the logits of both slots, (2, K): the start, mixed with worth over temperature as probes come in."""
        scale = (self.temperature * self.loss[1]).clamp_min(1e-6)
        wanted = (self.worth() / scale).clamp(-20, 20)
        if "identity" in self.policy.operations:
            wanted[self._identity()] = 0.0
        share = self.weight.amin(0) / (self.weight.amin(0) + PRIOR)
        start = self.start - self.start[:, self._identity(), None]
        return share * wanted + (1 - share) * start

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates; the policy that follows from them keeps its own."""
        return {name: getattr(self, name) for name in _ESTIMATES}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, of a rule for as many operations."""
        for name in _ESTIMATES:
            setattr(self, name, state[name])

    def _identity(self) -> int:
        return self.policy.operations.index("identity") if "identity" in self.policy.operations else 0
