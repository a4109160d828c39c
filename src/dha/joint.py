"""The joint step: weights, architecture, augmentation policy and hyper-parameters, all moved by one pass over a batch.

Source: DHA (Zhou et al., TMLR 2022, arXiv 2109.05765), algorithm 1; the equations are in ``docs/``.
"""

from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from dha.architecture import Limits, derive, recover, sparse_codes
from dha.augmentation import AugmentationPolicy
from dha.batching import Batch, Batching
from dha.config import Config
from dha.data import Preprocessing
from dha.engine import WeightAverage, check_agreed
from dha.hyperparameter_learning import HyperparameterLearning
from dha.hyperparameters import gradients_of, linear_schedule, norm, weighed
from dha.passes import Passes, per_image
from dha.policy_learning import PolicyLearning, Probe
from dha.resizing import pixels
from dha.skipping import WATCHED, SkippedSteps

RARELY = 10
"""Where a policy is probed no more often than once in so many steps, these train on untouched images: a pass less."""

LOOKS = 15
"""One look at validation images for each share 1 / LOOKS of the steps made so far, at most: most is learned early."""


class JointTraining:
    """What one run learns, and the step that learns it.

    Args:
        network: the network to train; searched until ``finish_search`` if there are sparse codes in it.
        policy: the augmentation policy to apply, and to learn by its rule, or None to leave images alone.
        validation: endless batches (uint8 images, labels and, if they have any, weights) of held-out images.
        preprocessing: normalisation of the images.
        config: the settings of the run.
        fabric: device and precision.
        generator: CPU generator of the policy's draws.
        limits: what any architecture of the search may cost.
        head: names of the weights with a learning rate and a weight decay of their own; all have the same when empty.

    Attributes:
        hyper: the hyper-parameters.
        batching: what makes of the images that are drawn what ``train`` takes.
        every: steps from one look at validation images to the next.
        found: what each of the sparse codes had chosen when the search ended; None before.
        skipped: the steps left out because their loss or gradient was not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: AugmentationPolicy | None,
        validation: Iterator[tuple[Tensor, ...]],
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
        learner = None if policy is None else PolicyLearning(policy, config.augmentation, fabric, generator)
        self.batching = Batching(learner, config, preprocessing.image_size, fabric)
        self.needs_validation = (
            bool(self.hyper.learned)
            or (learner is not None and learner.by_validation)
            or config.architecture.loss == "validation"
        )
        self.skipped = SkippedSteps(fabric)
        self.smoothing = torch.tensor(config.hyperparameters.label_smoothing, device=fabric.device)
        self.schedule = torch.zeros((), device=fabric.device)
        self.steps, self.settled, self.every = 0, False, config.every
        self.found: list[Tensor] | None = None
        self._begin(network)

    def _begin(self, network: nn.Module) -> None:
        self.passes = Passes(network, self.preprocessing, self.fabric, self.given)
        self.plain, self.network = self.passes.plain, self.passes.network
        self.codes = sparse_codes(network)
        self.searching = bool(self.codes)
        compressed = [c.compressed for c in self.codes]
        named = {n: p for n, p in network.named_parameters() if p.requires_grad and all(p is not c for c in compressed)}
        self.weights = list(named.values())
        groups = [[p for n, p in named.items() if n not in self.head], [p for n, p in named.items() if n in self.head]]
        self.optimizer = self.hyper.optimizer(groups if self.head else groups[:1])
        if self.searching:
            self.code_optimizer = torch.optim.Adam(
                compressed, lr=self.config.architecture.learning_rate, betas=(0.5, 0.999), fused=True
            )
        # What is still searched has no weights to average yet.
        self.average = None if self.searching else WeightAverage(self.plain)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Train on one batch, or on several one after the other: ``batching.batches``, and ``train`` for each.

        Arguments are those of the former; what is returned is that of ``train``, of all images.
        """
        done = [self.train(batch, progress) for batch in self.batching.batches(images, labels, progress)]
        losses, correct = zip(*done, strict=True)
        return torch.cat(losses), torch.cat(correct)

    def train(self, batch: Batch, progress: float) -> tuple[Tensor, Tensor]:
        """Train on one batch; every ``every`` steps learn policy and hyper-parameters from a validation batch.

        Args:
            batch: one of those that ``batching`` makes.
            progress: share of the run that is over, in [0, 1].

        Returns:
            The loss of each image, without its weight, and whether it was classified correctly, both (N,).
        """
        due = not self.settled and self.steps % self.every == 0
        labels, passes, hyper, probe = batch.labels, self.passes, self.hyper, None
        learner = self.batching.learner_at(progress)
        dropped = hyper.depth.factors(passes.paths, len(labels))
        prober = learner if due and learner is not None and learner.rule is not None else None
        # The losses of untouched images are known where these are trained on, with nothing at random.
        untouched = prober is not None and self.config.every >= RARELY and dropped is None and not passes.others
        inputs = passes.normalise(batch.images if untouched else batch.augmented)
        before, tried = None, None
        if prober is not None:
            # Not after the pass back, which leaves gradients: both would be held at once.
            before = None if untouched else passes.losses(batch.images, labels)
            tried = prober.tried(passes.losses, batch.images, labels)
        losses, logits = passes.train(inputs, labels, hyper.smoothing.value, dropped, batch.weights)
        if tried is not None:
            (draws, changed), plain = tried, per_image(logits, labels) if before is None else before
            probe = draws, weighed(plain, batch.weights), weighed(changed, batch.weights)
        if self.searching:
            if self.config.architecture.loss == "training":
                self._step_codes()
            self.code_optimizer.zero_grad()
        # Candidates that the architecture does not use have no gradient.
        active = self.optimizer.active()
        if due and hyper.learned:
            self.optimizer.look(progress)
        self.schedule.fill_(linear_schedule(progress, self.config.hyperparameters.warmup))
        if self.optimizer.recordable:
            self.passes.graphs(self._move, losses)
        else:
            self._move(losses)

        if due:
            held_out = self._learn(inputs, batch, active, probe, progress)
            if learner is not None and batch.draws is not None and learner.by_signal:
                aligned = learner.by_validation
                signal = passes.alignments(inputs, labels, active, held_out) if aligned else losses
                learner.note(batch.draws, weighed(signal, batch.weights))
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(progress)
        self.steps += 1
        if self.steps % WATCHED == 0:
            self._watch()
        return losses, logits.argmax(1) == labels

    def _move(self, losses: Tensor) -> list[Tensor | None]:
        self.optimizer.step(self.schedule, self.skipped.sound(losses, gradients_of(self.weights)))
        return []

    def _learn(
        self, inputs: Tensor, batch: Batch, active: Sequence[Tensor], probe: Probe | None, progress: float
    ) -> Sequence[Tensor]:
        """Learn from one validation batch, after a step on training images; return the gradient of its loss, if any."""
        hyper, labels = self.hyper, batch.labels
        held_out: Sequence[Tensor] = []
        if not self.needs_validation and probe is None:
            return held_out
        images, answers, *given = next(self.validation)
        weights = given[0] if given else None
        images, losses = pixels(images, self.batching.side(progress)), None
        if self.needs_validation:
            # Smoothed like the training loss: else confidence itself would count as overfitting, and want less decay.
            held_out, losses = self._held_out_gradient(active, images, answers, weights)
        learner = self.batching.learner
        if learner is not None and probe is not None:
            draws, changed = learner.tried(self.passes.losses, images, answers)
            plain = self.passes.losses(images, answers) if losses is None else losses
            learner.learn(probe, (draws, weighed(plain, weights), weighed(changed, weights)), progress)
        if self.searching and self.config.architecture.loss == "validation":
            self._step_codes()
            self.code_optimizer.zero_grad()
        if hyper.learned:
            hyper.learn_rates(self.optimizer, active, held_out, progress)
        if "label_smoothing" in hyper.learned:
            # The next pass would take its place.
            held_out = [gradient.clone() for gradient in held_out]
            unsmoothed = torch.zeros_like(self.smoothing)
            plain, _ = self.passes.held_out(images, answers, unsmoothed, self._wanted(active), weights)
            with self.passes.quietly():
                arguments = labels, active, plain[: len(active)], progress, batch.weights
                hyper.learn_smoothing(self.plain(inputs), *arguments)
        if "drop_path" in hyper.learned:
            with self.passes.quietly():
                arguments = labels, self.passes.paths, active, held_out, progress, batch.weights
                hyper.learn_drop_path(lambda: self.plain(inputs), *arguments)
        return held_out

    def _wanted(self, active: Sequence[Tensor]) -> list[Tensor]:
        """Return what the gradient of the validation loss is wanted of: weights, and the codes if they descend it."""
        descend = self.searching and self.config.architecture.loss == "validation"
        return [*active, *(codes.compressed for codes in self.codes if descend)]

    def _held_out_gradient(
        self, active: Sequence[Tensor], images: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradient of the loss of validation images, and the loss of each without label smoothing."""
        gradients, losses = self.passes.held_out(images, labels, self.smoothing, self._wanted(active), weights)
        if len(gradients) > len(active):
            for codes, gradient in zip(self.codes, gradients[len(active) :], strict=True):
                codes.compressed.grad = gradient
        return gradients[: len(active)], losses

    def inputs(self, images: Tensor, side: int | None = None) -> Tensor:
        """Return what the network takes of untouched images, uint8 (N, C, S, S), at their own or another side."""
        return self.passes.normalise(pixels(images, images.shape[-1] if side is None else side))

    def _watch(self) -> None:
        if self.skipped.look():
            # Once: what goes wrong now and then at any rate would else stop the training.
            self.hyper.slow_down(1)
            self.clean_statistics()

    @torch.no_grad()
    def clean_statistics(self) -> None:
        """Make running statistics finite: a pass that overflowed has left its mark in them, which would never fade."""
        for layer in self.passes.norms:
            for statistics, neutral in ((layer.running_mean, 0.0), (layer.running_var, 1.0)):
                if statistics is not None:
                    statistics.nan_to_num_(neutral, neutral, neutral)

    def _step_codes(self) -> None:
        for codes in self.codes:
            codes.stop_frozen_gradients()
            if codes.compressed.grad is not None:
                codes.compressed.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.code_optimizer.step()

    def recover(self) -> tuple[list[float], bool]:
        """Recover the sparse codes; return how far each node's moved, and whether all nodes are frozen now."""
        before = [codes.choices() for codes in self.codes]
        recoveries = recover(self.codes, self.config.architecture.tolerance, self.limits)
        check_agreed([codes.chosen for codes in self.codes], "architectures", self.fabric)
        if [codes.choices() for codes in self.codes] != before:
            self.passes.forget()
        change = [c for r in recoveries for c in r.change]
        return change, all(all(r.frozen) for r in recoveries)

    def finish_search(self) -> None:
        """Go on with the derived network alone: the same function, with no architecture parameters."""
        self.found, possible = [codes.chosen.clone() for codes in self.codes], self.passes.graphs.possible
        # What is recorded knows the passes that it is kept by: without this they would stay, and all candidates with
        # them, until Python looks for such circles.
        self.passes.forget()
        self._begin(self.derived())
        self.passes.graphs.possible = possible

    def search_again(self, network: nn.Module) -> None:
        """Go back to before the end of the search, in a network as it was when the run began."""
        self.found, possible = None, self.passes.graphs.possible
        self.passes.forget()
        self._begin(network)
        self.passes.graphs.possible = possible

    def is_sound(self) -> bool:
        """Return whether all weights are finite; waits for the device."""
        return bool(norm(self.weights).isfinite())

    def space_looks(self) -> None:
        """Look at validation images every ``config.every`` steps, and more rarely, by multiples, as steps add up."""
        self.every = self.config.every * max(1, round(self.steps / (LOOKS * self.config.every)))

    def settle(self) -> None:
        """Keep policy and hyper-parameters as they are from now on: validation images are looked at no more."""
        self.settled = True

    def derived(self) -> nn.Module:
        """Return the plain network as it is now; a copy while the search goes on."""
        return derive(self.plain) if self.searching else self.plain
