"""Each closed form against autograd through one real step of SGD."""

import pytest
import torch
from torch import nn

from dha.engine import MovingAverage
from dha.hyperparameters import (
    cosine,
    dot,
    learning_rate_gradient,
    momentum_gradient,
    norm,
    weight_decay_gradient,
)


class Problem:
    """A small network mid-training: weights, momentum buffers, a training and a validation batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        )
        self.theta = dict(self.network.named_parameters())
        self.buffers = {name: 0.1 * torch.randn_like(p) for name, p in self.theta.items()}
        self.train = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))
        self.validation = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))

    def loss(self, theta, batch):
        state = {name: b.clone() for name, b in self.network.named_buffers()}
        logits = torch.func.functional_call(self.network, {**theta, **state}, (batch[0],))
        return nn.functional.cross_entropy(logits, batch[1])

    def step(self, lr, wd, mu):
        gradients = torch.autograd.grad(self.loss(self.theta, self.train), list(self.theta.values()))
        update = {
            name: mu * self.buffers[name] + g.detach() + wd * self.theta[name].detach()
            for (name, g) in zip(self.theta, gradients, strict=True)
        }
        return update, {name: self.theta[name].detach() - lr * update[name] for name in self.theta}


@pytest.mark.parametrize("which", ["learning_rate", "weight_decay", "momentum"])
def test_closed_form_against_autograd_through_the_step(which):
    problem = Problem()
    lr, wd, mu = (torch.tensor(v, requires_grad=True) for v in (0.05, 0.01, 0.9))
    update, after = problem.step(lr, wd, mu)
    oracle = dict(
        zip(
            ("learning_rate", "weight_decay", "momentum"),
            torch.autograd.grad(problem.loss(after, problem.validation), [lr, wd, mu]),
            strict=True,
        )
    )

    leaves = {name: p.detach().requires_grad_() for name, p in after.items()}
    g_v = torch.autograd.grad(problem.loss(leaves, problem.validation), list(leaves.values()))
    theta = [p.detach() for p in problem.theta.values()]
    closed = {
        "learning_rate": learning_rate_gradient(g_v, [u.detach() for u in update.values()]),
        "weight_decay": weight_decay_gradient(g_v, theta, lr.detach()),
        "momentum": momentum_gradient(g_v, list(problem.buffers.values()), lr.detach()),
    }
    assert abs(oracle[which]) > 1e-6
    torch.testing.assert_close(closed[which], oracle[which], rtol=1e-4, atol=0)


def test_longer_horizon_against_differentiation_through_five_steps():
    # To first order: what an earlier step does to the gradients of later ones is left out on both sides.
    problem, count, share = Problem(), 5, 0.3
    theta = {name: p.detach() for name, p in problem.theta.items()}
    trail = MovingAverage(theta.values(), horizon=1.0)
    moves = []
    for index in range(count):
        trail.update(share * index)
        leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
        gradients = torch.autograd.grad(problem.loss(leaves, problem.train), list(leaves.values()))
        moves.append([0.05 * g for g in gradients])
        for weight, move in zip(theta.values(), moves[-1], strict=True):
            weight -= move

    # The logarithm of the learning rate of each step, and less of it the longer ago.
    log = torch.zeros((), requires_grad=True)
    ages = range(count - 1, -1, -1)
    factors = [torch.exp((1 - share) ** age * log) - 1 for age in ages]
    unrolled = {
        name: theta[name] - sum(f * move[place] for f, move in zip(factors, moves, strict=True))
        for place, name in enumerate(theta)
    }
    (oracle,) = torch.autograd.grad(problem.loss(unrolled, problem.validation), log)

    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    g_v = torch.autograd.grad(problem.loss(leaves, problem.validation), list(leaves.values()))
    way = [old - new for old, new in zip(trail.values, theta.values(), strict=True)]
    assert abs(oracle) > 1e-6
    torch.testing.assert_close(learning_rate_gradient(g_v, way), oracle, rtol=1e-4, atol=0)


def test_the_step_of_the_formulas_is_the_step_of_torch():
    problem = Problem()
    optimizer = torch.optim.SGD(problem.network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for name, parameter in problem.theta.items():
        optimizer.state[parameter]["momentum_buffer"] = problem.buffers[name].clone()
    update, after = problem.step(0.05, 0.01, 0.9)
    problem.loss(problem.theta, problem.train).backward()
    optimizer.step()
    for name, parameter in problem.theta.items():
        torch.testing.assert_close(parameter.detach(), after[name])
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], update[name])


def test_cosine_norm_and_dot_against_flat_vectors():
    a = [torch.randn(3, 2), torch.randn(5)]
    b = [torch.randn(3, 2), torch.randn(5)]
    flat_a, flat_b = (torch.cat([t.flatten() for t in ts]) for ts in (a, b))
    torch.testing.assert_close(dot(a, b), flat_a @ flat_b)
    torch.testing.assert_close(norm(a), flat_a.norm())
    torch.testing.assert_close(cosine(a, b), nn.functional.cosine_similarity(flat_a, flat_b, dim=0))
    assert cosine(a, [torch.zeros_like(t) for t in a]) == 0
