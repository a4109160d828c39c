import numpy as np
import pytest

from dha.data.stratify import hold_out

LABELS = np.repeat([0, 1, 2, 3], [200, 31, 5, 2])


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.1, [20, 3, 1, 1]), (0.5, [100, 16, 2, 1]), (0.99, [198, 30, 4, 1])]
)
def test_every_class_gives_its_share(fraction: float, expected: list[int]):
    held = hold_out(LABELS, fraction, np.random.default_rng(0))
    assert np.bincount(LABELS[held]).tolist() == expected


def test_enough_is_kept():
    labels = np.repeat([0, 1], 3)
    held = hold_out(labels, 0.9, np.random.default_rng(0), keep=2)
    assert np.bincount(labels[~held]).tolist() == [2, 2]


def test_the_draw_depends_on_the_generator_alone():
    first, second, other = (hold_out(LABELS, 0.3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
