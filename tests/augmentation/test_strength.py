import pytest
import torch

from dha.augmentation import OPERATIONS
from dha.augmentation.operations import signed
from dha.augmentation.strength import STEEPEST, intensity, log_mean_exp, tilted


@pytest.mark.parametrize("tilt", [-STEEPEST, -2.0, 0.0, 5e-4, 0.3, 4.0, STEEPEST])
@pytest.mark.parametrize("both", [False, True])
def test_strengths_have_the_exponential_density(tilt, both):
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    sides = torch.full_like(uniforms, both, dtype=torch.bool)
    strengths = tilted(uniforms, torch.full_like(uniforms, tilt), sides)
    assert strengths.min() >= 0
    assert strengths.max() < 1
    # Numerical integration of the density that is promised.
    v = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    density = (tilt * v).softmax(0)
    found = intensity(strengths, sides).double()
    for power in (1, 2):
        assert float((found**power).mean()) == pytest.approx(float((density * v**power).sum()), abs=1e-3)
    if both:
        assert float(strengths.mean()) == pytest.approx(0.5, abs=1e-3)


def test_without_a_tilt_strengths_stay_as_they_are():
    uniforms = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for both in (False, True):
        assert torch.equal(tilted(uniforms, torch.zeros(1000), torch.full((1000,), both)), uniforms)


def test_log_mean_exp_is_that_of_the_integral():
    v = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 - 0.5
    tilts = torch.tensor([-STEEPEST, -1.0, 0.0, 1e-3, 2.0, STEEPEST])
    expected = torch.stack([(tilt * v).exp().mean().log() for tilt in tilts.double()])
    torch.testing.assert_close(log_mean_exp(tilts), expected.float(), rtol=0, atol=1e-4)


def test_signed_operations_are_those_of_the_table():
    names = tuple(OPERATIONS)
    assert [n for n, both in zip(names, signed(names).tolist(), strict=True) if both] == [
        "rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"
    ]  # fmt: skip
