import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dha.augmentation import (
    AugmentationPolicy,
    Draws,
    adversarial_gradient,
    alignments,
    standardise,
    validation_gradient,
)

STRUCTURES: list[Literal["slots", "pairs"]] = ["slots", "pairs"]


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    saved = [buffer.clone() for buffer in network.buffers()]
    yield
    for buffer, value in zip(network.buffers(), saved, strict=True):
        buffer.copy_(value)


class Problem:
    """A small convolution + BatchNorm + ReLU network in train mode, a training and a validation batch."""

    def __init__(self, dtype: torch.dtype, activation: type[nn.Module] = nn.ReLU) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), activation()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        ).to(dtype)
        self.images, held_out = torch.rand(2, 16, 3, 12, 12, generator=generator).to(dtype)
        self.labels, held_out_labels = torch.randint(10, (2, 16), generator=generator)
        self.parameters = list(self.network.parameters())
        held_out_loss = F.cross_entropy(self.network(held_out), held_out_labels)
        self.direction = torch.autograd.grad(held_out_loss, self.parameters)

    def losses(self) -> Tensor:
        with kept_buffers(self.network):
            return F.cross_entropy(self.network(self.images), self.labels, reduction="none")

    def exact(self) -> Tensor:
        losses = F.cross_entropy(self.network(self.images), self.labels, reduction="none")
        gradients = [torch.autograd.grad(loss, self.parameters, retain_graph=True) for loss in losses]
        return torch.stack(
            [
                sum(((g * d).sum() for g, d in zip(row, self.direction, strict=True)), torch.zeros(()))
                for row in gradients
            ]
        )


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


def test_alignments_equal_per_image_gradients_in_float32() -> None:
    problem = Problem(torch.float32)
    exact = problem.exact()
    assert relative_error(alignments(problem.losses, problem.parameters, problem.direction), exact) < 1e-2


def test_alignments_equal_per_image_gradients_in_float64() -> None:
    problem = Problem(torch.float64, nn.SiLU)  # smooth, so that nothing but the O(eps^2) of the difference is left
    exact = problem.exact()
    value = alignments(problem.losses, problem.parameters, problem.direction, relative_step=1e-5)
    assert relative_error(value, exact) < 1e-7


def test_alignments_do_not_depend_on_the_scale_of_the_direction() -> None:
    problem = Problem(torch.float32)
    value = alignments(problem.losses, problem.parameters, problem.direction)
    small = alignments(problem.losses, problem.parameters, [1e-12 * tensor for tensor in problem.direction])
    assert torch.allclose(small * 1e12, value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))


def test_alignments_leave_parameters_and_buffers_to_the_bit() -> None:
    problem = Problem(torch.float32)
    before = {name: tensor.clone() for name, tensor in problem.network.state_dict().items()}
    result = alignments(problem.losses, problem.parameters, problem.direction)
    assert result.shape == (16,)
    assert not result.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.network.state_dict().items())


@pytest.mark.parametrize("failing_call", [1, 2])
def test_alignments_restore_parameters_after_an_error(failing_call: int) -> None:
    problem = Problem(torch.float32)
    before = [tensor.clone() for tensor in problem.parameters]
    calls = itertools.count(1)

    def losses() -> Tensor:
        if next(calls) == failing_call:
            raise RuntimeError("out of memory")
        return problem.losses()

    with pytest.raises(RuntimeError, match="out of memory"):
        alignments(losses, problem.parameters, problem.direction)
    assert all(torch.equal(*both) for both in zip(problem.parameters, before, strict=True))


def test_alignments_with_a_zero_direction_are_zero() -> None:
    problem = Problem(torch.float32)
    zero = [torch.zeros_like(tensor) for tensor in problem.parameters]
    assert torch.equal(alignments(problem.losses, problem.parameters, zero), torch.zeros(16))


def test_alignments_never_read_a_value_on_the_host() -> None:
    with FakeTensorMode():  # tensors without values: whatever would wait for a device raises
        weight = torch.rand(5, requires_grad=True)
        assert alignments(lambda: torch.rand(7, 5) @ weight, [weight], [torch.rand(5)]).shape == (7,)


