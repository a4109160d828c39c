import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import read_image
from dha.data.decoding import read_header
from dha.errors import DhaError

ORIENTATION = 0x0112


def quadrants() -> Image.Image:
    """Return red and green above blue and white."""
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8, :8, 0] = pixels[:8, 8:, 1] = pixels[8:, :8, 2] = 255
    pixels[8:, 8:] = 255
    return Image.fromarray(pixels)


def corner(image: torch.Tensor) -> list[int]:
    return image[:, 1, 1].tolist()


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # "turn clockwise to view": the lower left corner comes to the upper left
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    quadrants().save(tmp_path / f"a.{suffix}", exif=exif, **options)
    assert corner(read_image(tmp_path / f"a.{suffix}", 3, 16)) == [0, 0, 255]


def test_exif_orientation_of_jpeg_and_of_opened_images(tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    quadrants().resize((64, 64)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "a.jpg", 3, 16)
    assert min(corner(read)) > 240
    with Image.open(tmp_path / "a.jpg") as image:
        assert torch.equal(read_image(image, 3, 64), read_image(str(tmp_path / "a.jpg"), 3, 64))
        assert image.size == (64, 64)
        assert image.getexif()[ORIENTATION] == 3


def test_the_centre_of_the_longer_side_is_kept():
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = np.arange(64).reshape(8, 8)
    assert np.array_equal(read_image(Image.fromarray(pixels), 1, 8)[0].numpy(), pixels[:, 8:16])
    assert np.array_equal(read_image(Image.fromarray(pixels.T.copy()), 1, 8)[0].numpy(), pixels[:, 8:16].T)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    small = read_image(Image.fromarray(stripes), 1, 8).float()
    assert small.min() > 100
    assert small.max() < 155


def test_large_jpeg_read_with_less_detail_looks_like_the_full_one(tmp_path: Path):
    y, x = np.mgrid[:512, :640]
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        full = read_image(image.copy(), 3, 32)
    assert (full.float() - read_image(tmp_path / "a.jpg", 3, 32).float()).abs().mean() < 3
    assert read_image(tmp_path / "a.jpg", 1, 32).shape == (1, 32, 32)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 255, 255, 255])])
def test_palette_images(tmp_path: Path, transparency: int | bytes | None):
    palette = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 4).reshape(4, 4), "L").convert("P")
    palette.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 230, 9, 9, 9])
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    palette.save(tmp_path / "a.png", **options)
    read = read_image(tmp_path / "a.png", 3, 4)
    assert read[:, :, 0].T.tolist() == [[250, 10, 20], [30, 240, 50], [60, 70, 230], [9, 9, 9]]
    assert read_image(tmp_path / "a.png", 1, 4)[0, 3].tolist() == [9, 9, 9, 9]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "colour", "grey"),
    [
        ("RGBA", (100, 100, 100, 0), 100),
        ("LA", (100, 0), 100),
        ("L", 100, 100),
        ("1", 1, 255),
        ("RGB", (100, 100, 100), 100),
    ],
)
def test_modes_keep_their_colour_and_lose_transparency(mode: str, colour: int, grey: int, channels: int):
    read = read_image(Image.new(mode, (6, 6), colour), channels, 4)
    assert read.shape == (channels, 4, 4)
    assert read.unique().tolist() == [grey]


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 95}), ("tif", {})])
def test_cmyk(tmp_path: Path, suffix: str, options: dict[str, Any]):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}", **options)
    red, green, blue = read_image(tmp_path / f"a.{suffix}", 3, 4)[:, 0, 0].tolist()
    assert red > 240
    assert max(green, blue) < 15
    assert 60 < read_image(tmp_path / f"a.{suffix}", 1, 4)[0, 0, 0] < 95


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str, channels: int):
    pixels = np.repeat(np.array([0, 257 * 100, 257 * 200, 65535], dtype=np.uint16), 4).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}", channels, 4)[-1, :, 0].tolist() == [0, 100, 200, 255]
    assert read_header(tmp_path / f"a.{suffix}") == (True, 4)


def test_float_images_must_lie_between_0_and_1():
    pixels = np.full((4, 4), 0.4, dtype=np.float32)
    assert read_image(Image.fromarray(pixels), 1, 4).unique().tolist() == [102]
    with pytest.raises(DhaError, match=r"its pixels are 40\.0\.\.40\.0, but 0\.\.1 is needed"):
        read_image(Image.fromarray(pixels * 100), 1, 4)


def test_binary_files_are_read():
    file = io.BytesIO()
    quadrants().save(file, "png")
    assert read_header(file) == (False, 16)
    file.seek(0)
    assert corner(read_image(file, 3, 8)) == [255, 0, 0]


def test_unreadable_images_are_named(tmp_path: Path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DhaError, match=r"a\.png cannot be read as an image \(UnidentifiedImageError"):
        read_image(tmp_path / "a.png", 3, 8)
    with pytest.raises(DhaError, match=r"a\.png cannot be read"):
        read_header(tmp_path / "a.png")
    with pytest.raises(DhaError, match=r"missing\.png cannot be read as an image \(FileNotFoundError"):
        read_image(tmp_path / "missing.png", 3, 8)
    with pytest.raises(DhaError, match=r"^upload 7 cannot be read"):
        read_image(io.BytesIO(b"text"), 3, 8, name="upload 7")


def test_truncated_images_are_refused(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DhaError, match=f"{path.name} cannot be read"):
            read_image(path, 3, 32)
