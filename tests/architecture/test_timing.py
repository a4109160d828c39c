import pytest
import torch
from torch import nn

from dha.architecture import Size, SparseChoice, candidate_seconds, search_network, sparse_codes, timing


class Takes(nn.Module):
    """Takes so many seconds of a clock that stands still otherwise."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock[0] += self.seconds
        return x


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
    return now


def test_every_candidate_has_its_own_time_chosen_or_not(clock):
    first = SparseChoice({name: Takes(clock, s) for name, s in (("a", 1.0), ("b", 2.0), ("c", 4.0))}, start=["b"])
    second = SparseChoice({name: Takes(clock, s) for name, s in (("a", 8.0), ("b", 0.0))}, start=["a"])
    network = nn.Sequential(first, Takes(clock, 16.0), second)
    (one, other), rest = candidate_seconds(network, torch.zeros(2, 3, 4, 4))
    assert one.tolist() == [[1.0, 2.0, 4.0]]
    assert other.tolist() == [[8.0, 0.0]]
    assert rest == 16.0
    assert network.training


def test_a_choice_inside_of_a_candidate_is_counted_apart(clock):
    inner = SparseChoice({"a": Takes(clock, 1.0), "b": Takes(clock, 2.0)}, start=["a"])
    outer = SparseChoice({"a": nn.Sequential(inner, Takes(clock, 4.0)), "b": Takes(clock, 8.0)}, start=["b"])
    times, rest = candidate_seconds(nn.Sequential(outer), torch.zeros(2, 3, 4, 4))
    by_codes = dict(zip(sparse_codes(outer), (t.tolist() for t in times), strict=True))
    assert by_codes == {outer.codes: [[4.0, 8.0]], inner.codes: [[1.0, 2.0]]}
    assert rest == 0.0


@pytest.mark.parametrize("space", ["residual", "mobile", "cells"])
def test_in_every_space_real_candidates_take_time_and_nothing_changes(space):
    network = search_network(space, 3, 10, 16, Size(4, 3 if space == "cells" else 1, 16))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    times, rest = candidate_seconds(network, torch.randn(4, 3, 16, 16))
    assert rest > 0
    for seconds, codes in zip(times, sparse_codes(network), strict=True):
        assert seconds.shape == codes.real.shape
        assert (seconds[codes.real] >= 0).all()
        assert (seconds[~codes.real] == 0).all()
        assert seconds.sum() > 0
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
