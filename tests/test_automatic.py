import pytest

from dha import ArchitectureConfig, Config, automatic
from dha.automatic import LADDER, choose_size, largest
from dha.data import Preprocessing
from dha.engine import make_fabric


def test_the_largest_rung_that_is_fast_enough():
    ladder = [(8, 1), (16, 1), (32, 1)]
    seconds = {(8, 1): 1.0, (16, 1): 3.0, (32, 1): 9.0}
    assert largest(ladder, seconds.__getitem__, 2.0) == (8, 1)
    assert largest(ladder, seconds.__getitem__, 3.0) == (16, 1)
    assert largest(ladder, seconds.__getitem__, 100.0) == (32, 1)
    assert largest(ladder, seconds.__getitem__, 0.1) == (8, 1), "something has to be trained"


def test_what_was_not_measured_is_not_taken():
    seconds = {(8, 1): 1.0, (16, 1): None, (32, 1): 0.0}
    assert largest([(8, 1), (16, 1), (32, 1)], seconds.__getitem__, 10.0) == (8, 1)


@pytest.fixture
def choose(monkeypatch):
    """Choose a size on a given machine: its seconds per image at width 8, growing with the square of the width."""

    def make(seconds, images=1000, **settings):
        def seconds_per_image(config, size, *_):
            return seconds * (size.width / 8) ** 2 * size.depth

        monkeypatch.setattr(automatic, "seconds_per_image", seconds_per_image)
        preprocessing = Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3)
        return choose_size(Config(**settings), images, 10, preprocessing, make_fabric("cpu", "32", 32))

    return make


def test_size_follows_from_speed_budget_and_images(choose):
    slow = choose(1e-3, budget="5m")
    assert slow == choose(1e-3, budget="5m"), "the same step time gives the same size"
    fast = choose(1e-4, budget="5m")
    assert slow[0] == fast[0] == "residual"
    assert LADDER.index(fast[1][:2]) > LADDER.index(slow[1][:2])
    assert choose(1e-3, budget="50m")[1].width > slow[1].width
    assert choose(1e-3, images=10_000, budget="5m")[1].width < slow[1].width
    assert choose(1e-3, budget="5m", learn="none")[1].width >= slow[1].width


def test_what_is_set_is_kept(choose):
    space, size = choose(1e-4, budget="5m", architecture=ArchitectureConfig(width=10, depth=3, resolution=16))
    assert (space, *size) == ("residual", 10, 3, 16)
    assert choose(1e-4, budget="5m", architecture=ArchitectureConfig(depth=3))[1].depth == 3
    assert choose(1e-4, budget="5m", space="cells")[0] == "cells"


def test_limits_are_kept(choose):
    free = choose(1e-6, budget="5m")[1]
    assert free[:2] == LADDER[-1]
    limited = choose(1e-6, budget="5m", max_parameters=500_000)[1]
    assert limited[:2] == (16, 1), "444 thousand parameters, and 24 wide has a million"
    assert choose(1e-6, budget="5m", max_flops=20_000_000)[1][:2] == (12, 1)
    assert choose(1e-6, budget="5m", max_parameters=10)[1][:2] == LADDER[0], "what can still be done is not known here"
    assert choose(1e-6, epochs=3, max_parameters=500_000)[1][:2] == (16, 1)
    assert choose(1e-6, epochs=3, max_parameters=200_000)[1][:2] == (8, 1)


def test_without_a_budget_nothing_is_measured(choose):
    assert choose(1e-9, epochs=3) == choose(1e3, epochs=3)
