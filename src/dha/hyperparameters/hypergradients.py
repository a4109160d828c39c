"""One-step hypergradients of SGD with momentum, in closed form.

The step is ``m' = momentum * m + g + weight_decay * theta`` and ``theta' = theta - lr * m'``. With ``g_v`` the gradient
of the validation loss at theta', the chain rule gives each derivative as an inner product, so no graph of the step is
kept.

Source: DHA (Zhou et al., TMLR 2022), eq. 7-9; hypergradient descent (Baydin et al., ICLR 2018) is the case g_v = next
training gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
    """Return d L_val / d lr = -<g_v, m'> for the update direction ``m'`` that the step took."""
    return -dot(validation_gradient, update)


def weight_decay_gradient(validation_gradient: Tensors, weights: Tensors, learning_rate: Tensor | float) -> Tensor:
    """Return d L_val / d weight_decay = -lr <g_v, theta> for the weights ``theta`` before the step."""
    return -learning_rate * dot(validation_gradient, weights)


def momentum_gradient(validation_gradient: Tensors, buffers: Tensors, learning_rate: Tensor | float) -> Tensor:
    """Return d L_val / d momentum = -lr <g_v, m> for the momentum buffers ``m`` before the step."""
    return -learning_rate * dot(validation_gradient, buffers)
