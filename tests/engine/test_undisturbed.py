import pytest
import torch
from torch import nn

from dha.engine import undisturbed


def test_batch_statistics_are_used_and_not_recorded_and_nothing_is_random():
    torch.manual_seed(0)
    norm, dropout = nn.BatchNorm1d(3), nn.Dropout(0.5)
    network = nn.Sequential(norm, dropout)
    images = 5 + 2 * torch.randn(16, 3)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    with undisturbed([norm], [dropout]):
        first, second = network(images), network(images)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert torch.equal(norm.running_mean, before)
    assert norm.num_batches_tracked == 0
    assert not torch.equal(network(images), network(images)), "afterwards it is random again"
    assert norm.num_batches_tracked == 2, "and recorded"


def test_what_was_fixed_before_stays_fixed_and_errors_change_nothing():
    frozen, tracked, dropout = nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2), nn.Dropout().eval()

    def fail():
        with undisturbed([frozen, tracked], [dropout]):
            assert not tracked.track_running_stats
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not frozen.track_running_stats
    assert tracked.track_running_stats
    assert not dropout.training
