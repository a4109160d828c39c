"""Muon with a learned learning rate and weight decay: SGD whose steps of convolutions are orthogonal matrices."""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dha.hyperparameters.learned_optimizer import LearnedSGD, gradients_of

QUINTIC = (3.4445, -4.775, 2.0315)
"""Coefficients of x, x^3 and x^5; applied again and again, singular values of at most 1 come to between .7 and 1.2."""

ITERATIONS = 3
"""How often the polynomial is applied: five leave smaller singular values behind, and train no better."""

STEP = 0.01
"""Singular values of a step, at a momentum of .9 and a learning rate of .1."""


def orthogonal(matrices: Tensor, iterations: int = ITERATIONS, length: float | Tensor = 1.0) -> Tensor:
    """Return matrices with the singular vectors of those given, and singular values nearer to ``length``.

    Args:
        matrices: (..., rows, columns), of any scale; a matrix of zeros stays one.
        iterations: of Newton and Schulz, with the polynomial ``QUINTIC``; at least 1.
        length: what singular values come to; without dimensions if a tensor.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    first, third, fifth = QUINTIC
    norms = torch.ones((), device=x.device)
    # All but two products is done to the small squares: what is as large as the weights takes longer to read than to
    # multiply by.
    for iteration in range(iterations):
        square = x @ x.mT
        if iteration == 0:
            norms = square.diagonal(dim1=-2, dim2=-1).float().sum(-1).clamp_min(1e-30)[..., None, None]
            square = (square / norms).to(x.dtype)
        factor = third * square + fifth * (square @ square)
        factor.diagonal(dim1=-2, dim2=-1).add_(first)
        if iteration == 0:
            factor = (factor / norms.sqrt()).to(x.dtype)  # As if the matrix had been divided.
        if iteration == iterations - 1:
            factor = (factor * length).to(x.dtype)
        x = factor @ x
    return x.mT if tall else x


def is_matrix(weight: Tensor) -> bool:
    """Return whether a weight is the kernel of a convolution from several channels to several: a matrix."""
    return weight.dim() == 4 and min(weight.shape[:2]) > 1


class LearnedMuon(LearnedSGD):
    """SGD with Nesterov momentum whose step, of the kernels of convolutions, is made orthogonal: ``is_matrix``.

    With G what SGD moves by, as a matrix with a row for each channel that comes out, and r the learning rate over 1
    minus the momentum, which is how far SGD goes in the long run,

        theta <- (1 - r wd) theta - STEP r orthogonal(G),

    so that all directions are learned at one speed, and not those alone in which gradients are large. All other weights
    are moved as by ``LearnedSGD``. Arguments and learning rule are those of ``LearnedOptimizer``.

    Attributes:
        dtype: that matrices are made orthogonal in; bfloat16 is enough, where the hardware computes in it.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    dtype = torch.float32

    def _before(self, weights: list[Tensor], share: Tensor, group: dict[str, Any], sound: Tensor | None) -> None:
        others, weights = [w for w in weights if not is_matrix(w)], [w for w in weights if is_matrix(w)]
        if others:
            super()._before(others, share, group, sound)
        if not weights:
            return
        momentum, reach = group["momentum"], group["lr"] / (1 - group["momentum"])
        gradients, kept = gradients_of(weights), torch.full_like(reach, momentum)
        if sound is not None:
            gradients = [torch.where(sound, gradient, 0.0) for gradient in gradients]
            kept, reach = torch.where(sound, kept, 1.0), reach * sound
        sums = self._sums(weights)
        for total, gradient in zip(sums, gradients, strict=True):
            torch.addcmul(gradient, total, kept, out=total)
        steps = self._orthogonal(gradients, sums, momentum, -STEP * reach)
        remains = 1 - reach * share
        for weight, step in zip(weights, steps, strict=True):
            torch.addcmul(step, weight, remains, out=weight)
        if self.friction is not None:
            for weight, gradient in zip(weights, gradients, strict=True):
                self.optimizer.state[weight]["newest"] = gradient
        # What has moved is not for the optimiser of torch.
        for weight in weights:
            weight.grad = None

    def _orthogonal(
        self, gradients: Sequence[Tensor], sums: Sequence[Tensor], share: float, length: float | Tensor
    ) -> list[Tensor]:
        """Return gradients + share sums, (out, in, height, width) each, as orthogonal matrices of this length.

        Those of one shape are made so at once.
        """
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, total in enumerate(sums):
            alike[len(total), total[0].numel()].append(place)
        found: dict[int, Tensor] = {}
        for shape, places in alike.items():
            matrices = torch.empty(len(places), *shape, dtype=self.dtype, device=sums[0].device)
            for matrix, place in zip(matrices, places, strict=True):
                torch.add(gradients[place], sums[place], alpha=share, out=_like(matrix, sums[place]))
            # One by itself is multiplied by its transpose as it is, without a copy.
            matrices = matrices.squeeze(0)
            found |= dict(zip(places, orthogonal(matrices, length=length).float().view(-1, *shape), strict=True))
        return [_like(found[place], total) for place, total in enumerate(sums)]

    def _older(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        matrices = [weight for weight in weights if is_matrix(weight)]
        others = [weight for weight in weights if not is_matrix(weight)]
        found = dict(zip(others, super()._older(others), strict=True)) if others else {}
        if matrices:
            sums, newest = self._sums(matrices), [self.optimizer.state[weight]["newest"] for weight in matrices]
            older, newer = (self._orthogonal(parts, parts, 0.0, STEP) for parts in (sums, newest))
            found |= dict(zip(matrices, torch._foreach_sub(older, newer), strict=True))
        return [found[weight] for weight in weights]


def _like(matrix: Tensor, kernel: Tensor) -> Tensor:
    """View a matrix (rows, columns) as a kernel is laid out in memory: the order of columns makes no difference."""
    out, channels, height, width = kernel.shape
    if kernel.is_contiguous(memory_format=torch.channels_last):
        return matrix.view(out, height, width, channels).permute(0, 3, 1, 2)
    return matrix.view(out, channels, height, width)
