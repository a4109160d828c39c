import pytest
import torch
from torch import nn

from dha import Config, pace
from dha.architecture import Size, search_network, sparse_codes
from dha.data import Preprocessing
from dha.engine import make_fabric
from dha.pace import seconds_by_choice, seconds_per_image


def test_timing_leaves_the_weights_as_they_are():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    before = [weight.detach().clone() for weight in network.parameters()]
    dtypes = []
    network[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    preprocessing = Preprocessing(8, 3, (0.5,) * 3, (0.2,) * 3)
    arguments = network, Config(batch_size=4), preprocessing, make_fabric("cpu", "32", 8)
    seconds = seconds_per_image(*arguments, ["32", "bf16"])
    assert dtypes == [torch.float32, torch.bfloat16] * 3
    assert list(seconds) == ["32", "bf16"]
    assert min(seconds.values()) > 0
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    seconds_per_image(*arguments, ["32", "bf16"], most=1e-9)
    assert len(dtypes) == 8, "one step of each, if there is no time for more"


@pytest.mark.parametrize(("progressive", "sides"), [(True, [32, 20] * 3), (False, [32] * 3)])
def test_images_are_as_large_as_in_a_run(progressive, sides):
    network, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    config, preprocessing = (
        Config(batch_size=4, progressive_resizing=progressive),
        Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3),
    )
    seconds = seconds_per_image(network, config, preprocessing, make_fabric("cpu", "32", 32), ["32"])
    assert seen == sides
    assert seconds["32"] > 0


def test_choices_are_timed_as_shares_of_a_step(monkeypatch):
    network = search_network("residual", 3, 4, 16, Size(4, 1, 16))
    times = [torch.arange(1.0, 8.0).double()[None] for _ in sparse_codes(network)]
    monkeypatch.setattr(pace, "candidate_seconds", lambda *_: (times, 5.0))
    monkeypatch.setattr(pace, "seconds_per_image", lambda *_: {"32": 0.5})
    preprocessing = Preprocessing(16, 3, (0.5,) * 3, (0.2,) * 3)
    config, fabric = Config(batch_size=8, precision="32"), make_fabric("cpu", "32", 16)
    seconds, rest = seconds_by_choice(network, config, preprocessing, fabric)
    # The reference: skip (7 s), pair_3x3 (1 s), single_5x5 (5 s), and 5 s for the rest, in a step of half a second.
    assert rest == pytest.approx(0.5 * 5 / 18)
    assert float(seconds[1][0, 6]) == pytest.approx(0.5 * 7 / 18)
