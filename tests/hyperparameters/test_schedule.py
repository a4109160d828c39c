import math
from itertools import pairwise

import pytest
import torch

from dha.hyperparameters import LateScalar, LearnedScalar, linear_schedule
from dha.hyperparameters.schedule import LARGEST, NEAR


def test_schedule_warms_up_peaks_and_ends_at_zero():
    values = [linear_schedule(p / 1000, warmup=0.1) for p in range(1001)]
    assert values[0] > 0
    assert values.index(max(values)) == 100
    assert max(values) == 1
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a <= b for a, b in pairwise(values[:101]))
    assert all(a >= b for a, b in pairwise(values[100:]))
    assert values[325] == pytest.approx(0.75)
    assert values[550] == pytest.approx(0.5)
    assert linear_schedule(0.0, warmup=0.0) == 1


def test_learned_scalar_moves_in_log_space_within_its_box():
    scalar = LearnedScalar(0.1, 1e-3, 1.0)
    scalar.move(torch.tensor(0.5), rate=0.2)
    assert scalar.value.item() == pytest.approx(0.1 * math.exp(0.1))
    for _ in range(1000):
        scalar.move(torch.tensor(1.0), rate=0.2)
    assert scalar.value.item() == 1.0
    for _ in range(1000):
        scalar.move(torch.tensor(-1.0), rate=0.2)
    assert scalar.value.item() == pytest.approx(1e-3)


def test_a_value_moves_a_little_at_a_time_however_much_the_gradients_agree():
    scalar = LearnedScalar(0.1, 1e-3, 1.0)
    scalar.move(torch.tensor(1.0), rate=10.0)
    assert scalar.value.item() == pytest.approx(0.1 * math.exp(LARGEST))
    scalar.move(torch.tensor(-1.0), rate=10.0)
    assert scalar.value.item() == pytest.approx(0.1)


def test_a_start_draws_most_from_near_and_not_at_all_from_far_away():
    scalar = LearnedScalar(0.1, 1e-6, 1e3)

    def drawn(away):
        scalar.value = 0.1 * torch.tensor(away * NEAR).exp()
        return scalar.distance().item()

    assert drawn(0.0) == pytest.approx(0, abs=1e-6)
    assert drawn(1.0) == pytest.approx(1)
    assert drawn(-1.0) == pytest.approx(-1)
    assert all(abs(drawn(away)) < 1 for away in (-2.0, -0.5, 0.5, 2.0))
    assert abs(drawn(5.0)) < 1e-4
    assert drawn(1e-3) == pytest.approx(1e-3 * math.exp(0.5), rel=1e-2)


def test_initial_value_outside_the_box_widens_it_and_nan_moves_nothing():
    scalar = LearnedScalar(3.0, 1e-3, 1.0)
    assert scalar.value.item() == 3.0
    scalar.move(torch.tensor(math.nan), rate=0.2)
    assert scalar.value.item() == 3.0


@pytest.mark.parametrize("initial", [1e-3, 1.0])
def test_hypergradient_descent_brings_a_bad_learning_rate_towards_a_good_one(initial):
    # A quadratic bowl of curvature 10: steps of more than 0.2 diverge, the best fixed one is 0.1.
    scalar, weights = LearnedScalar(initial, 1e-4, 1.0), torch.ones(5)
    for _ in range(60):
        update = 10 * weights
        weights = (weights - scalar.value * update).clamp(-100, 100)
        direction = torch.nn.functional.cosine_similarity(10 * weights, update, dim=0)
        scalar.move(direction, rate=0.2)
    assert 0.05 < scalar.value.item() < 0.2


def test_a_late_scalar_is_one_move_behind_on_the_host():
    scalar = LateScalar(0.1, 1e-3, 1.0)
    values = [0.1]
    for _ in range(3):
        assert scalar.late == pytest.approx(values[-1] if len(values) == 1 else values[-2])
        scalar.move(torch.tensor(0.5), rate=0.2)
        values.append(scalar.value.item())
    assert values == pytest.approx([0.1 * math.exp(0.1 * moves) for moves in range(4)])
