"""How the augmentation policy of a run learns: what is measured of it, when, and what becomes of that.

What is measured on the device comes to the host while training goes on, and is learned from one measurement later, so
that nothing waits.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.augmentation import (
    AugmentationPolicy,
    Draws,
    GeneralisationRule,
    adversarial_gradient,
    standardise,
    validation_gradient,
)
from dha.config import AugmentationConfig
from dha.engine import HostCopy, gathered

FEWEST = 16
"""Images of a part below which a probe uses all of them: BatchNorm needs some."""


class PolicyLearning:
    """Augments batches by a policy, and moves the policy by one of the rules, or not at all.

    Args:
        policy: learned in place.
        settings: the rule and its numbers.
        fabric: of the run; each of its processes augments its part of a batch, all learn from all parts.
        generator: CPU generator of the draws, alike in all processes.

    Attributes:
        rule: the generalisation rule, or None where it is another.
        by_validation: whether the rule asks for alignments with the validation gradient.
        by_signal: whether it learns from what ``note`` is told.
    """

    def __init__(
        self, policy: AugmentationPolicy, settings: AugmentationConfig, fabric: Fabric, generator: torch.Generator
    ) -> None:
        self.policy, self.fabric, self.generator = policy, fabric, generator
        self.rule: GeneralisationRule | None = None
        self.by_validation = settings.rule == "validation"
        self.by_signal = settings.rule in ("validation", "adversarial")
        if settings.rule == "generalisation":
            self.rule = GeneralisationRule(
                policy, settings.temperature, settings.harm, settings.memory, settings.full_gap
            )
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.probed: tuple[Draws, Draws, float, HostCopy] | None = None
        self.pending: tuple[Tensor, HostCopy] | None = None

    def augment(self, images: Tensor) -> tuple[Tensor, Draws]:
        """Return images, float32 (N, C, H, W) in [0, 1], augmented, and the draws of the batch of all processes."""
        draws = self.policy.draw(len(images) * self.fabric.world_size, self.generator)
        return self.policy.apply(images, self._mine(draws)), draws

    @torch.no_grad()
    def probe(
        self,
        losses: Callable[[Tensor, Tensor], Tensor],
        parts: Iterable[tuple[Tensor, Tensor]],
        progress: float,
    ) -> None:
        """Measure for the generalisation rule what single operations do to losses; learn from the probe before.

        Args:
            losses: returns the loss (n,) of each of some images with their labels, for the network as it is.
            parts: images, float32 in [0, 1], and labels: of training, not trained on yet, and of validation; half of
                each is used, unless that is fewer than ``FEWEST``.
            progress: share of the run that is over, in [0, 1].
        """
        assert self.rule is not None
        if self.probed is not None:
            for_training, for_validation, when, copy = self.probed
            sizes = [len(for_training.pairs)] * 2 + [len(for_validation.pairs)] * 2
            seen, seen_changed, unseen, unseen_changed = copy.wait().split(sizes)
            self.rule.learn((for_training, for_validation), (seen, unseen), (seen_changed, unseen_changed), when)
        drawn: list[Draws] = []
        measured: list[Tensor] = []
        for images, labels in parts:
            # Every second one, so that several processes together use the same images as one alone.
            stride = 2 if len(labels) * self.fabric.world_size >= 2 * FEWEST else 1
            images, labels = images[::stride], labels[::stride]
            drawn.append(self.rule.probe(len(labels) * self.fabric.world_size, self.generator))
            changed = self.policy.apply(images, self._mine(drawn[-1]))
            measured += [gathered(losses(variant, labels), self.fabric) for variant in (images, changed)]
        self.probed = drawn[0], drawn[1], progress, HostCopy(torch.cat(measured))

    def note(self, draws: Draws, signal: Tensor) -> None:
        """Take in what a rule by signal looks at: a number (n,) per image of this process's part."""
        self.pending = draws.pairs, HostCopy(gathered(signal, self.fabric))

    def update(self) -> None:
        """Move the policy by what was noted last."""
        if self.pending is None:
            return
        # An image whose loss overflowed says nothing about its pair.
        pairs, signal = self.pending[0], standardise(self.pending[1].wait().nan_to_num(0.0, 0.0, 0.0))
        if self.by_validation:
            gradients = validation_gradient(self.policy, pairs, signal, learning_rate=1.0)
        else:
            gradients = adversarial_gradient(self.policy, pairs, signal)
        for logits, gradient in zip(self.policy.parameters(), gradients, strict=True):
            logits.grad = gradient
        self.optimizer.step()

    def _mine(self, draws: Draws) -> Draws:
        return draws.part(self.fabric.global_rank, self.fabric.world_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the policy, what its rule knows, and what is measured but not learned from yet."""
        state: dict[str, Any] = {
            "logits": [logits.detach() for logits in self.policy.parameters()],
            "tilts": self.policy.tilts,
            "rule": None if self.rule is None else self.rule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "probed": None,
            "pending": None,
        }
        if self.probed is not None:
            *draws, progress, copy = self.probed
            state["probed"] = [[[d.pairs, d.uniforms] for d in draws], progress, copy.wait()]
        if self.pending is not None:
            state["pending"] = [self.pending[0], self.pending[1].wait()]
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, with a policy over the same operations and the same rule."""
        for logits, saved in zip(self.policy.parameters(), state["logits"], strict=True):
            logits.copy_(saved)
        self.policy.tilts = state["tilts"]
        if self.rule is not None:
            self.rule.load_state_dict(state["rule"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.probed = self.pending = None
        if state["probed"] is not None:
            draws, progress, losses = state["probed"]
            self.probed = Draws(*draws[0]), Draws(*draws[1]), progress, HostCopy(losses)
        if state["pending"] is not None:
            self.pending = state["pending"][0], HostCopy(state["pending"][1])
