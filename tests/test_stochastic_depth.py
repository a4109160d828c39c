from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dha.architecture import DropPath
from dha.stochastic_depth import StochasticDepth


def depth(probability=0.5, seed=0, rank=0, processes=1):
    fabric: Any = SimpleNamespace(world_size=processes, global_rank=rank, device=torch.device("cpu"))
    return StochasticDepth(probability, fabric, seed)


def factors(of, n, passes=1):
    """Return what two branches are multiplied by in one pass after another, (passes, 2, n)."""
    paths, drawn = [DropPath(), DropPath()], []
    for _ in range(passes):
        multiplied = of.factors(paths, n)
        drawn.append(torch.ones(2, n) if multiplied is None else multiplied)
    return torch.stack(drawn)


def test_every_pass_has_drops_of_its_own_that_follow_the_seed():
    first, second = factors(depth(), 64, passes=2)
    assert first.unique().tolist() == [0, 2]
    assert not torch.equal(first, second)
    assert not torch.equal(*first)
    assert torch.equal(factors(depth(), 64)[0], first)
    assert not torch.equal(factors(depth(seed=1), 64)[0], first)


def test_processes_share_the_draws_of_one():
    parts = [factors(depth(rank=rank, processes=2), 32) for rank in range(2)]
    assert torch.equal(torch.cat(parts, 2), factors(depth(), 64))


def test_the_draws_go_on_where_they_were():
    begun, gone_on = depth(0.3), depth(0.3)
    factors(begun, 64, passes=3)
    gone_on.load_state_dict(begun.state_dict())
    assert torch.equal(factors(begun, 64), factors(gone_on, 64))


def test_nothing_is_drawn_at_zero():
    whole = depth(0.0)
    before = whole.generator.get_state()
    assert (factors(whole, 8) == 1).all()
    assert torch.equal(whole.generator.get_state(), before)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_probability_follows_the_validation_gradient(sign):
    # One weight, whose training loss grows with what is dropped.
    of, path, weight = depth(0.2), DropPath(), torch.ones(1, requires_grad=True)

    def loss():
        return (path(weight.expand(64, 1, 1, 1)) - 1).square().mean()

    of.learn(loss, [path], 64, [weight], [torch.tensor([float(sign)])], rate=0.1)
    assert of.probability.value.item() == pytest.approx(0.2 * torch.exp(torch.tensor(0.1 * sign)).item())
    assert of.probability.late == pytest.approx(0.2), "one move late on the host"
