import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dha.hyperparameters import LateScalar, LearnedAdamW, LearnedScalar, LearnedSGD, cosine
from dha.hyperparameters.learned_optimizer import DECAYS, DOUBLING, TRUST
from dha.hyperparameters.schedule import LARGEST, NEAR


def scalars(*values):
    return [LearnedScalar(value, 1e-5, 10.0) for value in values]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_the_step_is_that_of_torch(kind, clip):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    oracle = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    oracle.load_state_dict(network.state_dict())
    ours = kind(
        [list(network[0].parameters()), list(network[2].parameters())],
        scalars(0.02, 0.3),
        scalars(0.01, 0.05),
        momentum=0.8,
        clip=clip,
    )
    groups = [
        {"params": oracle[0].parameters(), "lr": 0.01, "weight_decay": 0.01},
        {"params": oracle[2].parameters(), "lr": 0.15, "weight_decay": 0.05},
    ]
    if kind is LearnedAdamW:
        theirs = torch.optim.AdamW(groups, betas=(0.8, 0.999))
    else:
        groups = [{**group, "weight_decay": 0.0} for group in groups]
        theirs = torch.optim.SGD(groups, momentum=0.8, nesterov=True)
    for _ in range(5):
        inputs, targets = torch.randn(8, 6), 3 * torch.randn(8, 3)
        for model in (network, oracle):
            nn.functional.mse_loss(model(inputs), targets).backward()
        ours.step(schedule=0.5)
        if clip is not None:
            assert nn.utils.clip_grad_norm_(oracle.parameters(), clip) > clip
        for layer, decay in ((oracle[0], 0.01), (oracle[2], 0.05)):
            for weight in layer.parameters():
                assert weight.grad is not None
                if kind is LearnedSGD:  # behind the clipping, unlike the decay of torch
                    weight.grad += decay * weight.detach()
        theirs.step()
        ours.zero_grad()
        theirs.zero_grad()
        for a, b in zip(network.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_weights_without_a_gradient_stay_as_they_are(kind):
    used, unused = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = kind([[used, unused]], scalars(0.1), [LearnedScalar(0.1, 1e-6, 1.0)])
    for progress in (0.0, 0.2):
        used.square().sum().backward()
        active = optimizer.active()
        assert len(active) == 1
        optimizer.look(progress)
        optimizer.step(1.0)
        optimizer.learn(active, [2 * used.detach()], rate=0.5)
        optimizer.zero_grad()
    assert torch.equal(unused, torch.ones(3))
    assert not torch.equal(used, torch.ones(3))
    assert optimizer.peaks[0].value != 0.1


@pytest.mark.parametrize(
    ("kind", "initial", "low", "high"),
    [
        (LearnedSGD, 0.0005, 0.005, 0.2),
        (LearnedSGD, 0.19, 0.001, 0.15),
        (LearnedAdamW, 0.0005, 0.005, 0.2),
        (LearnedAdamW, 2.0, 0.001, 1.0),
    ],
)
def test_rates_that_are_too_small_rise_and_those_that_are_too_large_fall(kind, initial, low, high):
    # A bowl of curvatures up to 10, with noise in the gradient: rates of SGD above .2 diverge. No decay, which would do
    # the work of the rate, because the minimum is at 0.
    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(-1, 1, 20)
    weights = nn.Parameter(torch.full((20,), 3.0))
    optimizer = kind([[weights]], scalars(initial), [LearnedScalar(0.0, 0.0, 0.0)], momentum=0.0, horizon=0.1)
    for step in range(300):
        weights.grad = curvature * weights.detach() + 0.3 * torch.randn(20, generator=generator)
        optimizer.look(step / 300)
        optimizer.step(1.0)
        optimizer.learn([weights], [curvature * weights.detach()], rate=0.1)
    assert low < optimizer.peaks[0].value < high
    assert weights.isfinite().all()


def test_each_group_of_adamw_decays_by_its_own_rate_and_its_own_coefficient():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    decay = LearnedScalar(0.1, 1e-6, 1.0)
    optimizer = LearnedAdamW([[weights[0]], [weights[1]]], scalars(0.5, 0.01), [decay, LearnedScalar(0.4, 1e-6, 1.0)])
    decay.value.fill_(0.2)
    for weight in weights:
        weight.grad = torch.zeros(3)  # so that nothing but the decay moves them
    optimizer.step(0.5)
    torch.testing.assert_close(weights[0].detach(), torch.full((3,), 1 - 0.25 * 0.2))
    torch.testing.assert_close(weights[1].detach(), torch.full((3,), 1 - 0.005 * 0.4))


def test_a_decay_that_validation_wants_rises_and_one_that_it_does_not_falls():
    for sign in (1, -1):
        weights, decay = nn.Parameter(torch.ones(3)), LearnedScalar(0.1, 1e-6, 1.0)
        optimizer = LearnedAdamW([[weights]], scalars(0.01), [decay], horizon=0.0)
        weights.grad = torch.tensor([1.0, -1.0, 0.0])
        optimizer.look(0.0)
        optimizer.step(1.0)
        optimizer.learn([weights], [sign * weights.detach()], rate=0.5)
        assert (decay.value > 0.1) == (sign > 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_short_look_back_is_believed_where_it_says_more(sign):
    """One coordinate is the way that the weights have come, the other is the weights: both cosines are chosen."""
    weights, peaks, decays = nn.Parameter(torch.tensor([0.0, 1.0])), scalars(0.1), scalars(0.1)
    optimizer = LearnedSGD([[weights]], peaks, decays, momentum=0.0, horizon=0.5, resting_cosine=0.0)
    values = []
    for progress in (0.0, 0.05):
        weights.grad = torch.tensor([1e-3, 0.0])
        optimizer.look(progress)
        optimizer.step(1.0)
        optimizer.learn([weights], [torch.tensor([-sign * 1.0, sign * 1.0])], rate=0.05)
        values.append([peaks[0].value.item(), decays[0].value.item()])
    assert values[0] == pytest.approx([0.1, 0.1]), "nothing to look back on"
    moves = [math.log(value / 0.1) for value in values[1]]
    far = 0.05 * (0.5**0.5 if sign > 0 else (math.exp(-0.1) - 1) * 0.5**0.5)
    assert moves == pytest.approx([far, DECAYS * far], rel=2e-2)


@pytest.mark.parametrize(("share", "leaves"), [(0.9, False), (-0.9, False), (1.2, True), (-1.2, True)])
def test_a_start_is_left_for_good_only_where_a_direction_is_strong_enough(share, leaves):
    """The way that the weights have come is the first coordinate, the weights are the second."""
    weights, peaks, decays = nn.Parameter(torch.zeros(3)), scalars(0.1), [LearnedScalar(1e-4, 1e-7, 1e-2)]
    optimizer = LearnedSGD([[weights]], peaks, decays, momentum=0.0, horizon=1e-6, resting_cosine=0.0)
    agreement = share * TRUST
    slope = torch.tensor([agreement, agreement, (1 - 2 * agreement**2) ** 0.5])
    for look in range(400):
        weights.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
        weights.grad = torch.tensor([1.0, 0.0, 0.0])
        optimizer.look(look / 400)
        optimizer.step(1.0)
        optimizer.learn([weights], [slope], rate=5.0)
    for value, start, free in ((peaks[0].value, 0.1, leaves), (decays[0].value, 1e-4, leaves or share > 0)):
        away = math.copysign(1, share) * math.log(value.item() / start)
        assert (away > 4 * NEAR) == free
        assert free or away == pytest.approx(0.65 * NEAR, rel=0.1), "where it is drawn back as strongly"


def test_a_rate_that_is_far_too_low_at_most_doubles_at_once():
    weights, peaks, decays = nn.Parameter(torch.tensor([0.0, 1.0])), scalars(0.1), scalars(0.1)
    optimizer = LearnedSGD([[weights]], peaks, decays, momentum=0.0, horizon=0.5)
    for progress in (0.0, 0.05):
        weights.grad = torch.tensor([1e-3, 0.0])
        optimizer.look(progress)
        optimizer.step(1.0)
        optimizer.learn([weights], [torch.tensor([-1.0, 1.0])], rate=10.0)
    assert peaks[0].value.item() == pytest.approx(0.1 * math.exp(DOUBLING))
    assert decays[0].value.item() == pytest.approx(0.1 * math.exp(LARGEST))


def length_of_steps(kind, momentum):
    """Return the weights after 200 steps at that momentum, changed from .9 after the first, on a constant slope."""
    weights, friction = nn.Parameter(torch.zeros(4)), LateScalar(0.1, 0.01, 0.9)
    optimizer = kind([[weights]], scalars(0.01), [LearnedScalar(0.0, 0.0, 1.0)], friction=friction)
    for step in range(200):
        weights.grad = torch.ones(4)
        optimizer.step(1.0)
        if step == 0:
            friction.late = 1 - momentum
    return weights.detach()


@pytest.mark.parametrize(("kind", "rtol"), [(LearnedSGD, 0.05), (LearnedAdamW, 0.01)])
def test_a_change_of_momentum_keeps_the_length_of_the_steps(kind, rtol):
    torch.testing.assert_close(length_of_steps(kind, 0.5), length_of_steps(kind, 0.9), rtol=rtol, atol=0)


def test_the_rates_of_sgd_are_those_for_the_momentum_it_is_told():
    weights = nn.Parameter(torch.zeros(4))
    friction = LateScalar(0.5, 0.01, 0.9)
    optimizer = LearnedSGD([[weights]], scalars(0.01), [LearnedScalar(0.0, 0.0, 1.0)], momentum=0.9, friction=friction)
    weights.grad = torch.ones(4)
    optimizer.step(1.0)
    assert optimizer.optimizer.param_groups[0]["momentum"] == 0.5
    torch.testing.assert_close(optimizer.optimizer.param_groups[0]["lr"], torch.tensor(0.05))


@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_momentum_moves_by_the_cosine_with_its_derivative(kind):
    # The oracle: autograd through the step, of gradients that are averaged, so that its length is always the same.
    torch.manual_seed(0)
    gradients, g_v = torch.randn(6, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    momentum = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    average, square = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for gradient in gradients:
        average = momentum * average.detach() + (1 - momentum) * gradient
        square = 0.999 * square + 0.001 * gradient**2
    update = (
        average / (square.sqrt() + 1e-8)
        if kind is LearnedAdamW
        else (1 - momentum) * gradients[-1] + momentum * average
    )
    slopes = torch.stack([torch.autograd.grad(u, momentum, retain_graph=True)[0] for u in update])

    weights, friction = nn.Parameter(torch.zeros(5, dtype=torch.float64)), LateScalar(0.2, 0.01, 0.9)
    optimizer = kind([[weights]], scalars(0.01), [LearnedScalar(0.0, 0.0, 1.0)], friction=friction)
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.look(0.0)
        optimizer.step(1.0)
    optimizer.learn([weights], [g_v], rate=1.5)
    expected = 0.2 * torch.exp(-0.15 * cosine([g_v], [slopes]))
    assert abs(expected - 0.2) > 0.01
    assert friction.late == pytest.approx(0.2), "not in use before the next move"
    torch.testing.assert_close(friction.value.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "state"), [(LearnedSGD, "momentum_buffer"), (LearnedAdamW, "exp_avg")])
def test_a_step_that_is_not_sound_moves_nothing(kind, state):
    weight = nn.Parameter(torch.randn(5))
    optimizer = kind([[weight]], scalars(0.1), [LearnedScalar(0.01, 1e-6, 1.0)])
    weight.grad = torch.ones(5)
    optimizer.step(1.0, torch.tensor(True))
    before, momentum = weight.detach().clone(), optimizer.optimizer.state[weight][state].clone()
    weight.grad = torch.full((5,), torch.nan)
    optimizer.step(1.0, torch.tensor(False))
    assert torch.equal(weight, before)
    assert torch.equal(optimizer.optimizer.state[weight][state], momentum)
    weight.grad = torch.ones(5)
    optimizer.step(1.0, torch.tensor(True))
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_what_has_had_no_gradient_yet_takes_no_memory(kind):
    used, unused = (nn.Parameter(torch.randn(3)) for _ in range(2))
    optimizer = kind([[used, unused]], scalars(0.1), [LearnedScalar(0.01, 1e-6, 1.0)])
    used.grad = torch.ones(3)
    optimizer.look(0.0)
    optimizer.step(1.0)
    assert list(optimizer.optimizer.state) == [used]
    assert [id(weight) for weight in optimizer.trail.weights] == [id(used)]
    unused.grad = torch.ones(3)
    before = unused.detach().clone()
    optimizer.look(0.1)
    optimizer.step(1.0)
    assert torch.equal(optimizer.trail.values[1], before)
    assert set(optimizer.optimizer.state) == {used, unused}


@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_its_state_goes_on_where_it_was(kind):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3)) for _ in range(3)]

    def made(start):
        copies = [nn.Parameter(w.detach().clone()) for w in start]
        peaks, decays, friction = scalars(0.1, 0.2), scalars(0.01, 0.02), LateScalar(0.1, 0.01, 0.5)
        return copies, kind([copies[:2], copies[2:]], peaks, decays, friction=friction)

    def steps(copies, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for step in range(seed, seed + count):
            active = copies[step < 2 :]  # the first joins late
            for weight in active:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.look(0.1 * step)
            optimizer.step(0.9)
            optimizer.learn(active, [torch.randn(w.shape, generator=generator) for w in active], 0.5)

    copies, optimizer = made(weights)
    steps(copies, optimizer, 3, seed=0)
    for peak in optimizer.peaks:
        peak.scale(0.5)
    others, again = made(copies)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((copies, optimizer), (others, again)):
        steps(*pair, 3, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(copies, others, strict=True))
    assert [p.value for p in optimizer.peaks] == [p.value for p in again.peaks]
    assert [p.start for p in optimizer.peaks] == [p.start for p in again.peaks] == pytest.approx([0.05, 0.1])
    assert [d.value for d in optimizer.decays] == [d.value for d in again.decays]
    assert optimizer.friction.late == again.friction.late != 0.1


class Dispatched(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [LearnedSGD, LearnedAdamW])
def test_nothing_waits_for_the_device(kind):
    weights = nn.Parameter(torch.ones(3))
    optimizer = kind([[weights]], scalars(0.1), [LearnedScalar(0.1, 1e-6, 1.0)], clip=1.0)
    with Dispatched() as dispatched:
        for progress in (0.0, 0.1, 0.2):
            weights.grad = torch.ones(3)
            optimizer.look(progress)
            optimizer.step(0.5)
            optimizer.learn([weights], [torch.ones(3)], rate=0.5)
    assert any("_fused_" in name and "tensor_lr" in name for name in dispatched.names)
    assert not [name for name in dispatched.names if "_local_scalar_dense" in name or "_to_copy" in name]
