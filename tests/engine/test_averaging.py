import pytest
import torch
from torch import nn

from dha.engine import WeightAverage, estimate_statistics


def test_average_is_exponential_in_the_share_of_the_run():
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, horizon=0.1)
    expected = before = None
    for progress, value in [(0.0, 1.0), (0.05, 3.0), (0.06, -2.0), (0.5, 7.0), (0.52, 0.0)]:
        with torch.no_grad():
            network.weight.fill_(value)
        average.update(progress)
        if expected is None or before is None:
            expected = value
        else:
            share = min(1.0, (progress - before) / 0.1)
            expected += share * (value - expected)
        before = progress
    averaged = average.averaged()
    assert isinstance(averaged, nn.Linear)
    assert averaged.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 0.0


def test_statistics_are_the_mean_over_the_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    batches = [torch.randn(8, 2, 4, 4) * 3 + 1 for _ in range(5)]
    estimate_statistics(network, batches)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    outputs = [network[0](batch) for batch in batches]
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1
    assert not network.training


def test_networks_without_batch_norm_need_no_statistics():
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    estimate_statistics(network, iter([]))
    assert not network.training
