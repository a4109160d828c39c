import pytest
from hypothesis import given
from hypothesis import strategies as st

from dha import ArchitectureConfig, Config, automatic
from dha.automatic import choose_size, fastest, largest, open_precisions, within_reach
from dha.data import Preprocessing
from dha.engine import make_fabric
from dha.pace import Pace
from dha.sizes import LADDERS, NARROW

LADDER = [rung for rung in LADDERS["residual"] if rung[0] >= NARROW]


def paces(seconds):
    return {precision: Pace(taken, resizing=False) for precision, taken in seconds.items()}


def test_the_largest_rung_that_is_fast_enough():
    ladder = [(8, 1), (16, 1), (32, 1)]
    seconds = {(8, 1): 1.0, (16, 1): 3.0, (32, 1): 9.0}
    for costs in ([1, 4, 16], [1, 1.5, 2], [1, 100, 10_000]):
        assert largest(ladder, seconds.__getitem__, 2.0, costs) == (8, 1)
        assert largest(ladder, seconds.__getitem__, 3.0, costs) == (16, 1)
        assert largest(ladder, seconds.__getitem__, 100.0, costs) == (32, 1)
        assert largest(ladder, seconds.__getitem__, 0.1, costs) == (8, 1), "something has to be trained"


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=11), st.floats(0.005, 30.0), st.randoms())
def test_leaving_rungs_out_finds_the_same(seconds, most, chance):
    seconds = sorted(seconds)
    ladder, costs = [(number, 1) for number in range(len(seconds))], sorted(chance.random() for _ in seconds)
    measured = []

    def seconds_of(rung):
        measured.append(rung)
        return seconds[rung[0]]

    found = largest(ladder, seconds_of, most, [cost + 0.01 for cost in costs])
    assert found == max([rung for rung, taken in zip(ladder, seconds, strict=True) if taken <= most], default=ladder[0])
    assert len(set(measured)) == len(measured)
    assert found in measured


def test_what_is_sure_to_be_fast_enough_is_not_measured():
    measured = []

    def seconds_of(rung):
        measured.append(rung[0])
        return 1.0 if rung[0] < 64 else 5.0  # a device that so small networks do not keep busy

    widths = (8, 12, 16, 24, 32, 48, 64)
    assert largest([(width, 1) for width in widths], seconds_of, 4.0, [width**2 for width in widths]) == (48, 1)
    assert measured == [8, 16, 32, 64, 48]


def test_what_was_not_measured_is_not_taken():
    seconds = {(8, 1): 1.0, (16, 1): None, (32, 1): 0.0}
    assert largest([(8, 1), (16, 1), (32, 1)], seconds.__getitem__, 10.0, [1, 20, 30]) == (8, 1)


@pytest.fixture
def choose(monkeypatch):
    """Choose a size on a given machine: its seconds per image at width 8, growing with the square of the width."""

    def make(seconds, images=1000, **settings):
        def seconds_of_size(size, config, classes, preprocessing, fabric, precisions, start, most):
            heavy = 2 if start == "heavy" else 1
            return paces({"32": heavy * seconds * (size.width / 8) ** 2 * size.depth})

        monkeypatch.setattr(automatic, "seconds_of_size", seconds_of_size)
        # However slow the machine is that this runs on.
        monkeypatch.setattr(automatic.time, "monotonic", lambda: 0.0)
        preprocessing = Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3)
        chosen = choose_size(Config(**settings), images, 10, preprocessing, make_fabric("cpu", "32", 32), ["32"])
        return (chosen.space, chosen.size, chosen.start) if chosen.space != "residual" else chosen[:2]

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
    limited = choose(1e-6, budget="5m", max_parameters=700_000)[1]
    assert limited[:2] == (16, 1), "583 thousand parameters, and 24 wide has 1.3 million"
    assert choose(1e-6, budget="5m", max_flops=20_000_000)[1][:2] == (12, 1)
    assert choose(1e-6, budget="5m", max_parameters=20_000)[1][:2] == (3, 1)
    assert choose(1e-6, epochs=3, max_parameters=700_000)[1][:2] == (16, 1)
    assert choose(1e-6, epochs=3, max_parameters=200_000)[1][:2] == (8, 1)


@pytest.mark.parametrize(("space", "usual"), [("mobile", (32, 4, 224)), ("cells", (16, 5, 20))])
def test_mobile_and_cells_have_their_usual_size_unless_it_is_too_slow_or_too_large(choose, space, usual):
    # At the usual size a pass takes 64 or 20 times these seconds, and 1.25 times that if something is learned.
    at_usual = 64 if space == "mobile" else 20

    def chosen(passes, **settings):
        return choose(100 / (1000 * automatic.LEARNING * at_usual * passes), space=space, budget="100s", **settings)

    assert chosen(41) == (space, usual, "heavy")
    assert chosen(39) == chosen(16) == (space, usual, "light")
    smaller, smallest = chosen(14), chosen(0.01)
    assert LADDERS[space][0] < smaller[1][:2] < usual[:2]
    assert smallest[1][:2] == min(rung for rung in LADDERS[space] if rung[0] >= NARROW)
    assert smaller[2] == smallest[2] == "light"
    assert choose(1e3, space=space, epochs=3) == (space, usual, "light")
    named = ArchitectureConfig(width=usual[0], depth=usual[1])
    assert chosen(0.01, architecture=named) == (space, usual, "light")
    assert chosen(1000, max_parameters=100_000)[1].width == 8


