"""One-step hypergradients of SGD with momentum and of AdamW, in closed form.

The step of SGD is ``m' = momentum * m + g + weight_decay * theta`` and ``theta' = theta - lr * m'``; that of AdamW is
``theta' = theta - lr * u`` with the ``u`` of ``adamw_update``. With ``g_v`` the gradient of the validation loss at
theta', the chain rule gives each derivative as an inner product, so no graph of the step is kept. Learning rate and
weight decay have the same formulas in both.

Source: DHA (Zhou et al., TMLR 2022), eq. 7-9; hypergradient descent (Baydin et al., ICLR 2018) is the case g_v = next
training gradient. AdamW: Loshchilov & Hutter (ICLR 2019), algorithm 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = Sequence[Tensor]


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Return the inner product of two lists of tensors of equal shapes, as a tensor without dimensions."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def norm(a: Tensors) -> Tensor:
    """Return the Euclidean norm of a list of tensors, as a tensor without dimensions."""
    return torch.stack(torch._foreach_norm(list(a))).norm()  # pyright: ignore[reportPrivateImportUsage]


def cosine(a: Tensors, b: Tensors) -> Tensor:
    """Return the cosine of the angle between two lists of tensors, in [-1, 1]; 0 where either is zero."""
    return dot(a, b) / (norm(a) * norm(b)).clamp_min(1e-30)


def learning_rate_gradient(validation_gradient: Tensors, update: Tensors) -> Tensor:
    """Return d L_val / d lr = -<g_v, m'> for the update that the step took, ``m'`` or ``u``."""
    return -dot(validation_gradient, update)


def weight_decay_gradient(validation_gradient: Tensors, weights: Tensors, learning_rate: Tensor | float) -> Tensor:
    """Return d L_val / d weight_decay = -lr <g_v, theta> for the weights ``theta`` before the step."""
    return -learning_rate * dot(validation_gradient, weights)


def momentum_gradient(validation_gradient: Tensors, buffers: Tensors, learning_rate: Tensor | float) -> Tensor:
    """Return d L_val / d momentum = -lr <g_v, m> for the momentum buffers ``m`` before the step."""
    return -learning_rate * dot(validation_gradient, buffers)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Return ``cross_entropy`` of each image, (N,), with a label smoothing that nothing has to wait for.

    Args:
        logits: float32 (N, classes).
        labels: int64, (N,).
        smoothing: in [0, 1), without dimensions, on the device.
    """
    logs = logits.log_softmax(1)
    losses = F.nll_loss(logs, labels, reduction="none")
    return losses - smoothing * (logs.mean(1) + losses)


def weighed(values: Tensor, image_weights: Tensor | None) -> Tensor:
    """Return values (n,) of images, each times the weight of its image if there are any."""
    return values if image_weights is None else values * image_weights


def mean_loss(losses: Tensor, image_weights: Tensor | None) -> Tensor:
    """Return the mean of losses (n,), each times the weight of its image if there are any: over all training images the
    mean of these is 1, so that a batch counts as much as there is weight in it.
    """
    return weighed(losses, image_weights).mean()


def smoothing_direction(
    logits: Tensor, labels: Tensor, weights: Tensors, image_weights: Tensor | None = None
) -> Tensors:
    """Return how the gradient of the mean training loss changes with label smoothing s, in the shapes of ``weights``.

    The smoothed loss is (1 - s) CE + s U, where U is the cross-entropy against equal shares of all classes, so that the
    direction is the gradient of U - CE, whatever s is. A step of SGD gives d L_val / d s = -lr <g_v, direction>.

    Args:
        logits: (N, classes), with the graph that leads to ``weights``.
        labels: int64, (N,).
        weights: those that the step moves.
        image_weights: (N,), how much each image counts; None for all alike.
    """
    if image_weights is None:
        change = F.cross_entropy(logits, labels, label_smoothing=1.0) - F.cross_entropy(logits, labels)
    else:
        uniform, own = (F.cross_entropy(logits, labels, label_smoothing=s, reduction="none") for s in (1.0, 0.0))
        change = mean_loss(uniform - own, image_weights)
    return torch.autograd.grad(change, list(weights), materialize_grads=True)


def drop_path_direction(more: Tensor, less: Tensor, weights: Tensors) -> Tensors:
    """Return how the gradient of the training loss changes with the probability p of dropping a branch.

    With E(p) the mean loss over what is dropped, its derivative is taken by a central difference, E(p + d) - E(p - d) =
    2 d E'(p) + O(d^3), of which ``more - less`` is an unbiased estimate, a good one if both have the same draws. A step
    of SGD gives d L_val / d p = -lr <g_v, direction> / (2 d).

    Args:
        more: mean loss of some images, with branches dropped at p + d.
        less: of the same, at p - d.
        weights: those that the step moves, which both losses lead back to.
    """
    return torch.autograd.grad(more - less, list(weights), materialize_grads=True)


def adamw_update(
    weights: Tensors,
    averages: Tensors,
    squares: Tensors,
    count: int,
    weight_decay: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> list[Tensor]:
    """Return the update ``u`` of AdamW, whose step is ``theta' = theta - lr * u``.

    Args:
        weights: theta, before the step.
        averages: the moving averages of gradients, with that of this step in them.
        squares: the same of squared gradients.
        count: steps taken, with this one; at least 1.
        weight_decay: decoupled from the gradient.
        betas: how much is kept of each average in a step, in [0, 1).
        epsilon: added to the root of the squares.
    """
    scales = _adam_scales(squares, count, betas, epsilon)
    correction = 1 - betas[0] ** count
    return [m / (correction * d) + weight_decay * w for w, m, d in zip(weights, averages, scales, strict=True)]


def adamw_momentum_gradient(
    validation_gradient: Tensors,
    gradients: Tensors,
    averages: Tensors,
    squares: Tensors,
    count: int,
    learning_rate: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> Tensor:
    """Return d L_val / d beta1 = -lr <g_v, du / d beta1> of AdamW, through average and bias correction.

    Args:
        validation_gradient: g_v.
        gradients: of the training loss, in this step.
        averages: the moving averages of gradients before the step.
        squares: the moving averages of squared gradients, with that of this step in them.
        count: steps taken, with this one; at least 1.
        learning_rate: of this step.
        betas: how much is kept of each average in a step, in [0, 1).
        epsilon: added to the root of the squares.
    """
    beta, correction = betas[0], 1 - betas[0] ** count
    correction_slope = count * beta ** (count - 1) / correction**2
    moves = [
        ((m - g) / correction + (beta * m + (1 - beta) * g) * correction_slope) / d
        for g, m, d in zip(gradients, averages, _adam_scales(squares, count, betas, epsilon), strict=True)
    ]
    return -learning_rate * dot(validation_gradient, moves)


def _adam_scales(squares: Tensors, count: int, betas: tuple[float, float], epsilon: float) -> list[Tensor]:
    return [(v / (1 - betas[1] ** count)).sqrt() + epsilon for v in squares]
