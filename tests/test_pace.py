import pytest
import torch
from torch import nn

from dha import Config, pace
from dha.architecture import Size, search_network, sparse_codes
from dha.data import Preprocessing
from dha.engine import make_fabric
from dha.pace import Pace, seconds_by_choice, seconds_per_image


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
    assert min(pace.seconds for pace in seconds.values()) > 0
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
    paces = seconds_per_image(network, config, preprocessing, make_fabric("cpu", "32", 32), ["32"])
    assert seen == sides
    assert paces["32"].seconds > 0
    assert paces["32"].resizing == progressive


@pytest.mark.parametrize(
    ("small", "progressive", "resizing", "seconds"),
    [
        (1.0, None, False, 1.0),  # a device that small images do not keep busy
        (0.7, None, False, 1.0),
        (0.3, None, True, 1 / (0.3 / 0.3 + 0.25 / 0.498 + 0.2 / 0.731 + 0.25)),
        (1.0, True, True, 1.0),
        (0.3, False, False, 1.0),
    ],
)
def test_images_begin_small_where_that_is_worth_it(small, progressive, resizing, seconds, monkeypatch):
    network, clock = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), [0.0]

    def tick(module, inputs, output):
        clock[0] += 4 * (1.0 if inputs[0].shape[-1] == 32 else small)

    network[0].register_forward_hook(tick)
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    config = Config(batch_size=4, progressive_resizing=progressive)
    preprocessing = Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3)
    paces = seconds_per_image(network, config, preprocessing, make_fabric("cpu", "32", 32), ["32"])
    assert paces["32"].resizing == resizing
    assert paces["32"].seconds == pytest.approx(seconds, rel=0.01)


def test_choices_are_timed_as_shares_of_a_step(monkeypatch):
    network = search_network("residual", 3, 4, 16, Size(4, 1, 16))
    times = [torch.arange(1.0, 8.0).double()[None] for _ in sparse_codes(network)]
    monkeypatch.setattr(pace, "candidate_seconds", lambda *_: (times, 5.0))
    monkeypatch.setattr(pace, "seconds_per_image", lambda *_: {"32": Pace(0.5, resizing=True)})
    preprocessing = Preprocessing(16, 3, (0.5,) * 3, (0.2,) * 3)
    config, fabric = Config(batch_size=8, precision="32"), make_fabric("cpu", "32", 16)
    seconds, rest = seconds_by_choice(network, config, preprocessing, fabric)
    # The reference: pair_3x3 (1 s), skip (7 s), single_5x5 (5 s), and 5 s for the rest, in a step of half a second.
    assert rest == pytest.approx(0.5 * 5 / 18)
    assert float(seconds[1][0, 6]) == pytest.approx(0.5 * 7 / 18)
