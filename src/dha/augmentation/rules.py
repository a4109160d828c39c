"""The update rules of the policy: gradients of its logits from what one batch showed, as pure functions.

Each gradient is to be descended; hand it to an optimiser over `AugmentationPolicy.parameters()`. For steps that depend
neither on the scale of the loss nor on the learning rate, hand in standardised values:

    values = standardise(alignments(per_image_losses, weights, validation_gradient_of_the_weights))
    gradients = validation_gradient(policy, draws.pairs, values, learning_rate=1.0)
"""

# torch lists its `_foreach` functions, one launch for all tensors, in the documentation but not in its type stubs.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dha.augmentation.policy import AugmentationPolicy


@torch.no_grad()
def alignments(
    per_image_losses: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    relative_step: float = 1e-4,
) -> Tensor:
    """Return a_k = <direction, gradient of loss k> for every image k of a batch, from two passes without gradients.

    A central difference: a_k = (loss_k(theta + eps d) - loss_k(theta - eps d)) / (2 eps), with error O(eps^2) where the
    loss is smooth and eps = relative_step |theta| / |d|. With d the gradient of the validation loss, a_k says how much
    a step on image k lowers the validation loss, per unit of learning rate (DHA, Zhou et al., TMLR 2022; the difference
    is that of DARTS, Liu et al., ICLR 2019, equation 8).

    Args:
        per_image_losses: returns the losses (n,) at the current parameters. It is called twice and must be
            deterministic (fixed images, same dropout mask) and keep its own side effects, such as the running
            statistics of BatchNorm, in check.
        parameters: the weights theta, on one device. They are moved in place, and put back to the bit even if
            `per_image_losses` raises.
        direction: d, in the shapes of the parameters.
        relative_step: length of the step as a share of |theta|. The default was measured to be best in float32 (error
            .1 to 1 % on small networks with BatchNorm and ReLU): kinks of ReLU add error above it,
            rounding below it. Arithmetic in TF32 or 16 bits rounds far more; evaluate the losses in float32.

    Returns:
        The alignments (n,), on the device of the losses; zeros for a zero direction. Nothing waits for the device.
    """
    weights, saved = list(parameters), [tensor.clone() for tensor in parameters]
    length = _norm(direction)
    step = torch.where(length > 0, relative_step * _norm(weights) / length, 0.0)
    move = torch._foreach_mul(list(direction), step)
    try:
        torch._foreach_add_(weights, move)
        ahead = per_image_losses().detach().clone()
        torch._foreach_copy_(weights, saved)
        torch._foreach_sub_(weights, move)
        behind = per_image_losses().detach()
    finally:
        torch._foreach_copy_(weights, saved)
    return torch.where(step > 0, (ahead - behind) / (2 * step), 0.0)


def validation_gradient(
    policy: AugmentationPolicy, pairs: Tensor, alignments: Tensor, learning_rate: float
) -> list[Tensor]:
    """Return an unbiased estimate of the gradient of the validation loss in the policy's logits tau, to be descended.

    One SGD step on n augmented images, theta' = theta - (lr / n) sum_k grad loss_k, gives to first order
    L_val(theta') = L_val(theta) - (lr / n) sum_k a_k with a_k = <grad L_val, grad loss_k>. The pairs are independent
    draws from p, so the derivative of the expectation is that of the score function (REINFORCE, Williams 1992):

        dE[L_val] / d tau = -(lr / n) E[ sum_k (a_k - b_k) d log p(pair_k) / d tau ],

    where the baseline b_k, the mean alignment of the other images, does not depend on pair k, so changes only the
    variance. If grad L_val is taken at theta' instead, as DHA does, the same formula holds to first order in lr.

    Args:
        policy: the policy the pairs were drawn from, with the logits it had then.
        pairs: int64 (n, 2) on the CPU.
        alignments: a_k, (n,) on any device (copying them to the CPU waits for it).
        learning_rate: lr of the step on theta.

    Returns:
        One gradient per tensor of `policy.parameters()`; zeros for n = 1, where there is nothing to compare with.
    """
    return _score_gradient(policy, pairs, -learning_rate * alignments)


def adversarial_gradient(policy: AugmentationPolicy, pairs: Tensor, losses: Tensor) -> list[Tensor]:
    """Return the gradient whose descent raises the probability of pairs with a high training loss.

    It is -(1 / n) sum_k (loss_k - b_k) d log p(pair_k) / d tau: REINFORCE with the loss as reward, as in Adversarial
    AutoAugment (Zhang et al., ICLR 2020), with the baseline of `validation_gradient`.

    Args:
        policy: the policy the pairs were drawn from, with the logits it had then.
        pairs: int64 (n, 2) on the CPU.
        losses: the training loss of each image, (n,) on any device (copying them to the CPU waits for it).

    Returns:
        One gradient per tensor of `policy.parameters()`; zeros for n = 1.
    """
    return _score_gradient(policy, pairs, -losses)


def standardise(values: Tensor) -> Tensor:
    """Return values (n,) minus their mean, over their standard deviation; equal values give zeros."""
    centred = values - values.mean()
    # The floor is relative to the values, so that rounding in equal values is not blown up to unit size.
    floor = 1e-5 * values.abs().amax() + torch.finfo(values.dtype).tiny
    return centred / (centred.square().mean().sqrt() + floor)


def _score_gradient(policy: AugmentationPolicy, pairs: Tensor, costs: Tensor) -> list[Tensor]:
    """The score-function estimate of the gradient of the mean cost, with leave-one-out baseline."""
    n = len(costs)
    costs = costs.detach().to("cpu", torch.float32)
    # c_k minus the mean of the others equals n / (n - 1) times c_k minus the mean of all; the 1 / n cancels.
    weights = (costs - costs.mean()) / max(n - 1, 1)
    return list(torch.autograd.grad(weights @ policy.log_probability(pairs), policy.parameters()))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).norm()
