import copy

import pytest
import torch
from torch import nn

from dha.hyperparameters import LearnedScalar, LearnedSGD


def scalars(*values):
    return [LearnedScalar(value, 1e-5, 10.0) for value in values]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_step_is_that_of_torch(clip):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    oracle = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    oracle.load_state_dict(network.state_dict())
    ours = LearnedSGD(
        [list(network[0].parameters()), list(network[2].parameters())],
        scalars(0.02, 0.3),
        LearnedScalar(0.01, 1e-6, 1.0),
        momentum=0.8,
        clip=clip,
    )
    groups = [{"params": oracle[0].parameters(), "lr": 0.01}, {"params": oracle[2].parameters(), "lr": 0.15}]
    theirs = torch.optim.SGD(groups, momentum=0.8, nesterov=True)
    for _ in range(5):
        inputs, targets = torch.randn(8, 6), 3 * torch.randn(8, 3)
        for model in (network, oracle):
            nn.functional.mse_loss(model(inputs), targets).backward()
        ours.step(schedule=0.5)
        if clip is not None:
            assert nn.utils.clip_grad_norm_(oracle.parameters(), clip) > clip
        for weight in oracle.parameters():
            assert weight.grad is not None
            weight.grad += 0.01 * weight.detach()
        theirs.step()
        ours.zero_grad()
        theirs.zero_grad()
        for a, b in zip(network.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_weights_without_a_gradient_stay_as_they_are():
    used, unused = (nn.Parameter(torch.ones(3)) for _ in range(2))
    sgd = LearnedSGD([[used, unused]], scalars(0.1), LearnedScalar(0.1, 1e-6, 1.0))
    for progress in (0.0, 0.2):
        used.square().sum().backward()
        active = sgd.active()
        assert len(active) == 1
        sgd.look(progress)
        sgd.step(1.0)
        sgd.learn(active, [2 * used.detach()], rate=0.5)
        sgd.zero_grad()
    assert torch.equal(unused, torch.ones(3))
    assert not torch.equal(used, torch.ones(3))
    assert sgd.peaks[0].value != 0.1


@pytest.mark.parametrize(("initial", "low", "high"), [(0.0005, 0.005, 0.2), (0.19, 0.001, 0.15)])
def test_rates_that_are_too_small_rise_and_those_that_are_too_large_fall(initial, low, high):
    # A bowl of curvatures up to 10, with noise in the gradient: rates above .2 diverge.
    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(-1, 1, 20)
    weights = nn.Parameter(torch.full((20,), 3.0))
    sgd = LearnedSGD([[weights]], scalars(initial), LearnedScalar(1e-6, 1e-6, 1.0), momentum=0.0, horizon=0.1)
    for step in range(300):
        weights.grad = curvature * weights.detach() + 0.3 * torch.randn(20, generator=generator)
        sgd.look(step / 300)
        sgd.step(1.0)
        sgd.learn([weights], [curvature * weights.detach()], rate=0.1)
    assert low < sgd.peaks[0].value < high
    assert weights.isfinite().all()


def test_a_step_that_is_not_sound_moves_nothing():
    weight = nn.Parameter(torch.randn(5))
    sgd = LearnedSGD([[weight]], scalars(0.1), LearnedScalar(0.01, 1e-6, 1.0))
    weight.grad = torch.ones(5)
    sgd.step(1.0, torch.tensor(True))
    before, momentum = weight.detach().clone(), sgd.optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad = torch.full((5,), torch.nan)
    sgd.step(1.0, torch.tensor(False))
    assert torch.equal(weight, before)
    assert torch.equal(sgd.optimizer.state[weight]["momentum_buffer"], momentum)
    weight.grad = torch.ones(5)
    sgd.step(1.0, torch.tensor(True))
    assert not torch.equal(weight, before)


def test_its_state_goes_on_where_it_was():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]

    def made(start):
        copies = [nn.Parameter(w.detach().clone()) for w in start]
        return copies, LearnedSGD([copies[:1], copies[1:]], scalars(0.1, 0.2), LearnedScalar(0.01, 1e-6, 1.0))

    def steps(copies, sgd, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for step in range(count):
            for weight in copies:
                weight.grad = torch.randn(weight.shape, generator=generator)
            sgd.look(0.1 * (step + seed))
            sgd.step(0.9)
            sgd.learn(copies, [torch.randn(w.shape, generator=generator) for w in copies], 0.5)

    copies, sgd = made(weights)
    steps(copies, sgd, 3, seed=0)
    others, again = made(copies)
    again.load_state_dict(copy.deepcopy(sgd.state_dict()))
    for pair in ((copies, sgd), (others, again)):
        steps(*pair, 3, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(copies, others, strict=True))
    assert [p.value for p in sgd.peaks] == [p.value for p in again.peaks]
    assert sgd.weight_decay.value == again.weight_decay.value
