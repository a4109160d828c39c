"""The joint step: weights, architecture, augmentation policy and hyper-parameters, all moved by one pass over a batch.

Source: DHA (Zhou et al., TMLR 2022, arXiv 2109.05765), algorithm 1; the equations are in ``docs/``.
"""

from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dha.architecture import Limits, derive, drop_paths, layout, recover, sparse_codes
from dha.augmentation import AugmentationPolicy, alignments
from dha.config import Config, learned_parts
from dha.data import Preprocessing
from dha.engine import HostCopy, WeightAverage, averaged, check_agreed, everywhere, undisturbed
from dha.hyperparameters import (
    ONE_STEP,
    LateScalar,
    LearnedAdamW,
    LearnedScalar,
    LearnedSGD,
    cosine,
    cosine_schedule,
    norm,
    smoothing_direction,
)
from dha.policy_learning import PolicyLearning, Probe
from dha.resizing import pixels, training_side
from dha.stochastic_depth import StochasticDepth

BACKBONE = 0.15
"""Where the learning rate of the other weights starts, as a share of that of the head, where the head has its own.

A peak of .03, where that of the head is .2: weights that were trained before are not to be lost before the rate that
suits them has been learned.
"""

BOXES = {"sgd": ((1e-4, 1.0), (1e-6, 1e-2)), "adamw": ((1e-6, 0.1), (1e-4, 1.0))}
"""Lowest and highest learning rate, and weight decay, that may be learned."""

FRICTIONS, SMOOTHINGS = (0.01, 0.5), (1e-3, 0.3)
"""The same of 1 - momentum, and of label smoothing."""

CLIP = 1.0
"""The largest norm of the gradient of a network that was brought: nothing is known that keeps it from diverging."""

WATCHED = 16
"""Steps between two looks of the host at whether steps had to be left out."""


