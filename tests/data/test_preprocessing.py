import json

import pytest
import torch

from dha.data import Preprocessing, measure
from dha.errors import DhaError


def test_measure_agrees_with_a_float_copy():
    images = torch.randint(0, 200, (5000, 3, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[:, 1] //= 4
    mean, std = measure(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_measure_keeps_the_deviation_of_constant_images_above_zero():
    assert measure(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)) == (pytest.approx((0.2,)), (1 / 255,))


def test_normalise_gives_mean_0_and_deviation_1_and_keeps_type():
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    images[:, 2] //= 3
    normalised = Preprocessing(8, 3, *measure(images)).normalise(images.double() / 255)
    assert normalised.dtype == torch.float64
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-9)
    assert torch.allclose(normalised.std((0, 2, 3), correction=0), torch.ones(3).double())
    assert Preprocessing(8, 3, *measure(images)).normalise(images[0].half() / 255).dtype == torch.float16


def test_dict_survives_json():
    preprocessing = Preprocessing(32, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "pad", "black", 4095, 1)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_bad_fields_are_named():
    with pytest.raises(DhaError, match="channels is 2; pass 1"):
        Preprocessing(8, 2, (0, 0), (1, 1))
    with pytest.raises(DhaError, match=r"std has 1 values .* each of 3 channels"):
        Preprocessing(8, 3, (0, 0, 0), (1,))
    with pytest.raises(DhaError, match=r"std is \(0\.0,\); every value must be above 0"):
        Preprocessing(8, 1, (0.5,), (0.0,))
    good = Preprocessing(8, 1, (0.5,), (0.5,)).to_dict()
    with pytest.raises(DhaError, match=r"lacks \['std'\]"):
        Preprocessing.from_dict({name: value for name, value in good.items() if name != "std"})
    for name, value, expected in (
        ("resize", "stretch", "pass pad, crop or squash"),
        ("background", ["white"], "pass white or black"),
        ("integer_white", 1000, "pass 255, 1023, 4095, 16383 or 65535"),
        ("integer_white", True, "pass 255"),
        ("float_white", 0.5, "pass 1, 255"),
    ):
        with pytest.raises(DhaError, match=f"{name} is .*; {expected}"):
            Preprocessing.from_dict({**good, name: value})
