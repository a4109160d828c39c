import copy
import math

import pytest
import torch
from torch import nn

from dha.hyperparameters import LateScalar, LearnedMuon, LearnedScalar, LearnedSGD, is_matrix, orthogonal
from dha.hyperparameters.learned_muon import STEP

SOUND, UNSOUND = torch.tensor(True), torch.tensor(False)


def muon(weights, rate=0.1, decay=0.0, **settings):
    return LearnedMuon([weights], [LearnedScalar(rate, 1e-5, 1.0)], [LearnedScalar(decay, 0.0, 1.0)], **settings)


def kernels(*shapes, layout=torch.contiguous_format):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(memory_format=layout)) for shape in shapes]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 8, 24)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_vectors_stay_and_singular_values_become_alike(shape, scale):
    torch.manual_seed(0)
    matrices = scale * torch.randn(shape)
    made = orthogonal(matrices, iterations=5)
    left, before, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ made @ right.mT
    inside = torch.diagonal(values, dim1=-2, dim2=-1)
    assert before.amax() > 2 * before.amin()
    assert 0.6 < inside.amin() < inside.amax() < 1.3
    torch.testing.assert_close(values, torch.diag_embed(inside), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonal(matrices, 5, length=0.02), 0.02 * made)


def test_zeros_stay_zeros_and_bfloat16_is_near_float32():
    assert not orthogonal(torch.zeros(4, 6)).any()
    torch.manual_seed(0)
    matrix = torch.randn(16, 144)
    torch.testing.assert_close(orthogonal(matrix.bfloat16()).float(), orthogonal(matrix), rtol=0, atol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_step_of_kernels_is_that_of_the_muon_of_torch(layout, monkeypatch):
    monkeypatch.setattr(orthogonal, "__defaults__", (5, 1.0))
    ours = kernels((6, 4, 3, 3), (6, 4, 3, 3), (5, 6, 1, 1), layout=layout)
    theirs = [nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format).flatten(1)) for weight in ours]
    optimizer = muon(ours, rate=0.2, decay=0.05, momentum=0.8)
    reach = 0.5 * 0.2 / (1 - 0.8)
    oracle = torch.optim.Muon(theirs, lr=STEP * reach, weight_decay=0.05 / STEP, momentum=0.8)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape).to(memory_format=layout)
            other.grad = mine.grad.flatten(1).clone()
        optimizer.step(0.5, SOUND)
        oracle.step()
    for mine, other in zip(ours, theirs, strict=True):
        # That of torch multiplies in bfloat16.
        torch.testing.assert_close(mine.detach().flatten(1), other.detach(), rtol=0, atol=4 * STEP * reach * 0.02)


def test_other_weights_are_moved_as_by_sgd():
    shapes = (5, 3), (7,), (6, 1, 3, 3), (1, 6, 3, 3)
    first, second = kernels(*shapes), kernels(*shapes)
    assert not any(map(is_matrix, first))
    settings = [LearnedScalar(0.1, 1e-5, 1.0)], [LearnedScalar(0.01, 0.0, 1.0)]
    optimizers = LearnedMuon([first], *settings), LearnedSGD([second], *settings)
    for _ in range(3):
        for one, other in zip(first, second, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step(0.7, SOUND)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_where_the_loss_is_not_finite_nothing_moves_and_nothing_is_remembered():
    (weight,), (twin,) = kernels((4, 3, 3, 3)), kernels((4, 3, 3, 3))
    ours, without = muon([weight], decay=0.01), muon([twin], decay=0.01)
    gradients = torch.randn(3, *weight.shape)
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, torch.nan)
        ours.step(1.0, UNSOUND)
        assert torch.equal(weight, before)
        weight.grad, twin.grad = gradient.clone(), gradient.clone()
        ours.step(1.0, SOUND)
        without.step(1.0)
        assert not torch.equal(weight, before)
        torch.testing.assert_close(weight, twin)


def test_going_on_from_a_state_is_going_on():
    (weight,), (twin,) = kernels((4, 3, 3, 3)), kernels((4, 3, 3, 3))
    ours = muon([weight])
    gradients = torch.randn(4, *weight.shape)
    for gradient in gradients[:2]:
        weight.grad = gradient.clone()
        ours.step(1.0)
    twin.data.copy_(weight)
    theirs = muon([twin])
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for gradient in gradients[2:]:
        for one, optimizer in ((weight, ours), (twin, theirs)):
            one.grad = gradient.clone()
            optimizer.step(1.0)
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rate_moves_with_what_validation_says_of_the_way_back(sign):
    (weight,) = kernels((4, 3, 3, 3))
    optimizer = muon([weight], rate=0.1, horizon=0.0, resting_cosine=0.0)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.look(0.5)
    optimizer.step(1.0)
    optimizer.learn([weight], [sign * (before - weight.detach())], rate=1.0)
    assert math.log(optimizer.peaks[0].value.item() / 0.1) == pytest.approx(sign * 0.1, rel=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_momentum_moves_with_what_validation_says_of_older_gradients(sign):
    (weight,) = kernels((4, 3, 3, 3))
    friction = LateScalar(0.1, 0.01, 0.5)
    optimizer = muon([weight], friction=friction, horizon=0.0)
    older, newest = torch.randn(2, *weight.shape)
    for gradient in (older, newest):
        weight.grad = gradient.clone()
        optimizer.look(0.5)
        optimizer.step(1.0)
    mean = 0.1 * (0.9 * older + newest)
    way = orthogonal(mean.flatten(1)) - orthogonal(newest.flatten(1))
    optimizer.learn([weight], [sign * way.view_as(weight)], rate=1.0, learning_rates=False)
    # Weights go against the way: where validation loss rises along it, more momentum is wanted.
    assert math.log(friction.value.item() / 0.1) == pytest.approx(-sign * 0.1, rel=1e-2)
