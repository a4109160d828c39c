"""How the hyper-parameters of a run learn: where each starts, what holds it, and what moves it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.architecture import DropPath
from dha.config import Config, learned_parts, optimizer_of
from dha.engine import averaged, precision_of
from dha.hyperparameters import (
    ONE_STEP,
    LateScalar,
    LearnedAdamW,
    LearnedMuon,
    LearnedOptimizer,
    LearnedScalar,
    LearnedSGD,
    cosine,
    linear_schedule,
    mean_loss,
    smoothed_cross_entropy,
    smoothing_direction,
)
from dha.stochastic_depth import StochasticDepth

BACKBONE = 0.15
"""Where the learning rate of the other weights starts, as a share of that of the head, where the head has its own.

A peak of .03, where that of the head is .2: weights that were trained before are not to be lost before the rate that
suits them has been learned.
"""

BOXES = {"sgd": ((1e-4, 1.0), (1e-6, 1e-2)), "adamw": ((1e-6, 0.1), (1e-4, 1.0))}
BOXES["muon"] = BOXES["sgd"]
"""Lowest and highest learning rate, and weight decay, that may be learned."""

FRICTIONS, SMOOTHINGS = (0.01, 0.5), (1e-3, 0.3)
"""The same of 1 - momentum, and of label smoothing."""

CLIP = 1.0
"""The largest norm of the gradient of a network that was brought: nothing is known that keeps it from diverging."""


class HyperparameterLearning:
    """Holds the hyper-parameters of a run, learned or not, and the optimiser that uses most of them.

    Args:
        config: which are learned, and where they start.
        fabric: of the run.
        split: whether the head has a learning rate and a weight decay of its own.

    Attributes:
        kind: of optimiser.
        learned: names of those that are learned, in their canonical order.
        peaks: the peaks of the learning rate: of all weights, or of the others and of the head.
        decays: the weight decays, likewise.
        friction: 1 - momentum.
        smoothing: the label smoothing.
        depth: the drop path.
        halvings: how often the learning rates have been halved for trouble that is not over.
    """

    def __init__(self, config: Config, fabric: Fabric, split: bool) -> None:
        settings = config.hyperparameters
        self.settings, self.fabric, self.given = settings, fabric, config.network is not None
        self.learned = settings.learned() if "hyperparameters" in learned_parts(config.learn) else ()
        rate, decay = settings.starts()
        self.kind = optimizer_of(config)
        rates, decays = BOXES[self.kind]
        starts = [BACKBONE * rate, rate] if split else [rate]
        self.peaks = [LearnedScalar(start, *rates, fabric.device) for start in starts]
        # What is not learned is held by a box without room; learning rates need theirs, to be slowed down.
        decays = decays if "weight_decay" in self.learned else (decay, decay)
        self.decays = [LearnedScalar(decay, *decays, fabric.device) for _ in starts]
        self.friction = LateScalar(1 - settings.momentum, *FRICTIONS, fabric.device)
        self.smoothing = LearnedScalar(settings.label_smoothing, *SMOOTHINGS, fabric.device)
        self.depth = StochasticDepth(settings.drop_path, fabric, config.seed)
        self.halvings = 0

    def optimizer(self, groups: Sequence[Sequence[Tensor]]) -> LearnedOptimizer:
        """Return an optimiser of all weights, or of the others and of the head, that uses what is learned here."""
        settings, kinds = self.settings, {"sgd": LearnedSGD, "muon": LearnedMuon, "adamw": LearnedAdamW}
        optimizer = kinds[self.kind](
            groups,
            self.peaks,
            self.decays,
            momentum=settings.momentum,
            friction=self.friction if "momentum" in self.learned else None,
            horizon=settings.horizon,
            resting_cosine=settings.resting_cosine,
            clip=CLIP if self.given else None,
        )
        if isinstance(optimizer, LearnedMuon) and precision_of(self.fabric) == "bf16":
            optimizer.dtype = torch.bfloat16
        return optimizer

    def learn_rates(
        self, optimizer: LearnedOptimizer, weights: Sequence[Tensor], held_out: Sequence[Tensor], progress: float
    ) -> None:
        """Move what the optimiser learns by the gradient of the validation loss at weights that a step has moved."""
        rates = "learning_rate" in self.learned
        optimizer.learn(weights, held_out, self.rate(progress), learning_rates=rates)

    def rate(self, progress: float) -> float:
        """Return how far logarithms move now: it follows the schedule, and while that warms up nothing moves.

        All steps are too short then, by the schedule and not by the peak.
        """
        warmup = self.settings.warmup
        return self.settings.rate * linear_schedule(progress, warmup) if progress >= warmup else 0.0

    def learn_smoothing(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Sequence[Tensor],
        held_out: Sequence[Tensor],
        progress: float,
        image_weights: Tensor | None = None,
    ) -> None:
        """Move the label smoothing.

        Args:
            logits: of the training batch, with a graph.
            labels: of the training batch.
            weights: those that a step has moved.
            held_out: the gradient of the validation loss at them, without any smoothing: one that is smoothed itself
                wants what it is smoothed by.
            progress: share of the run that is over, in [0, 1].
            image_weights: of the training batch, (n,); None for all alike.
        """
        smoother = averaged(smoothing_direction(logits, labels, weights, image_weights), self.fabric)
        self.smoothing.move(cosine(held_out, smoother), ONE_STEP * self.rate(progress))

    def learn_drop_path(
        self,
        logits: Callable[[], Tensor],
        labels: Tensor,
        paths: Sequence[DropPath],
        weights: Sequence[Tensor],
        held_out: Sequence[Tensor],
        progress: float,
        image_weights: Tensor | None = None,
    ) -> None:
        """Move the probability of dropping a branch; arguments as in ``learn_smoothing``, the logits computed anew."""

        def loss() -> Tensor:
            return mean_loss(smoothed_cross_entropy(logits(), labels, self.smoothing.value), image_weights)

        self.depth.learn(loss, paths, len(labels), weights, held_out, ONE_STEP * self.rate(progress))

    def slow_down(self, halvings: int) -> None:
        """Halve the learning rates until that has been done ``halvings`` times; not again where it has been."""
        for peak in self.peaks:
            peak.scale(0.5 ** max(0, halvings - self.halvings))
        self.halvings = max(halvings, self.halvings)

    def state_dict(self) -> dict[str, Any]:
        """Return what the state of the optimiser does not hold."""
        return {"smoothing": self.smoothing.value, "depth": self.depth.state_dict(), "halvings": self.halvings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.smoothing.value.copy_(state["smoothing"])
        self.depth.load_state_dict(state["depth"])
        self.halvings = state["halvings"]