class LinearProblem:
    """Two training images, three operations without parameters, a linear classifier: small enough to enumerate."""

    operations = ("identity", "invert", "horizontal_flip")
    learning_rate = 1e-3

    def __init__(self, structure: Literal["slots", "pairs"]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.policy = AugmentationPolicy(self.operations, structure)
        with torch.no_grad():
            for logits in self.policy.parameters():
                logits.add_(torch.randn(logits.shape, generator=generator))
        self.images, self.labels = torch.rand(2, 1, 4, 4, generator=generator), torch.tensor([0, 1])
        self.held_out, self.held_out_labels = torch.rand(6, 1, 4, 4, generator=generator), torch.arange(6) % 3
        self.weight = torch.randn(3, 16, generator=generator, dtype=torch.float64).requires_grad_()
        self.held_out_gradient = torch.autograd.grad(self.held_out_loss(self.weight), self.weight)

    def held_out_loss(self, weight: Tensor) -> Tensor:
        return F.cross_entropy(self.held_out.double().flatten(1) @ weight.T, self.held_out_labels)

    def losses(self, pairs: Tensor) -> Tensor:
        images = self.policy.apply(self.images, Draws(pairs, torch.zeros(2, 2, 3))).double()
        return F.cross_entropy(images.flatten(1) @ self.weight.T, self.labels, reduction="none")

    def estimate(self, pairs: Tensor) -> Tensor:
        values = alignments(lambda: self.losses(pairs), [self.weight], self.held_out_gradient)
        return flat(validation_gradient(self.policy, pairs, values, self.learning_rate))

    def all_batches(self) -> list[Tensor]:
        pairs = list(itertools.product(range(3), repeat=2))
        return [torch.tensor(batch) for batch in itertools.product(pairs, repeat=2)]

    def exact_gradient(self) -> Tensor:
        """Autograd through the expected held-out loss after one SGD step, over all 81 batches of pairs."""
        expected = torch.zeros(())
        for pairs in self.all_batches():
            gradient = torch.autograd.grad(self.losses(pairs).mean(), self.weight)[0]
            after = self.held_out_loss(self.weight - self.learning_rate * gradient).detach()
            expected = expected + self.policy.log_probability(pairs).double().sum().exp() * after
        return flat(torch.autograd.grad(expected, self.policy.parameters()))


def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_validation_gradient_is_unbiased(structure: Literal["slots", "pairs"]) -> None:
    problem = LinearProblem(structure)
    exact = problem.exact_gradient()
    mean = torch.zeros_like(exact)
    for pairs in problem.all_batches():
        mean += problem.policy.log_probability(pairs).sum().exp().detach() * problem.estimate(pairs)
    assert relative_error(mean, exact) < 1e-2  # what is left is the second order in the learning rate


def test_mean_validation_gradient_over_draws() -> None:
    problem = LinearProblem("slots")
    generator = torch.Generator().manual_seed(2)
    estimates = torch.stack([problem.estimate(problem.policy.draw(2, generator).pairs) for _ in range(1500)])
    standard_error = estimates.std(0) / len(estimates) ** 0.5
    exact = problem.exact_gradient()
    assert ((estimates.mean(0) - exact).abs() < 4 * standard_error).all()
    assert torch.dot(estimates.mean(0), exact) > 0.9 * estimates.mean(0).norm() * exact.norm()


@pytest.mark.parametrize("rule", [lambda *a: validation_gradient(*a, learning_rate=0.1), adversarial_gradient])
def test_equal_values_or_one_image_give_no_gradient(rule: Callable[..., list[Tensor]]) -> None:
    policy = AugmentationPolicy()
    assert flat(rule(policy, policy.draw(8).pairs, torch.full((8,), 2.0))).abs().max() < 1e-6
    assert torch.equal(flat(rule(policy, policy.draw(1).pairs, torch.ones(1))), torch.zeros(36))


def test_standardise_removes_scale_and_offset() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(3))
    result = standardise(values)
    assert result.mean().abs() < 1e-6
    assert result.std(correction=0) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(standardise(1e-9 * values), result, atol=1e-4)
    assert torch.allclose(standardise(5 * values + 3), result, atol=1e-4)
    assert standardise(torch.full((7,), 0.1)).abs().max() < 1e-2
    assert torch.equal(standardise(torch.zeros(3)), torch.zeros(3))


