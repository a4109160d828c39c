"""How the augmentation policy of a run learns: what is measured of it, when, and what becomes of that.

What is measured on the device comes to the host while training goes on, and is learned from one measurement later, so
that nothing waits.
"""

import copy
from collections.abc import Callable, Mapping
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
from dha.engine import Aside, HostCopy, gathered

Probe = tuple[Draws, Tensor, Tensor]
"""What was tried on the images of all processes, and the losses of this one's, without and with it."""


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
        until: share of the run after which the policy is neither applied nor moved.
        aside: where batches are augmented while the device trains; whatever else the policy is applied to takes turns
            with them.
    """

    def __init__(
        self, policy: AugmentationPolicy, settings: AugmentationConfig, fabric: Fabric, generator: torch.Generator
    ) -> None:
        self.policy, self.fabric, self.generator = policy, fabric, generator
        self.rule: GeneralisationRule | None = None
        self.by_validation = settings.rule == "validation"
        self.by_signal = settings.rule in ("validation", "adversarial")
        self.until = 1.0 if settings.rule == "fixed" else settings.until
        if settings.rule == "generalisation":
            self.rule = GeneralisationRule(
                policy, settings.temperature, settings.harm, settings.memory, settings.full_gap
            )
        self.aside = Aside(fabric.device)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.probed: tuple[Draws, Draws, float, HostCopy] | None = None
        self.pending: tuple[AugmentationPolicy, Tensor, HostCopy] | None = None

    def augment(self, images: Tensor, batches: int = 1) -> tuple[Tensor, list[Draws]]:
        """Return images, float32 (N, C, H, W) in [0, 1], of so many equal batches, augmented, and for each batch the
        draws of all processes.

        The fewer images there are the more of the time goes to telling the device what to do with them.
        """
        draws = self.policy.draw(len(images) * self.fabric.world_size, self.generator).split(batches)
        return self.policy.apply(images, Draws.join([self._mine(batch) for batch in draws])), draws

    @torch.no_grad()
    def tried(self, losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Draws, Tensor]:
        """Return single operations drawn for the images of all processes, and the losses (n,) of this one's after them.

        Args:
            losses: returns the loss (n,) of each of some images with their labels, for the network as it is.
            images: float32 in [0, 1].
            labels: of the images.
        """
        assert self.rule is not None
        draws = self.rule.probe(len(labels) * self.fabric.world_size, self.generator)
        self.aside.catch_up()
        with self.aside.work():
            changed = self.policy.apply(images, self._mine(draws))
        self.aside.hand_over([changed])
        return draws, losses(changed, labels)

    def learn(self, seen: Probe, unseen: Probe, progress: float) -> None:
        """Take in probes of images of training, not trained on yet, and of validation; set the policy by those before.

        Args:
            seen: of training.
            unseen: of validation.
            progress: share of the run that is over, in [0, 1].
        """
        assert self.rule is not None
        if self.probed is not None:
            for_training, for_validation, when, copy = self.probed
            sizes = [len(for_training.pairs)] * 2 + [len(for_validation.pairs)] * 2
            plain, changed, unseen_plain, unseen_changed = copy.wait().split(sizes)
            self.rule.learn((for_training, for_validation), (plain, unseen_plain), (changed, unseen_changed), when)
        losses = [gathered(part, self.fabric) for part in (*seen[1:], *unseen[1:])]
        self.probed = seen[0], unseen[0], progress, HostCopy(torch.cat(losses))

    def note(self, draws: Draws, signal: Tensor) -> None:
        """Move the policy by what was noted last, then take in what a rule by signal looks at.

        Args:
            draws: those of all processes, from the policy as it is before this call.
            signal: a number (n,) per image of this process's part.
        """
        drawn_from = copy.deepcopy(self.policy)
        self._update()
        self.pending = drawn_from, draws.pairs, HostCopy(gathered(signal, self.fabric))

    def _update(self) -> None:
        if self.pending is None:
            return
        drawn_from, pairs, copied = self.pending
        signal = copied.wait()
        # An image without a finite signal says nothing about its pair.
        sound = signal.isfinite()
        if sound.sum() < 2:
            return
        pairs, signal = pairs[sound], standardise(signal[sound])
        if self.by_validation:
            gradients = validation_gradient(drawn_from, pairs, signal, learning_rate=1.0)
        else:
            gradients = adversarial_gradient(drawn_from, pairs, signal)
        for logits, gradient in zip(self.policy.parameters(), gradients, strict=True):
            logits.grad = gradient
        self.optimizer.step()

    def _mine(self, draws: Draws) -> Draws:
        return draws.split(self.fabric.world_size)[self.fabric.global_rank]

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
            drawn_from, pairs, signal = self.pending
            state["pending"] = [[part.detach() for part in drawn_from.parameters()], pairs, signal.wait()]
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
            logits, pairs, signal = state["pending"]
            drawn_from = copy.deepcopy(self.policy)
            for part, saved in zip(drawn_from.parameters(), logits, strict=True):
                part.copy_(saved)
            self.pending = drawn_from, pairs, HostCopy(signal)
