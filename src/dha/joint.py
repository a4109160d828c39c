"""The joint step: weights, architecture, augmentation policy and hyper-parameters, all moved by one pass over a batch.

Source: DHA (Zhou et al., TMLR 2022, arXiv 2109.05765), algorithm 1; the equations are in ``docs/``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dha.architecture import Limits, derive, drop_paths, layout, recover, sparse_codes
from dha.augmentation import AugmentationPolicy, alignments
from dha.config import Config
from dha.data import Preprocessing
from dha.engine import WeightAverage, averaged, check_agreed, undisturbed
from dha.hyperparameter_learning import HyperparameterLearning
from dha.hyperparameters import cosine_schedule, norm
from dha.policy_learning import PolicyLearning, Probe
from dha.resizing import pixels, training_side
from dha.skipping import WATCHED, SkippedSteps


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
        hyper: the hyper-parameters.
        learner: of the policy, or None.
        found: what each of the sparse codes had chosen when the search ended; None before.
        skipped: the steps left out because their loss was not finite.
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
        self.policy, self.validation, self.preprocessing = policy, validation, preprocessing
        self.config, self.fabric = config, fabric
        self.limits, self.head, self.given = limits, head, config.network is not None
        self.hyper = HyperparameterLearning(config, fabric, split=bool(head))
        self.learner = None if policy is None else PolicyLearning(policy, config.augmentation, fabric, generator)
        self.needs_validation = (
            bool(self.hyper.learned)
            or (self.learner is not None and self.learner.by_validation)
            or config.architecture.loss == "validation"
        )
        self.skipped = SkippedSteps(fabric)
        self.steps, self.settled = 0, False
        self.found: list[Tensor] | None = None
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
        self.optimizer = self.hyper.optimizer(groups if self.head else groups[:1])
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
        # From ``until`` on there is no policy: it is neither applied nor moved.
        learner = self.learner if self.learner is not None and progress < self.learner.until else None
        draws, probe = None, None
        smaller = pixels(images, self.side(progress))
        if learner is not None:
            if due and learner.rule is not None:
                with self._quietly():
                    probe = learner.probe(self._losses, smaller, labels)
            smaller, draws = learner.augment(smaller)
        inputs = self._normalise(smaller)

        hyper = self.hyper
        with hyper.depth.dropping(self.paths, len(labels)):
            logits = self.network(inputs)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=hyper.smoothing.late)
        self.fabric.backward(losses.mean())
        sound = self.skipped.sound(losses.detach())
        if self.searching:
            if self.config.architecture.loss == "training":
                self._step_codes()
            self.code_optimizer.zero_grad()
        # Candidates that the architecture does not use have no gradient.
        active = self.optimizer.active()
        if due and hyper.learned:
            self.optimizer.look(progress)
        self.optimizer.step(cosine_schedule(progress, self.config.hyperparameters.warmup), sound)

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
        hyper = self.hyper
        held_out: Sequence[Tensor] = []
        if not self.needs_validation and probe is None:
            return held_out
        images, answers = next(self.validation)
        images, losses = pixels(images, self.side(progress)), None
        if self.needs_validation:
            # Smoothed like the training loss: else confidence itself would count as overfitting, and want less decay.
            smoothing = self.config.hyperparameters.label_smoothing
            held_out, losses = self._held_out_gradient(active, images, answers, smoothing)
        if self.learner is not None and probe is not None:
            with self._quietly():
                self.learner.learn(probe, self.learner.probe(self._losses, images, answers, losses), progress)
        if self.searching and self.config.architecture.loss == "validation":
            self._step_codes()
            self.code_optimizer.zero_grad()
        if hyper.learned:
            hyper.learn_rates(self.optimizer, active, held_out, progress)
        if "label_smoothing" in hyper.learned:
            plain, _ = self._held_out_gradient(active, images, answers, smoothing=0.0)
            with self._quietly():
                hyper.learn_smoothing(self.plain(inputs), labels, active, plain, progress)
        if "drop_path" in hyper.learned:
            with self._quietly():
                hyper.learn_drop_path(lambda: self.plain(inputs), labels, self.paths, active, held_out, progress)
        return held_out

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let passes through the network leave no trace in it, in the precision of the run."""
        with undisturbed(self.norms, self.others), self.fabric.autocast():
            yield

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
        if self.skipped.look():
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
        with self._quietly():
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
