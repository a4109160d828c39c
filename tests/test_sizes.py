import itertools
from typing import Any

import pytest
import torch

from dha import ArchitectureConfig, Config, DhaError, sizes
from dha.architecture import SIZES, Limits, count, derive, search_network, sparse_codes
from dha.data import Preprocessing
from dha.fit import run
from dha.sizes import fewest_costs, ladder, possible_sizes, start_costs


def images_of(side, channels=3):
    return Preprocessing(side, channels, (0.5,) * channels, (0.2,) * channels)


def searched(config, size, classes, side, channels=3, start: Any = "light"):
    settings = config.architecture
    options = {"nodes": settings.nodes, "choose": settings.choose, "squeeze_excite": settings.squeeze_excite}
    return search_network(config.space, channels, classes, side, size, start=start, **options)


def costs_of(network, side, channels=3):
    return count(derive(network), (channels, side, side))


@pytest.mark.parametrize("space", SIZES)
@pytest.mark.parametrize(
    ("side", "classes", "limits"),
    [
        (8, 10, {"max_parameters": 60_000, "max_flops": 2_000_000}),
        (32, 1000, {"max_parameters": 250_000}),
        (64, 10, {"max_parameters": 6000}),
        (224, 10, {"max_flops": 8_000_000}),
    ],
)
def test_every_architecture_of_the_size_chosen_keeps_the_limits(space, side, classes, limits):
    config = Config(space=space, **limits)
    *_, size = possible_sizes(config, classes, images_of(side))
    network = searched(config, size, classes, side)
    kept = Limits(network, (3, side, side), **limits)
    most = limits.get("max_parameters", 10**12), limits.get("max_flops", 10**15)
    found = [costs_of(network, side)]
    codes = sparse_codes(network)
    for _ in range(2):
        for code in codes:
            code.compressed.data.normal_()
            code.recover(0.0)
        for code, chosen in zip(codes, kept.best(codes, [torch.zeros_like(c.frozen) for c in codes]), strict=True):
            code.take(chosen)
        found.append(costs_of(network, side))
    assert all(cost[0] <= most[0] and cost[1] <= most[1] for cost in found)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ("residual", {}),
        ("residual", {"choose": 2}),
        ("mobile", {}),
        ("mobile", {"squeeze_excite": True}),
        ("cells", {}),
        ("cells", {"nodes": 2}),
    ],
)
def test_costs_of_a_start_are_those_of_the_network_that_a_run_begins_with(space, settings):
    config = Config(space=space, architecture=ArchitectureConfig(**settings))
    size = ladder(space, config.architecture)[2]
    for start in ("light", "heavy"):
        network = searched(config, size, 7, 20, channels=1, start=start)
        assert start_costs(config, size, 7, images_of(20, 1), start) == costs_of(network, 20, channels=1)


@pytest.mark.parametrize("space", SIZES)
@pytest.mark.parametrize("settings", [{}, {"width": 5}])
def test_costs_grow_along_the_ladder(space, settings):
    config = Config(space=space, architecture=ArchitectureConfig(**settings))
    for side in (8, 64):
        costs = [start_costs(config, size, 10, images_of(side)) for size in ladder(space, config.architecture)]
        for column in zip(*costs, strict=True):
            assert all(a < b for a, b in itertools.pairwise(column))


@pytest.mark.parametrize(
    ("space", "side", "channels", "classes"),
    [("residual", 64, 3, 10), ("residual", 32, 1, 1000), ("mobile", 64, 3, 10), ("cells", 32, 1, 1000)],
)
def test_a_limit_below_the_smallest_network_is_refused_with_what_that_costs(
    space, side, channels, classes, monkeypatch
):
    monkeypatch.setattr(sizes, "_other_remedies", lambda *_: iter(()))
    images = images_of(side, channels)
    parameters, flops = fewest_costs(Config(space=space), classes, images)
    smallest = (
        rf"smallest network of space {space} \(width 2, depth 1\) for {classes} classes and images of {side} pixels"
    )
    with pytest.raises(DhaError, match=f"max_parameters={parameters - 1}: the {smallest} has {parameters} parameters"):
        possible_sizes(Config(space=space, max_parameters=parameters - 1), classes, images)
    with pytest.raises(DhaError, match=f"max_flops={flops - 1}: the {smallest} takes {flops} multiply-adds per image"):
        possible_sizes(Config(space=space, max_flops=flops - 1), classes, images)
    alone: list[dict[str, Any]] = [{"max_parameters": parameters}, {"max_flops": flops}]
    for limits in alone:
        (size,) = possible_sizes(Config(space=space, **limits), classes, images)
        network = searched(Config(space=space), size, classes, side, channels)
        Limits(network, (channels, side, side), **limits)
        cost = costs_of(network, side, channels)
        assert (parameters if "max_parameters" in limits else flops) in cost


def test_what_a_refusal_suggests_works():
    small: dict[str, Any] = {"space": "mobile", "max_parameters": 5000, "max_flops": 400_000}
    config = Config(**small, architecture=ArchitectureConfig(width=64))
    with pytest.raises(DhaError) as refusal:
        possible_sizes(config, 10, images_of(64))
    text = str(refusal.value)
    raised, *others = text.rsplit(": ", 1)[1].removeprefix("set ").split(", or ")
    assert others == ["space=cells without architecture.width", "image_size=16 without architecture.width"]
    limits: dict[str, Any] = {
        name: int(number) for name, number in (part.split("=") for part in raised[:-8].split(" and "))
    }
    assert possible_sizes(Config(**small), 10, images_of(16))
    assert possible_sizes(Config(**{**small, "space": "cells"}), 10, images_of(64))
    assert list(limits) == ["max_parameters", "max_flops"]
    assert possible_sizes(Config(space="mobile", **limits, architecture=config.architecture), 10, images_of(64))


def test_a_width_that_breaks_a_limit_is_to_be_left_out():
    config = Config(space="mobile", max_parameters=500_000, architecture=ArchitectureConfig(width=64, depth=4))
    with pytest.raises(DhaError, match=r"width 64, depth 4.* or leave architecture\.width and architecture\.depth out"):
        possible_sizes(config, 10, images_of(32))
    assert possible_sizes(Config(space="mobile", max_parameters=500_000), 10, images_of(32))[-1][:2] == (16, 3)


def test_width_and_depth_that_are_set_are_kept():
    limits: dict[str, Any] = {"space": "mobile", "max_parameters": 150_000}
    width = possible_sizes(Config(**limits, architecture=ArchitectureConfig(width=9)), 10, images_of(32))
    depth = possible_sizes(Config(**limits, architecture=ArchitectureConfig(depth=3)), 10, images_of(32))
    assert {size.width for size in width} == {9}
    assert {size.depth for size in depth} == {3}


@pytest.mark.parametrize(("space", "most"), [("mobile", 20_000), ("cells", 1500), ("residual", 5000)])
def test_a_run_with_nothing_but_a_limit_keeps_it(space, most):
    config = Config(space=space, epochs=1, device="cpu", max_parameters=most, learn="architecture")
    network = run("digits", config=config).model.network
    assert count(network, (1, 8, 8))[0] <= most
