import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dha.config import Background
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
        np.concatenate([PIXELS, np.full_like(PIXELS[..., :1], 255)], axis=-1),
        PIXELS.transpose(0, 3, 1, 2),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        list(PIXELS),
        [torch.from_numpy(image).permute(2, 0, 1) for image in PIXELS],
        [Image.fromarray(PIXELS[0]), PIXELS[1], torch.from_numpy(PIXELS[2]) / 255, PIXELS[3].transpose(2, 0, 1)],
        np.array([*map(Image.fromarray, PIXELS), None], dtype=object)[:-1],
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
    x = np.full((4, 8, 8), fill, dtype=dtype)
    x[2, 1, 7] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (at(np.nan), r"x\[2, 1, 7, 0\] is nan, outside 0\.\.65535 .*replace NaN"),
        (at(np.inf), r"x\[2, 1, 7, 0\] is inf.*infinite"),
        (at(-0.5), r"x\[2, 1, 7, 0\] is -0\.5, outside 0\.\.65535 .*scale pixels to"),
        (at(1.5), r"x has values up to 1\.5: floats are taken for \[0, 1\] or for 0\.\.255.*scale them to \[0, 1\]"),
        (at(-1, np.int16, 0), r"x\[2, 1, 7, 0\] is -1, outside 0\.\."),
        (at(70_000, np.int32, 0), r"x\[2, 1, 7, 0\] is 70000, outside 0\.\.65535"),
        (np.zeros(3, np.uint8), r"x has shape \(3,\); pass images as \(N, H, W\)"),
        (np.zeros((2, 8, 8, 8), np.uint8), r"shape \(2, 8, 8, 8\); channels, 1 to 4 of them .* second or the last"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"or 3 grey ones\? Pass it as \(1, 3, 8, 8\).*\(3, 8, 8, 1\)",
        ),
        (np.zeros((0, 8, 8), np.uint8), r"shape \(0, 8, 8\), so it holds no images"),
        (np.zeros((2, 8, 8), complex), r"x has dtype complex128"),
        ([], "x is an empty list"),
        ([PIXELS[0], [[1, 2], [3, 4]]], r"x\[1\] is a list; a list holds arrays, tensors, Pillow images or paths"),
        ([PIXELS[0], PIXELS], r"x\[1\] has shape \(4, 8, 8, 3\); pass an image as \(H, W\)"),
        ([PIXELS[0], "gone.png"], r"x\[1\] is 'gone\.png': no such image file"),
        ({"a": PIXELS}, "x is a dict; pass an array"),
        ("x.png", r"x\.png cannot be opened"),
    ],
)
def test_other_arrays_are_refused(x: Any, message: str):
    with pytest.raises(DhaError, match=message):
        colour(x)


def test_the_first_bad_pixel_is_found_beyond_the_first_chunk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dha.data.array_pixels._CHUNK", 1000)
    x = np.zeros((5000, 4, 4), dtype=np.float32)
    x[4500, 3, 2] = -2
    with pytest.raises(DhaError, match=r"x\[4500, 3, 2, 0\] is -2\.0"):
        images_from_arrays(x, ImageFormat(4, 1))


