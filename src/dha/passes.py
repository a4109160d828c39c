"""The passes through a network that a joint step is made of: one that trains it, and those that leave no trace in it.

On one CUDA device, passes through the networks of our spaces are recorded as CUDA graphs.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dha.architecture import drop_paths, dropping, layout
from dha.augmentation import alignments
from dha.data import Preprocessing
from dha.engine import Graphs, averaged, precision_of, undisturbed
from dha.hyperparameters import mean_loss, smoothed_cross_entropy


class Passes:
    """Passes of batches through a network.

    Args:
        network: moved to the device.
        preprocessing: normalisation of the images.
        fabric: device and precision.
        given: whether the network was brought, and nothing is known of what it does.

    Attributes:
        plain: the network.
        network: the same as it is trained, in one process or several.
        paths: where its branches can be dropped.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, fabric: Fabric, given: bool) -> None:
        self.preprocessing, self.fabric, self.layout = preprocessing, fabric, layout(network)
        self.plain = network.to(fabric.device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.network = fabric.setup_module(self.plain)
        self.paths = drop_paths(network)
        self.norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        # Nothing else is random in the networks of our spaces.
        self.others = [m for m in network.modules() if given and not isinstance(m, BatchNorm)]
        self.trained = [weight for weight in network.parameters() if weight.requires_grad]
        self._wanted: list[Tensor] = []
        self.graphs = Graphs(fabric.device.type == "cuda" and fabric.world_size == 1 and not given)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Let passes through the network leave no trace in it, in the precision of the run."""
        with undisturbed(self.norms, self.others), self._precision():
            yield

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.graphs.possible:
            return self.fabric.autocast()
        # A weight that was cast before could not be cast anew at every replay.
        half = precision_of(self.fabric) == "bf16"
        return torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Return what the network takes of images, float32 (N, C, H, W) in [0, 1]."""
        return self.preprocessing.normalise(images).contiguous(memory_format=self.layout)

    def train(
        self,
        inputs: Tensor,
        labels: Tensor,
        smoothing: Tensor,
        factors: Tensor | None,
        image_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pass a batch through the network and back; the gradients of its mean loss are those of the weights then.

        Args:
            inputs: normalised, (N, C, H, W).
            labels: int64, (N,).
            smoothing: label smoothing, without dimensions, on the device.
            factors: what dropped branches are multiplied by, as in ``dropping``.
            image_weights: how much each image counts in the mean, (N,); None for all alike.

        Returns:
            The loss (N,), without its weight, and the logits (N, classes) of each image; these until the next pass.
        """
        arguments = (inputs, labels, smoothing) if factors is None else (inputs, labels, smoothing, factors)
        if not self.graphs.possible:
            # Fabric's wrapper and its backward pass bring the gradients of several processes together.
            losses, logits = self._losses_and_logits(self.network, *arguments)
            self.fabric.backward(mean_loss(losses, image_weights))
            return losses.detach(), logits.detach()
        if image_weights is None:
            losses, logits, *gradients = self.graphs(self._gradients, *arguments)
        else:
            losses, logits, *gradients = self.graphs(self._weighted_gradients, image_weights, *arguments)
        for weight, gradient in zip(self.trained, gradients, strict=True):
            weight.grad = gradient
        assert losses is not None
        assert logits is not None
        return losses.clone(), logits

    def _weighted_gradients(self, image_weights: Tensor, *arguments: Tensor) -> list[Tensor | None]:
        return self._gradients(*arguments, image_weights=image_weights)

    def _gradients(self, *arguments: Tensor, image_weights: Tensor | None = None) -> list[Tensor | None]:
        with self._precision():
            losses, logits = self._losses_and_logits(self.plain, *arguments)
        # Candidates that the architecture does not use have no gradient.
        gradients = torch.autograd.grad(mean_loss(losses, image_weights), self.trained, allow_unused=True)
        return [losses.detach(), logits.detach(), *gradients]

    def _losses_and_logits(
        self, network: nn.Module, inputs: Tensor, labels: Tensor, smoothing: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        with nullcontext() if factors is None else dropping(self.paths, factors):
            logits = network(inputs)
        return smoothed_cross_entropy(logits.float(), labels, smoothing), logits

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (N,) of each of some images, float32 in [0, 1]; without a trace."""
        (losses,) = self.graphs(self._losses, images, labels)
        assert losses is not None
        return losses.clone()

    def _losses(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        with self.quietly():
            return [per_image(self.plain(self.normalise(images)), labels)]

    def held_out(
        self,
        images: Tensor,
        labels: Tensor,
        smoothing: Tensor,
        weights: Sequence[Tensor],
        image_weights: Tensor | None = None,
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradient of the mean loss of validation images in some weights, until the next call, and the loss
        of each image without label smoothing; without a trace.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            labels: int64, (N,).
            smoothing: label smoothing, without dimensions, on the device.
            weights: those that the gradient is wanted of; zeros for those that have no part in the loss.
            image_weights: how much each image counts in the mean, (N,); None for all alike.
        """
        if [id(w) for w in weights] != [id(w) for w in self._wanted]:
            self._wanted = list(weights)
            self.forget()
        counted = () if image_weights is None else (image_weights,)
        losses, *gradients = self.graphs(self._held_out, images, labels, smoothing, *counted)
        found = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        assert losses is not None
        return averaged(found, self.fabric), losses.clone()

    def _held_out(
        self, images: Tensor, labels: Tensor, smoothing: Tensor, image_weights: Tensor | None = None
    ) -> list[Tensor | None]:
        # Past Fabric's wrapper, which wants every backward pass to be one of training.
        with self.quietly():
            logits = self.plain(self.normalise(images)).float()
        losses = per_image(logits.detach(), labels)
        loss = mean_loss(smoothed_cross_entropy(logits, labels, smoothing), image_weights)
        return [losses, *torch.autograd.grad(loss, self._wanted, allow_unused=True)]

    def forget(self) -> None:
        """Take up that the network computes something else now."""
        self.graphs.forget()

    def alignments(
        self, inputs: Tensor, labels: Tensor, weights: Sequence[Tensor], direction: Sequence[Tensor]
    ) -> Tensor:
        """Return ``dha.augmentation.alignments`` of images with a direction in the space of the weights."""

        # In float32 whatever the precision of the run: the rounding of bfloat16 would drown the differences.
        def losses() -> Tensor:
            return per_image(self.plain(inputs), labels)

        with undisturbed(self.norms, self.others):
            return alignments(losses, weights, direction)


def per_image(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss (N,) of each image, without label smoothing, of logits (N, classes) in any precision."""
    return F.cross_entropy(logits.float(), labels, reduction="none")