def test_a_usual_size_that_is_far_too_slow_is_timed_once(monkeypatch):
    timed = []

    def seconds_of_size(size, config, classes, preprocessing, fabric, precisions, start, most):
        timed.append((size.width, start))
        return paces({"32": 1.0 if size.width == 16 else 1e-9})

    monkeypatch.setattr(automatic, "seconds_of_size", seconds_of_size)
    preprocessing = Preprocessing(8, 1, (0.5,), (0.2,))
    config = Config(space="cells", budget="100s", progressive_resizing=False)
    chosen = choose_size(config, 1000, 10, preprocessing, make_fabric("cpu", "32", 8), ["32"])
    assert timed[:2] == [(16, "heavy"), (8, "light")], "not the light one of the usual size"
    assert chosen.size.width < 16


def test_a_heavy_start_that_breaks_a_limit_is_not_taken(choose):
    assert choose(1e-9, space="mobile", budget="5m")[2] == "heavy"
    size = ArchitectureConfig(width=32, depth=4)
    assert choose(1e-9, space="mobile", budget="5m", max_parameters=1_400_000, architecture=size)[2] == "light"


def test_without_a_budget_nothing_is_measured(choose):
    assert choose(1e-9, epochs=3) == choose(1e3, epochs=3) == ("residual", (16, 1, 40))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"32": 1.0, "bf16": 0.5}, "bf16"),
        ({"32": 1.0, "bf16": 0.98}, "32"),
        ({"32": 1.0, "bf16": 0.96}, "bf16"),
        ({"bf16": 2.0, "32": 1.0}, "32"),
        ({"bf16": 2.0}, "bf16"),
    ],
)
def test_the_fastest_precision(seconds, expected):
    assert fastest(paces(seconds)) == expected
    assert seconds[fastest(paces(seconds))] <= 1.05 * min(seconds.values())


def test_a_precision_without_a_chance_is_not_timed_again():
    assert within_reach(paces({"32": 1.0, "bf16": 1.4})) == ["32", "bf16"]
    assert within_reach(paces({"32": 1.6, "bf16": 1.0})) == ["bf16"]
    assert within_reach(paces({"32": 1.0})) == ["32"]


# The times of float32 and bfloat16 in units of what a pass may take, at widths 8 and 12; bfloat16 gains with the width.
@pytest.mark.parametrize(
    ("times", "size", "precision", "timed"),
    [
        ([(0.5, 0.6), (1.5, 0.9), (4.0, 2.0)], 12, "bf16", ["32", "bf16", "32", "bf16", "bf16"]),
        ([(0.5, 0.6), (2.0, 1.1)], 8, "32", ["32", "bf16", "32", "bf16"]),
        ([(0.5, 0.8), (0.8, 9.0), (2.0, 9.0)], 12, "32", ["32", "bf16", "32", "32"]),
    ],
)
def test_size_and_precision_are_chosen_together(times, size, precision, timed, monkeypatch):
    asked = []

    def seconds_of_size(size, config, classes, preprocessing, fabric, precisions, start, most):
        at = times[LADDER.index(size[:2])]
        asked.extend(precisions)
        return paces({p: taken / 100 for p, taken in zip(("32", "bf16"), at, strict=True) if p in precisions})

    monkeypatch.setattr(automatic, "seconds_of_size", seconds_of_size)
    config = Config(budget=10 * automatic.PASSES, learn="none", progressive_resizing=False)
    preprocessing = Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3)
    fabric = make_fabric("cpu", "32", 32)
    _, chosen, precisions, *_ = choose_size(config, 1000, 10, preprocessing, fabric, ["32", "bf16"])
    assert (chosen.width, precisions) == (size, [precision])
    assert asked == timed


def test_what_is_open_to_measurement(monkeypatch):
    fabric = make_fabric("cpu", "32", 32)
    monkeypatch.setattr(automatic, "computes_in_bf16", lambda device: True)
    assert open_precisions(Config(budget="5m"), fabric) == ["32", "bf16"]
    assert open_precisions(Config(epochs=3), fabric) == ["32"], "a run by epochs can be repeated"
    assert open_precisions(Config(budget="5m", precision="32"), fabric) == ["32"]
    assert open_precisions(Config(budget="5m", precision="bf16"), make_fabric("cpu", "bf16", 32)) == ["bf16"]
    assert open_precisions(Config(budget="5m", strategy="fsdp"), fabric) == ["32"]
    monkeypatch.setattr(automatic, "computes_in_bf16", lambda device: False)
    assert open_precisions(Config(budget="5m"), fabric) == ["32"]


def test_a_step_may_take_what_a_budget_leaves_for_the_passes():
    plain = Config(budget="100s", learn="none", progressive_resizing=False)
    assert automatic.affordable(plain, images=500, passes=10) == pytest.approx(0.02)
    learning = Config(budget="100s", progressive_resizing=False)
    assert automatic.affordable(learning, 500, 10) == pytest.approx(0.02 / automatic.LEARNING)
    assert automatic.affordable(plain, 500, 10, spent=60.0) == pytest.approx(0.008)
    assert automatic.affordable(plain, 500, 10, spent=101.0) == 0