def test_labelled_arrays_become_a_source():
    source = load_source(PIXELS, ["b", "a", "b", "c"])
    assert source.classes == ("a", "b", "c")
    assert source.train.labels.tolist() == [1, 0, 1, 2]
    assert np.array_equal(source.train.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert (source.validation, source.test) == (None, None)


def test_images_of_different_sizes_take_the_median_longer_side():
    sizes = [(20, 10), (12, 30), (40, 50)]
    images = [Image.new("RGB", size, (i, 0, 0)) for i, size in enumerate(sizes)]
    source = load_source(images, [0, 1, 0])
    assert source.train.images.shape == (3, 3, 30, 30)
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_labels_must_match_images():
    with pytest.raises(DhaError, match="labels are missing; pass one label"):
        load_source(PIXELS)
    with pytest.raises(DhaError, match="labels are 3, but there are 4 images"):
        load_source(PIXELS, [0, 1, 0])
    with pytest.raises(DhaError, match=r"labels\[3\] is missing \(nan\)"):
        load_source(PIXELS, [0, 1, 0, float("nan")])


GREY = PIXELS[..., 0]


@pytest.mark.parametrize(
    ("x", "channels", "expected"),
    [
        (GREY[0], 1, GREY[:1, None]),
        (torch.from_numpy(GREY[0]), 1, GREY[:1, None]),
        (PIXELS[0], 3, PIXELS[:1].transpose(0, 3, 1, 2)),
        (torch.from_numpy(PIXELS[0]).permute(2, 0, 1), 3, PIXELS[:1].transpose(0, 3, 1, 2)),
        (Image.fromarray(PIXELS[0]), 3, PIXELS[:1].transpose(0, 3, 1, 2)),
        (torch.from_numpy(GREY[:1]), 1, GREY[:1, None]),
        # To a model of grey images, three of them.
        (GREY[:3], 1, GREY[:3, None]),
        (torch.from_numpy(GREY[:3]), 1, GREY[:3, None]),
        # To a model of colour images, in which grey ones have three equal channels.
        (GREY[0], 3, GREY[:1, None].repeat(3, 1)),
        (GREY[:2], 3, GREY[:2, None].repeat(3, 1)),
    ],
)
def test_one_image_is_one_image(x: Any, channels: int, expected: np.ndarray):
    assert np.array_equal(images_from_arrays(x, ImageFormat(8, channels)).numpy(), expected)


@pytest.mark.parametrize("as_list", [False, True])
def test_transparent_arrays_show_the_background(as_list: bool):
    colour = np.array([100, 0, 250, 51], np.uint8) * np.ones((2, 4, 4, 1), np.uint8)
    colour[1, ..., 3] = 255
    grey = colour[..., 2:]
    backgrounds: list[tuple[Background, int]] = [("white", 255), ("black", 0)]
    for background, behind in backgrounds:
        levels = [round(0.2 * level + 0.8 * behind) for level in (100, 0, 250)]
        for x, channels, shown in ((colour, 3, levels), (grey, 1, levels[2:]), (colour / 255, 3, levels)):
            images = images_from_arrays(list(x) if as_list else x, ImageFormat(4, channels, background=background))
            assert images[0, :, 1, 2].tolist() == shown
            assert images[1, :, 1, 2].tolist() == [100, 0, 250][-channels:]


@pytest.mark.parametrize(
    ("largest", "dtype", "white"),
    [
        (1000, np.uint16, 1023),
        (4095, np.int32, 4095),
        (255, np.int64, 255),
        (65535, np.uint16, 65535),
        (1.0, np.float32, 1),
        (1.0005, np.float32, 1),
        (200.0, np.float64, 255),
        (3000.0, np.float32, 4095),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_deep_arrays_are_scaled_by_the_largest_value_of_all(largest: float, dtype: Any, white: int, as_list: bool):
    x = np.array([0, largest / 4, largest]).astype(dtype)[:, None, None] * np.ones((8, 8), dtype)
    source = load_source(list(x) if as_list else x, [0, 1, 0])
    expected = [min(255, round(float(level) / white * 255)) for level in x[:, 0, 0]]
    assert source.train.images[:, 0, 0, 0].tolist() == expected
    whites = source.image_format.integer_white, source.image_format.float_white
    assert whites == ((white, None) if np.issubdtype(dtype, np.integer) else (None, white))
    model = dataclasses.replace(source.image_format)
    assert images_from_arrays(x[1:2], model)[0, 0, 0, 0] == expected[1]
    over = x[2:] * 2 if white < 60_000 else x[2:].astype(np.int64) * 2
    with pytest.raises(DhaError, match=rf"\] is .*, outside 0\.\.{white} .*{white} is white in the images"):
        images_from_arrays(list(over) if as_list else over, model)


def test_8_bit_arrays_beside_deep_ones_keep_their_own_white():
    x = [np.full((8, 8), 100, np.uint8), np.full((8, 8), 2000, np.uint16), np.full((8, 8), 0.5), np.ones((8, 8), bool)]
    source = load_source(x, [0, 1, 0, 1])
    assert source.train.images[:, 0, 0, 0].tolist() == [100, round(2000 / 4095 * 255), 128, 255]


def test_arrays_of_different_sizes_are_taken():
    x = [np.full((20, 10), 1, np.uint8), torch.full((12, 30), 2, dtype=torch.uint8), Image.new("L", (50, 40), 3)]
    images = load_source(x, [0, 1, 0], resize="crop").train.images
    assert images.shape == (3, 1, 12, 12)
    assert images[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_paths_with_labels_are_taken(tmp_path: Path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("L", (8, 8), i * 50).save(path)
    source = load_source([paths[0], str(paths[1]), *paths[2:]], ["b", "a", "b", "a"])
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 50, 100, 150]
    assert (source.train.labels.tolist(), source.classes) == ([1, 0, 1, 0], ("a", "b"))
    with pytest.raises(DhaError, match=r"1 of 2 files are missing .*gone\.png\)"):
        load_source([paths[0], tmp_path / "gone.png"], ["a", "b"])


def test_deep_colours_beside_alpha_are_scaled_by_the_colours():
    x = np.zeros((2, 4, 4, 4), np.uint16)
    x[..., :3], x[..., 3] = (1000, 2000, 3000), 65535
    for source in (load_source(x, [0, 1]), load_source(list(x), [0, 1])):
        assert source.image_format.integer_white == 4095
        assert source.train.images[0, :, 0, 0].tolist() == [round(level / 4095 * 255) for level in (1000, 2000, 3000)]


def test_one_image_a_little_above_white_does_not_make_all_others_black(tmp_path):
    bright = [np.full((8, 8), level, np.float32) for level in (0.2, 0.8, 1.0005)]
    assert load_source(bright, [0, 1, 0]).train.images[:, 0, 0, 0].tolist() == [51, 204, 255]
    for number, pixels in enumerate(bright):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.tif")
    assert sorted(load_source(tmp_path).train.images[:, 0, 0, 0].tolist()) == [51, 204, 255]
    with pytest.raises(DhaError, match=r"the largest float pixel is between 1 and 2, .*; scale all"):
        load_source([*bright, np.full((8, 8), 1.02, np.float32)], [0, 1, 0, 1])
    with pytest.raises(DhaError, match="x has dtype int8, which has no usual white; pass uint8"):
        load_source(np.zeros((2, 8, 8), np.int8), [0, 1])


def test_alpha_is_scaled_alike_in_lists_and_arrays():
    x = np.full((2, 4, 4, 4), 40_000, np.uint16)
    x[0, ..., 3], x[1, ..., 3] = 65535, 200
    levels = [load_source(kind, [0, 1]).train.images[:, 0, 0, 0].tolist() for kind in (x, list(x))]
    assert levels[0] == levels[1] == [156, 255]
