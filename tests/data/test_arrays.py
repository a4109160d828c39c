from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import ImageFormat, images_from_arrays, load_source
from dha.errors import DhaError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def colour(x: Any) -> torch.Tensor:
    return images_from_arrays(x, ImageFormat(8, 3))


@pytest.mark.parametrize(
    "x",
    [
        PIXELS,
        PIXELS.astype(np.int64),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).float() / 255,
        np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1),
        [Image.fromarray(image) for image in PIXELS],
        tuple(Image.fromarray(image) for image in PIXELS),
    ],
)
def test_all_kinds_give_the_same_pixels(x: Any):
    assert np.array_equal(colour(x).numpy(), PIXELS.transpose(0, 3, 1, 2))


def test_grey_arrays_and_booleans():
    grey = PIXELS[..., 0]
    for x in (grey, grey[..., None], torch.from_numpy(grey)):
        assert np.array_equal(images_from_arrays(x, ImageFormat(8, 1))[:, 0].numpy(), grey)
    assert np.array_equal(images_from_arrays(grey > 99, ImageFormat(8, 1))[:, 0].numpy(), (grey > 99) * 255)
    assert torch.equal(colour(grey)[:, 1], torch.from_numpy(grey))


def test_half_precision_tensors_lose_no_level():
    levels = torch.arange(256).view(1, 16, 16) / 255
    assert images_from_arrays(levels.half(), ImageFormat(16, 1)).flatten().tolist() == list(range(256))


def test_the_images_are_a_copy():
    x = PIXELS[..., 0].copy()
    images = images_from_arrays(x, ImageFormat(8, 1))
    before = images.clone()
    x[:] = 0
    assert torch.equal(images, before)
    x.flags.writeable = False
    images_from_arrays(x, ImageFormat(8, 1))


def at(value: Any, dtype: Any = np.float64, fill: float = 0.5) -> np.ndarray:
    x = np.full((3, 8, 8), fill, dtype=dtype)
    x[2, 1, 7] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (at(np.nan), r"x\[2, 1, 7, 0\] is nan, outside \[0, 1\].*replace NaN"),
        (at(np.inf), r"x\[2, 1, 7, 0\] is inf.*infinite"),
        (at(-0.5), r"x\[2, 1, 7, 0\] is -0\.5, outside \[0, 1\].*pass uint8 or floats"),
        (at(200.0), r"x\[2, 1, 7, 0\] is 200\.0.*looks like 0\.\.255: divide by 255"),
        (at(256, np.int32, 0), r"x\[2, 1, 7, 0\] is 256, outside 0\.\.255"),
        (at(-1, np.int8, 0), r"x\[2, 1, 7, 0\] is -1, outside 0\.\.255"),
        (np.zeros((3, 8), np.uint8), r"x has shape \(3, 8\); pass images as \(N, H, W\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\), so 8 channels; channels come last"),
        (np.zeros((0, 8, 8), np.uint8), r"shape \(0, 8, 8, 1\), so it holds no images"),
        (np.full((2, 8, 8), None), r"x has dtype object; pass uint8"),
        (np.zeros((2, 8, 8), complex), r"x has dtype complex128"),
        ([], "x is an empty list"),
        ([Image.new("L", (8, 8)), PIXELS[0]], r"x\[1\] is a ndarray; a list holds Pillow images .*np\.stack"),
        ("x.png", "x is a str; pass an array"),
    ],
)
def test_other_arrays_are_refused(x: Any, message: str):
    with pytest.raises(DhaError, match=message):
        colour(x)


def test_the_first_bad_pixel_is_found_beyond_the_first_chunk():
    x = np.zeros((5000, 4, 4), dtype=np.float32)
    x[4500, 3, 2] = 2
    with pytest.raises(DhaError, match=r"x\[4500, 3, 2, 0\] is 2\.0"):
        images_from_arrays(x, ImageFormat(4, 1))


def test_labelled_arrays_become_a_source():
    source = load_source(PIXELS, ["b", "a", "b", "c"])
    assert source.classes == ("a", "b", "c")
    assert source.train.labels.tolist() == [1, 0, 1, 2]
    assert np.array_equal(source.train.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert (source.validation, source.test) == (None, None)


def test_images_of_different_sizes_take_the_median_shorter_side():
    sizes = [(20, 10), (12, 30), (40, 50)]
    images = [Image.new("RGB", size, (i, 0, 0)) for i, size in enumerate(sizes)]
    source = load_source(images, [0, 1, 0])
    assert source.train.images.shape == (3, 3, 12, 12)
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_labels_must_match_images():
    with pytest.raises(DhaError, match="labels are missing; pass one label"):
        load_source(PIXELS)
    with pytest.raises(DhaError, match="labels are 3, but there are 4 images"):
        load_source(PIXELS, [0, 1, 0])
    with pytest.raises(DhaError, match=r"labels\[3\] is missing \(nan\)"):
        load_source(PIXELS, [0, 1, 0, float("nan")])
