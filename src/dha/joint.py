"""The joint step: weights, architecture, augmentation policy and hyper-parameters, all moved by one pass over a batch.

Source: DHA (Zhou et al., TMLR 2022, arXiv 2109.05765), algorithm 1; the equations are in ``docs/design.md``, section 2.
"""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dha.architecture import CellNetwork, CellSearchNetwork
from dha.augmentation import PairPolicy, adversarial_gradient, alignments, standardise, validation_gradient
from dha.config import Config, learned_parts
from dha.data import Preprocessing
from dha.engine import HostCopy
from dha.hyperparameters import LearnedScalar, cosine, cosine_schedule


class JointTraining:
    """What one run learns, and the step that learns it.

    Args:
        network: the network to train, searched until ``finish_search``.
        policy: the augmentation policy to learn, or None to leave images alone.
        validation: endless batches (uint8 images, labels) of held-out images.
        preprocessing: normalisation of the images.
        config: the settings of the run.
        fabric: device and precision.
        generator: CPU generator of the policy's draws.
    """

    def __init__(
        self,
        network: CellSearchNetwork,
        policy: PairPolicy | None,
        validation: Iterator[tuple[Tensor, Tensor]],
        preprocessing: Preprocessing,
        config: Config,
        fabric: Fabric,
        generator: torch.Generator,
    ) -> None:
        settings = config.hyperparameters
        self.policy, self.validation, self.preprocessing = policy, validation, preprocessing
        self.config, self.fabric, self.generator = config, fabric, generator
        self.learns_hyperparameters = "hyperparameters" in learned_parts(config.learn)
        self.by_validation = config.augmentation.rule == "validation"
        self.needs_validation = self.learns_hyperparameters or (policy is not None and self.by_validation)
        self.peak = LearnedScalar(settings.learning_rate, 1e-4, 1.0, fabric.device)
        self.weight_decay = LearnedScalar(settings.weight_decay, 1e-6, 1e-2, fabric.device)
        if policy is not None:
            self.policy_optimizer = torch.optim.Adam(policy.parameters(), lr=config.augmentation.learning_rate)
        self.pending: tuple[Tensor, HostCopy] | None = None
        self.steps = 0
        self.codes = network.codes
        self._train(network)

    def _train(self, network: CellNetwork) -> None:
        self.plain = network.to(self.fabric.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = self.fabric.setup_module(self.plain)
        self.searching = isinstance(network, CellSearchNetwork)
        self.norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        self.weights = [p for name, p in network.named_parameters() if name != "codes.compressed"]
        # Fused, because that is the SGD of torch that reads a learning rate from the device without waiting for it.
        self.optimizer = torch.optim.SGD(
            self.weights, lr=self.peak.value, momentum=self.config.hyperparameters.momentum, fused=True
        )
        # From the start, because the fused step wants all weights to have one, and candidates join one by one.
        for weight in self.weights:
            self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        if isinstance(network, CellSearchNetwork):
            self.code_optimizer = torch.optim.Adam(
                [network.codes.compressed], lr=self.config.architecture.learning_rate, betas=(0.5, 0.999)
            )

    def step(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Train on one batch; every ``config.every`` steps learn policy and hyper-parameters from a validation batch.

        Args:
            images: uint8, (N, C, H, W), on the device.
            labels: int64, (N,), on the device.
            progress: share of the run that is over, in [0, 1].

        Returns:
            The loss of each image and whether it was classified correctly, both (N,), on the device.
        """
        pixels, draws = images.float() / 255, None
        if self.policy is not None:
            draws = self.policy.draw(len(labels), self.generator)
            pixels = self.policy.apply(pixels, draws)
        inputs = self._normalise(pixels)

        logits = self.network(inputs)
        losses = F.cross_entropy(logits, labels, reduction="none")
        self.fabric.backward(losses.mean())
        if isinstance(self.plain, CellSearchNetwork):
            self.plain.codes.stop_frozen_gradients()
            self.code_optimizer.step()
            self.code_optimizer.zero_grad()
        # Candidates that the architecture does not use have no gradient: they neither move nor decay.
        active = [p for p in self.weights if p.grad is not None]
        settings = self.config.hyperparameters
        schedule = cosine_schedule(progress, settings.warmup)
        self._step_weights(active, schedule)

        if self.steps % self.config.every == 0:
            self._update_policy()
            held_out = self._held_out_gradient(active) if self.needs_validation else []
            if self.learns_hyperparameters:
                updates = [self.optimizer.state[p]["momentum_buffer"] for p in active]
                rate = settings.rate * schedule
                self.peak.move(cosine(held_out, updates) - settings.resting_cosine, rate)
                self.weight_decay.move(cosine(held_out, active), rate)
            if draws is not None:
                signal = self._alignments(inputs, labels, active, held_out) if self.by_validation else losses.detach()
                self.pending = draws.pairs, HostCopy(signal)
        self.optimizer.zero_grad()
        self.steps += 1
        return losses.detach(), logits.detach().argmax(1) == labels

    def _normalise(self, pixels: Tensor) -> Tensor:
        return self.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)

    def _step_weights(self, active: Sequence[Tensor], schedule: float) -> None:
        gradients = [p.grad for p in active if p.grad is not None]
        with torch.no_grad():
            # Not left to the optimiser: the coefficient is learned, and lives on the device.
            torch._foreach_add_(gradients, torch._foreach_mul(list(active), self.weight_decay.value))
        self.optimizer.param_groups[0]["lr"] = self.peak.value * schedule
        self.optimizer.step()

    def _held_out_gradient(self, active: Sequence[Tensor]) -> Sequence[Tensor]:
        images, labels = next(self.validation)
        # Past Fabric's wrapper, which wants every backward pass to be one of training.
        with running_statistics_kept(self.norms), self.fabric.autocast():
            loss = F.cross_entropy(self.plain(self._normalise(images.float() / 255)), labels)
        return torch.autograd.grad(loss, active)

    def _alignments(
        self, inputs: Tensor, labels: Tensor, active: Sequence[Tensor], held_out: Sequence[Tensor]
    ) -> Tensor:
        # In float32 whatever the precision of the run: the rounding of bfloat16 would drown the differences.
        def losses() -> Tensor:
            return F.cross_entropy(self.plain(inputs), labels, reduction="none")

        with running_statistics_kept(self.norms):
            return alignments(losses, active, held_out)

    def _update_policy(self) -> None:
        # The signal of the update before this one: by now its copy to the host is done, so that nothing has to wait.
        # An image whose loss overflowed says nothing about its pair.
        if self.policy is None or self.pending is None:
            return
        pairs, signal = self.pending[0], standardise(self.pending[1].wait().nan_to_num(0.0, 0.0, 0.0))
        if self.by_validation:
            gradients = validation_gradient(self.policy, pairs, signal, learning_rate=1.0)
        else:
            gradients = adversarial_gradient(self.policy, pairs, signal)
        for logits, gradient in zip(self.policy.parameters(), gradients, strict=True):
            logits.grad = gradient
        self.policy_optimizer.step()

    def recover(self) -> tuple[list[float], bool]:
        """Recover the sparse codes; return how far each node's moved, and whether all nodes are frozen now."""
        assert isinstance(self.plain, CellSearchNetwork)
        change = self.plain.recover(self.config.architecture.tolerance)
        return change, bool(self.plain.codes.frozen.all())

    def finish_search(self) -> None:
        """Go on with the derived network alone: the same function, with no architecture parameters."""
        self._train(self.derived())

    def derived(self) -> CellNetwork:
        """Return the plain network as it is now; a copy while the search goes on."""
        return self.plain.derive() if isinstance(self.plain, CellSearchNetwork) else self.plain


@contextmanager
def running_statistics_kept(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Let BatchNorm layers in training mode use batch statistics without recording them."""
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
