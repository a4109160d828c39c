"""The hypergradient over a horizon against autograd through five unrolled steps, discounted as in forward mode."""

import pytest
import torch
from torch import nn

from dha.hyperparameters import LearnedAdamW, LearnedScalar, LearnedSGD, dot, learning_rate_gradient

STEPS, RATE, MOMENTUM = 5, 0.125, 0.5


def way_of(kind, loss, start, discount, momentum):
    """Return where five steps lead, and how far that is from the average, by the optimiser itself."""
    weights = nn.Parameter(start.clone())
    peak, decay = LearnedScalar(RATE, 1e-4, 1.0), LearnedScalar(0.0, 0.0, 1.0)
    optimizer = kind([[weights]], [peak], [decay], momentum=momentum, horizon=1.0)
    for index in range(STEPS):
        (weights.grad,) = torch.autograd.grad(loss(weights, index), weights)
        optimizer.look((1 - discount) * index)
        optimizer.step(1.0)
    return weights.detach(), optimizer.trail.values[0] - weights.detach()


def unrolled(kind, loss, start, discount, momentum, log):
    """Return the weights after five steps at the rate ``RATE * exp(log)``, as a function of ``log``.

    What a step finds of earlier ones in the weights counts ``discount`` in the derivative: Z = discount A Z + B.
    """
    weights, average, square = start.clone().requires_grad_(), torch.zeros_like(start), torch.zeros_like(start)
    for index in range(STEPS):
        weights = discount * weights + (1 - discount) * weights.detach()
        (gradient,) = torch.autograd.grad(loss(weights, index), weights, create_graph=True)
        if kind is LearnedSGD:
            average = momentum * average + gradient
            update = gradient + momentum * average
        else:
            average = momentum * average + (1 - momentum) * gradient
            square = 0.999 * square + 0.001 * gradient**2
            root = (square / (1 - 0.999 ** (index + 1))).sqrt() + 1e-8
            update = average / (1 - momentum ** (index + 1)) / root
        weights = weights - RATE * torch.exp(log) * update
    return weights


@pytest.mark.parametrize("discount", [0.75, 1.0])
@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_exact_where_weights_do_not_change_later_gradients(kind, discount):
    slopes, start, target = torch.randn(STEPS, 6).double(), torch.randn(6).double(), torch.randn(6).double()

    def loss(weights, index):
        return weights @ slopes[index]

    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    after = unrolled(kind, loss, start, discount, MOMENTUM, log)
    (oracle,) = torch.autograd.grad(((after - target) ** 4).sum(), log)

    weights, way = way_of(kind, loss, start, discount, MOMENTUM)
    torch.testing.assert_close(weights, after.detach())
    assert abs(oracle) > 0.01
    torch.testing.assert_close(learning_rate_gradient([4 * (weights - target) ** 3], [way]), oracle)


@pytest.mark.parametrize("discount", [0.75, 1.0])
def test_too_large_by_at_most_four_times_rate_and_curvature_in_a_bowl(discount):
    # A step of age k is forgotten by the factor (1 - rate * curvature)^k, at most 4 times in 5 steps: that is left out.
    curvature, start = torch.logspace(-3, 0, 7).double(), torch.randn(7).double()

    def loss(weights, index):
        return (curvature * weights**2).sum() / 2

    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    after = unrolled(LearnedSGD, loss, start, discount, 0.0, log)
    exact = torch.stack([torch.autograd.grad(w, log, retain_graph=True)[0] for w in after])
    weights, way = way_of(LearnedSGD, loss, start, discount, 0.0)
    torch.testing.assert_close(weights, after.detach())
    excess = 1 - exact / -way
    assert ((excess > 0) & (excess < 4 * RATE * curvature)).all()
    assert excess[-1] > 0.1, "it is not small where a step is not small against the curvature"
    # So the hypergradient of a validation loss in the flat directions, up to curvature .1, is right to 5 %.
    flat = curvature < 0.11
    g_v = torch.where(flat, curvature * weights, 0.0)
    torch.testing.assert_close(-dot([g_v], [way]), g_v @ exact, rtol=4 * RATE * 0.1, atol=0)