def learned(
    held_out_operation: str | None, operations: tuple[str, ...], steps: int = 200, seed: int = 0
) -> AugmentationPolicy:
    """Train a small network on digits with the rule; the validation digits went through an operation, or none."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, target = load_digits(return_X_y=True)
    images, labels = torch.tensor(data, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(target)
    held_out = images[1200:]
    if held_out_operation is not None:
        fixed = AugmentationPolicy([held_out_operation, "identity"])
        pairs = torch.tensor([0, 1]).expand(len(held_out), 2)
        held_out = fixed.apply(held_out, Draws(pairs, torch.rand(len(held_out), 2, 3, generator=generator)))
    network = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    weights = list(network.parameters())
    policy = AugmentationPolicy(operations, identity_probability=1 / len(operations))
    of_weights = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    of_policy = torch.optim.Adam(policy.parameters(), lr=0.05)
    for _ in range(steps):
        batch = torch.randint(1200, (64,), generator=generator)
        draws = policy.draw(64, generator)
        augmented = policy.apply(images[batch], draws)

        def losses(augmented: Tensor = augmented, batch: Tensor = batch) -> Tensor:
            return F.cross_entropy(network(augmented), labels[batch], reduction="none")

        direction = torch.autograd.grad(F.cross_entropy(network(held_out), labels[1200:]), weights)
        values = standardise(alignments(losses, weights, direction))
        of_weights.zero_grad()
        losses().mean().backward()
        of_weights.step()
        gradients = validation_gradient(policy, draws.pairs, values, learning_rate=1.0)
        for logits, gradient in zip(policy.parameters(), gradients, strict=True):
            logits.grad = gradient
        of_policy.step()
    return policy


def share(policy: AugmentationPolicy, name: str) -> float:
    """The probability of an operation, averaged over the slots."""
    return float(policy.operation_probabilities().mean(0)[policy.operations.index(name)])


@pytest.mark.parametrize("planted", ["translate_x", "rotate"])
def test_validation_rule_finds_the_planted_operation(planted: str) -> None:
    policy = learned(planted, ("identity", planted, "invert"))
    assert share(policy, planted) > 0.45  # from 1/3, within 200 steps
    assert share(policy, "invert") < 0.1


def test_validation_rule_finds_inversion() -> None:
    # What must grow is the share of pairs that invert, from 5/9; a pair that names it twice does it once.
    probabilities = learned("invert", ("identity", "invert", "cutout")).probabilities()
    assert probabilities[1].sum() + probabilities[:, 1].sum() - probabilities[1, 1] > 0.95


def test_validation_rule_drops_what_only_hurts() -> None:
    policy = learned(None, ("identity", "invert", "cutout", "horizontal_flip"))
    assert share(policy, "identity") > 0.25  # each from 1/4; cutout does no harm
    assert share(policy, "invert") < 0.05
    assert share(policy, "horizontal_flip") < 0.15


@pytest.mark.parametrize("structure", STRUCTURES)
def test_adversarial_rule_raises_the_operation_of_high_loss(structure: Literal["slots", "pairs"]) -> None:
    policy = AugmentationPolicy(("identity", "invert", "rotate"), structure)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        pairs = policy.draw(64, generator).pairs
        losses = 1.0 + (pairs == 1).any(1).float()
        for logits, gradient in zip(policy.parameters(), adversarial_gradient(policy, pairs, losses), strict=True):
            logits.grad = gradient
        optimizer.step()
    containing = 1 - policy.probabilities()[[0, 0, 2, 2], [0, 2, 0, 2]].sum()
    assert containing > 0.9  # 0.44 at the start
