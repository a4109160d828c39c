"""Each closed form against autograd through one real step of SGD or AdamW, or through five."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dha.architecture import drop_factors
from dha.engine import MovingAverage
from dha.hyperparameters import (
    LearnedScalar,
    adamw_momentum_gradient,
    adamw_update,
    cosine,
    dot,
    drop_path_direction,
    learning_rate_gradient,
    momentum_gradient,
    norm,
    smoothed_cross_entropy,
    smoothing_direction,
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_that_of_torch(smoothing):
    logits, labels = 5 * torch.randn(8, 6, requires_grad=True), torch.arange(8) % 6
    ours = smoothed_cross_entropy(logits, labels, torch.tensor(smoothing))
    theirs = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits, retain_graph=True) for loss in (ours, theirs)))


def test_label_smoothing_against_autograd_through_the_step():
    torch.manual_seed(0)
    (inputs, unseen), weights = torch.randn(2, 16, 6).double(), torch.randn(6, 3, requires_grad=True).double()
    labels, truth = torch.randint(3, (16,)), torch.randint(3, (16,))
    share = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    targets = (1 - share) * nn.functional.one_hot(labels, 3) + share / 3
    loss = nn.functional.cross_entropy(inputs @ weights, targets)
    (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
    after = weights.detach() - 0.5 * gradient
    (oracle,) = torch.autograd.grad(nn.functional.cross_entropy(unseen @ after, truth), share)

    after = after.detach().requires_grad_()
    g_v = torch.autograd.grad(nn.functional.cross_entropy(unseen @ after, truth), after)
    direction = smoothing_direction(inputs @ weights, labels, [weights])
    assert abs(oracle) > 1e-3
    torch.testing.assert_close(-0.5 * dot(g_v, direction), oracle)


@pytest.mark.parametrize(("count", "noise"), [(1000, 0.0), (40, 0.5)])
def test_label_smoothing_falls_where_labels_can_be_trusted_and_rises_where_they_cannot(count, noise):
    # 60 weights a class: 40 images are learned by heart, however wrong their labels are.
    share, true, weights = LearnedScalar(0.05, 1e-3, 0.3), torch.randn(60, 3), torch.zeros(60, 3, requires_grad=True)
    images = torch.randn(count + 500, 60)
    labels = (images @ true).argmax(1)
    labels = torch.where(torch.rand(len(labels)) < noise, torch.randint(3, labels.shape), labels)
    for _ in range(200):
        smoothing = share.value.item()
        loss = nn.functional.cross_entropy(images[:count] @ weights, labels[:count], label_smoothing=smoothing)
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights.detach() - 0.5 * gradient).requires_grad_()
        held_out = nn.functional.cross_entropy(images[count:] @ weights, labels[count:])
        direction = smoothing_direction(images[:count] @ weights, labels[:count], [weights])
        share.move(cosine(torch.autograd.grad(held_out, weights), direction), rate=0.1)
    assert share.value > 0.2 if noise else share.value < 0.02


@pytest.mark.parametrize(("probability", "error"), [(0.01, 1e-3), (0.1, 0.02), (0.3, 0.3)])
def test_drop_path_against_autograd_through_a_step_on_the_mean_over_all_masks(probability, error):
    generator = torch.Generator().manual_seed(0)
    first, second, head = (torch.randn(4, k, generator=generator).double().requires_grad_() for k in (4, 4, 3))
    weights = [first, second, head]
    inputs, unseen = torch.randn(2, 5, 4, generator=generator).double()
    labels, truth = torch.randint(3, (2, 5), generator=generator)
    # Of both branches; images are dropped for independently, so that one image stands for all.
    masks = list(itertools.product((0, 1), repeat=2))

    def loss(images, classes, weights, factors=(1.0, 1.0)):
        for matrix, factor in zip(weights, factors, strict=False):
            images = images + factor * torch.tanh(images @ matrix)
        return nn.functional.cross_entropy(images @ weights[2], classes)

    def mean_loss(p):
        chances = [math.prod(1 - p if kept else p for kept in mask) for mask in masks]
        losses = [loss(inputs, labels, weights, [kept / (1 - p) for kept in mask]) for mask in masks]
        return torch.stack([chance * value for chance, value in zip(chances, losses, strict=True)]).sum()

    p = torch.tensor(probability, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(mean_loss(p), weights, create_graph=True)
    after = [weight.detach() - 0.1 * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    (oracle,) = torch.autograd.grad(loss(unseen, truth, after), p)

    after = [weight.detach().requires_grad_() for weight in after]
    g_v = torch.autograd.grad(loss(unseen, truth, after), after)
    step = probability * (1 - probability) / 2
    direction = drop_path_direction(mean_loss(probability + step), mean_loss(probability - step), weights)
    assert abs(oracle) > 1e-3
    assert (-0.1 * dot(g_v, direction) / (2 * step) / oracle).item() == pytest.approx(1, abs=error)


@pytest.mark.parametrize("missing", [True, False])
def test_drop_path_rises_where_unseen_images_lack_what_the_branch_sees_and_falls_where_they_have_it(missing):
    probability, true = LearnedScalar(0.1, 1e-3, 0.5), torch.randn(10, 3)
    seen_by_all, seen_by_branch = torch.randn(2, 600, 10)
    labels = ((seen_by_all + seen_by_branch) @ true).argmax(1)
    if missing:
        seen_by_branch[300:] = torch.randn(300, 10)
    train, held_out = slice(0, 300), slice(300, 600)
    straight, branch = torch.zeros(2, 10, 3)

    def loss(part, factors):
        logits = seen_by_all[part] @ straight + factors[:, None] * (seen_by_branch[part] @ branch)
        return nn.functional.cross_entropy(logits, labels[part])

    for _ in range(150):
        now, weights = probability.value.item(), [straight.requires_grad_(), branch.requires_grad_()]
        gradients = torch.autograd.grad(loss(train, drop_factors(torch.rand(300), now)), weights)
        weights = [(w.detach() - 0.5 * g).requires_grad_() for w, g in zip(weights, gradients, strict=True)]
        straight, branch = weights
        g_v = torch.autograd.grad(loss(held_out, torch.ones(300)), weights)
        uniforms, step = torch.rand(300), now * (1 - now) / 2
        more, less = (loss(train, drop_factors(uniforms, p)) for p in (now + step, now - step))
        probability.move(cosine(g_v, drop_path_direction(more, less, weights)), rate=0.2)
    assert probability.value == 0.5 if missing else probability.value < 0.06


def adamw_step(theta, averages, squares, gradients, count, lr, wd, beta1):
    """One step as in the paper, in operations that autograd can follow; betas (beta1, .99), epsilon 1e-6."""
    averages = [beta1 * m + (1 - beta1) * g for m, g in zip(averages, gradients, strict=True)]
    squares = [0.99 * v + 0.01 * g * g for v, g in zip(squares, gradients, strict=True)]
    after = [
        w - lr * (m / (1 - beta1**count) / ((v / (1 - 0.99**count)).sqrt() + 1e-6) + wd * w)
        for w, m, v in zip(theta, averages, squares, strict=True)
    ]
    return averages, squares, after


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("which", ["learning_rate", "weight_decay", "momentum"])
def test_closed_forms_of_adamw_against_autograd_through_the_step(which, count):
    torch.manual_seed(0)
    shapes = (4, 3), (4,)
    theta, gradients, target = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(3))
    averages, squares = ([c * torch.rand(s, dtype=torch.float64) for s in shapes] for c in (0.3, 0.5))
    lr, wd, beta1 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.05, 0.2, 0.8))
    _, squares_after, after = adamw_step(theta, averages, squares, gradients, count, lr, wd, beta1)
    loss = torch.stack([((w - t) ** 4).sum() for w, t in zip(after, target, strict=True)]).sum()
    names = ("learning_rate", "weight_decay", "momentum")
    oracle = dict(zip(names, torch.autograd.grad(loss, [lr, wd, beta1]), strict=True))

    averages_after = [0.8 * m + 0.2 * g for m, g in zip(averages, gradients, strict=True)]
    g_v = [4 * (w.detach() - t) ** 3 for w, t in zip(after, target, strict=True)]
    constants = {"count": count, "betas": (0.8, 0.99), "epsilon": 1e-6}
    update = adamw_update(theta, averages_after, squares_after, weight_decay=0.2, **constants)
    closed = {
        "learning_rate": learning_rate_gradient(g_v, update),
        "weight_decay": weight_decay_gradient(g_v, theta, 0.05),
        "momentum": adamw_momentum_gradient(g_v, gradients, averages, squares_after, learning_rate=0.05, **constants),
    }
    assert abs(oracle[which]) > 1e-3
    torch.testing.assert_close(closed[which], oracle[which], rtol=1e-10, atol=0)


def test_the_adamw_of_the_formulas_is_that_of_torch():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    theta = [weight.detach().clone()]
    averages, squares = [torch.zeros_like(theta[0])], [torch.zeros_like(theta[0])]
    optimizer = torch.optim.AdamW([weight], lr=0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.2)
    for count in range(1, 4):
        gradient = torch.randn(5, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        averages, squares, after = adamw_step(theta, averages, squares, [gradient], count, 0.05, 0.2, 0.8)
        torch.testing.assert_close(weight.detach(), after[0])
        (update,) = adamw_update(theta, averages, squares, count, 0.2, (0.8, 0.99), 1e-6)
        torch.testing.assert_close(theta[0] - 0.05 * update, after[0])
        theta = after


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