class JointTraining:
    """What one run learns, and the step that learns it.

    Args:
        network: the network to train; searched until ``finish_search`` if there are sparse codes in it.
        policy: the augmentation policy to apply, and to learn by its rule, or None to leave images alone.
        validation: endless batches (uint8 images, labels) of held-out images.
        preprocessing: normalisation of the images.
        config: the settings of the run.
        fabric: device and precision.
        generator: CPU generator of the policy's draws.
        limits: what any architecture of the search may cost.
        head: names of the weights with a learning rate and a weight decay of their own; all have the same when empty.

    Attributes:
        peaks: the learned peaks of the learning rate: of all weights, or of the others and of the head.
        decays: the learned weight decays, likewise.
        found: what each of the sparse codes had chosen when the search ended; None before.
        skipped: the number of steps left out because their loss was not finite, on the device.
        recently_skipped: how many of ``WATCHED`` steps that were, as far as the host knows.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: AugmentationPolicy | None,
        validation: Iterator[tuple[Tensor, Tensor]],
        preprocessing: Preprocessing,
        config: Config,
        fabric: Fabric,
        generator: torch.Generator,
        limits: Limits | None = None,
        head: frozenset[str] = frozenset(),
    ) -> None:
        settings = config.hyperparameters
        self.policy, self.validation, self.preprocessing = policy, validation, preprocessing
        self.config, self.fabric = config, fabric
        self.limits, self.head, self.given = limits, head, config.network is not None
        self.learned = settings.learned()
        self.learns_hyperparameters = "hyperparameters" in learned_parts(config.learn) and bool(self.learned)
        self.learner = None if policy is None else PolicyLearning(policy, config.augmentation, fabric, generator)
        self.needs_validation = (
            self.learns_hyperparameters
            or (self.learner is not None and self.learner.by_validation)
            or config.architecture.loss == "validation"
        )
        rate, decay = settings.starts()
        rates, decays = BOXES[settings.optimizer]
        starts = [BACKBONE * rate, rate] if head else [rate]
        self.peaks = [LearnedScalar(start, *rates, fabric.device) for start in starts]
        # What is not learned is held by a box without room; learning rates need theirs, to be slowed down.
        decays = decays if "weight_decay" in self.learned else (decay, decay)
        self.decays = [LearnedScalar(decay, *decays, fabric.device) for _ in starts]
        self.friction = LateScalar(1 - settings.momentum, *FRICTIONS, fabric.device)
        self.smoothing = LateScalar(settings.label_smoothing, *SMOOTHINGS, fabric.device)
        self.depth = StochasticDepth(settings.drop_path, fabric, config.seed)
        self.steps, self.settled = 0, False
        self.found: list[Tensor] | None = None
        self.skipped = torch.zeros((), dtype=torch.long, device=fabric.device)
        self.looked = HostCopy(self.skipped.clone())
        self.recently_skipped = self.known_skipped = 0
        self._train(network)

    def _train(self, network: nn.Module) -> None:
        self.layout = layout(network)
        self.plain = network.to(self.fabric.device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.network = self.fabric.setup_module(self.plain)
        self.codes = sparse_codes(network)
        self.searching = bool(self.codes)
        compressed = [c.compressed for c in self.codes]
        named = {n: p for n, p in network.named_parameters() if p.requires_grad and all(p is not c for c in compressed)}
        self.weights = list(named.values())
        self.norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        self.paths = drop_paths(network)
        # Nothing else is random in the networks of our spaces.
        self.others = [m for m in network.modules() if self.given and not isinstance(m, BatchNorm)]
        groups = [[p for n, p in named.items() if n not in self.head], [p for n, p in named.items() if n in self.head]]
        settings = self.config.hyperparameters
        self.optimizer = (LearnedAdamW if settings.optimizer == "adamw" else LearnedSGD)(
            groups[: len(self.peaks)],
            self.peaks,
            self.decays,
            momentum=settings.momentum,
            friction=self.friction if "momentum" in self.learned else None,
            horizon=settings.horizon,
            resting_cosine=settings.resting_cosine,
            clip=CLIP if self.given else None,
        )
        if self.searching:
            self.code_optimizer = torch.optim.Adam(
                compressed, lr=self.config.architecture.learning_rate, betas=(0.5, 0.999)
            )
        # What is still searched has no weights to average yet.
        self.average = None if self.searching else WeightAverage(self.plain)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Train on one batch; every ``config.every`` steps learn policy and hyper-parameters from a validation batch.

        Args:
            images: uint8, (N, C, H, W), on the device.
            labels: int64, (N,), on the device.
            progress: share of the run that is over, in [0, 1].

        Returns:
            The loss of each image and whether it was classified correctly, both (N,), on the device.
        """
        due = not self.settled and self.steps % self.config.every == 0
        learner, draws, probe = self.learner, None, None
        smaller = pixels(images, self.side(progress))
        if learner is not None:
            if due and learner.rule is not None:
                with undisturbed(self.norms, self.others), self.fabric.autocast():
                    probe = learner.probe(self._losses, smaller, labels)
            smaller, draws = learner.augment(smaller)
        inputs = self._normalise(smaller)

        with self.depth.dropping(self.paths, len(labels)):
            logits = self.network(inputs)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing.late)
        self.fabric.backward(losses.mean())
        sound = everywhere(losses.detach().isfinite().all(), self.fabric)
        self.skipped += ~sound
        if self.searching:
            if self.config.architecture.loss == "training":
                self._step_codes()
            self.code_optimizer.zero_grad()
        # Candidates that the architecture does not use have no gradient.
        active = self.optimizer.active()
        schedule = cosine_schedule(progress, self.config.hyperparameters.warmup)
        if due and self.learns_hyperparameters:
            self.optimizer.look(progress)
        self.optimizer.step(schedule, sound)

        if due:
            if learner is not None:
                learner.update()
            held_out = self._learn(inputs, labels, active, probe, progress)
            if learner is not None and draws is not None and learner.by_signal:
                aligned = learner.by_validation
                learner.note(draws, self._alignments(inputs, labels, active, held_out) if aligned else losses.detach())
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(progress)
        self.steps += 1
        if self.steps % WATCHED == 0:
            self._watch()
        return losses.detach(), logits.detach().argmax(1) == labels

    def _learn(
        self, inputs: Tensor, labels: Tensor, active: Sequence[Tensor], probe: Probe | None, progress: float
    ) -> Sequence[Tensor]:
        """Learn from one validation batch, after a step on training images; return the gradient of its loss, if any."""
        settings = self.config.hyperparameters
        held_out: Sequence[Tensor] = []
        if not self.needs_validation and probe is None:
            return held_out
        images, answers = next(self.validation)
        images, losses = pixels(images, self.side(progress)), None
        if self.needs_validation:
            # Smoothed like the training loss: else confidence itself would count as overfitting, and want less decay.
            held_out, losses = self._held_out_gradient(active, images, answers, settings.label_smoothing)
        if self.learner is not None and probe is not None:
            with undisturbed(self.norms, self.others), self.fabric.autocast():
                self.learner.learn(probe, self.learner.probe(self._losses, images, answers, losses), progress)
        if self.searching and self.config.architecture.loss == "validation":
            self._step_codes()
            self.code_optimizer.zero_grad()
        if not self.learns_hyperparameters:
            return held_out

        rate = settings.rate * cosine_schedule(progress, settings.warmup)
        self.optimizer.learn(active, held_out, rate, learning_rates="learning_rate" in self.learned)
        if "label_smoothing" in self.learned:
            with undisturbed(self.norms, self.others), self.fabric.autocast():
                smoother = averaged(smoothing_direction(self.plain(inputs), labels, active), self.fabric)
            # Judged without any: a loss that is smoothed itself wants what it is smoothed by.
            plain, _ = self._held_out_gradient(active, images, answers, smoothing=0.0)
            self.smoothing.move(cosine(plain, smoother), ONE_STEP * rate)
        if "drop_path" in self.learned:

            def loss() -> Tensor:
                return F.cross_entropy(self.plain(inputs), labels, label_smoothing=self.smoothing.late)

            with undisturbed(self.norms, self.others), self.fabric.autocast():
                self.depth.learn(loss, self.paths, len(labels), active, held_out, ONE_STEP * rate)
        return held_out

    def side(self, progress: float) -> int:
        """Return the side in pixels of the images that are trained on when ``progress`` of the run is over.

        A network that was brought may be made for one size.
        """
        full = self.preprocessing.image_size
        return training_side(full, progress) if self.config.progressive_resizing and not self.given else full

    def inputs(self, images: Tensor, side: int | None = None) -> Tensor:
        """Return what the network takes of untouched images, uint8 (N, C, S, S), at their own or another side."""
        return self._normalise(pixels(images, images.shape[-1] if side is None else side))

    def _normalise(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalise(images).contiguous(memory_format=self.layout)

    def _watch(self) -> None:
        # The copy of the look before this one is done by now, so that nothing has to wait.
        before, self.looked = self.looked.wait().item(), HostCopy(self.skipped.clone())
        self.recently_skipped = int(before) - self.known_skipped
        self.known_skipped = int(before)
        if self.recently_skipped:
            self.optimizer.slow_down(0.5)
            # A pass that overflowed has left its mark in the running statistics, which would never fade.
            for layer in self.norms:
                for statistics, neutral in ((layer.running_mean, 0.0), (layer.running_var, 1.0)):
                    if statistics is not None:
                        statistics.nan_to_num_(neutral, neutral, neutral)

    def _step_codes(self) -> None:
        for codes in self.codes:
            codes.stop_frozen_gradients()
            if codes.compressed.grad is not None:
                codes.compressed.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.code_optimizer.step()

    def _held_out_gradient(
        self, active: Sequence[Tensor], images: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradient of the loss of validation images, and the loss of each without label smoothing."""
        # Past Fabric's wrapper, which wants every backward pass to be one of training.
        with undisturbed(self.norms, self.others), self.fabric.autocast():
            logits = self.plain(self._normalise(images)).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            losses = F.cross_entropy(logits.detach(), labels, reduction="none")
        if not (self.searching and self.config.architecture.loss == "validation"):
            return averaged(torch.autograd.grad(loss, active, materialize_grads=True), self.fabric), losses
        compressed = [c.compressed for c in self.codes]
        gradients = averaged(torch.autograd.grad(loss, [*active, *compressed], materialize_grads=True), self.fabric)
        for code, gradient in zip(compressed, gradients[len(active) :], strict=True):
            code.grad = gradient
        return gradients[: len(active)], losses

    def _alignments(
        self, inputs: Tensor, labels: Tensor, active: Sequence[Tensor], held_out: Sequence[Tensor]
    ) -> Tensor:
        # In float32 whatever the precision of the run: the rounding of bfloat16 would drown the differences.
        def losses() -> Tensor:
            return F.cross_entropy(self.plain(inputs), labels, reduction="none")

        with undisturbed(self.norms, self.others):
            return alignments(losses, active, held_out)

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.plain(self._normalise(images)).float(), labels, reduction="none")

    def recover(self) -> tuple[list[float], bool]:
        """Recover the sparse codes; return how far each node's moved, and whether all nodes are frozen now."""
        recoveries = recover(self.codes, self.config.architecture.tolerance, self.limits)
        check_agreed([codes.chosen for codes in self.codes], "architectures", self.fabric)
        change = [c for r in recoveries for c in r.change]
        return change, all(all(r.frozen) for r in recoveries)

    def finish_search(self) -> None:
        """Go on with the derived network alone: the same function, with no architecture parameters."""
        self.found = [codes.chosen.clone() for codes in self.codes]
        self._train(self.derived())

    def is_sound(self) -> bool:
        """Return whether all weights are finite; waits for the device."""
        return bool(norm(self.weights).isfinite())

    def settle(self) -> None:
        """Keep policy and hyper-parameters as they are from now on: validation images are looked at no more."""
        self.settled = True

    def derived(self) -> nn.Module:
        """Return the plain network as it is now; a copy while the search goes on."""
        return derive(self.plain) if self.searching else self.plain
