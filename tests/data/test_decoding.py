import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dha.data import ImageFormat, load_images, load_source, read_image
from dha.data.decoding import read_header
from dha.errors import DhaError

ORIENTATION = 0x0112


def decode(image: Any, channels: int, image_size: int, **settings: Any) -> torch.Tensor:
    return read_image(image, ImageFormat(image_size, channels, **settings)).pixels


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
    assert corner(decode(tmp_path / f"a.{suffix}", 3, 16)) == [0, 0, 255]


def test_exif_orientation_of_jpeg_and_of_opened_images(tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    quadrants().resize((64, 64)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = decode(tmp_path / "a.jpg", 3, 16)
    assert min(corner(read)) > 240
    with Image.open(tmp_path / "a.jpg") as image:
        assert torch.equal(decode(image, 3, 64), decode(str(tmp_path / "a.jpg"), 3, 64))
        assert image.size == (64, 64)
        assert image.getexif()[ORIENTATION] == 3


OTHER_SHAPES = [(40, 24, 8), (24, 41, 10), (9, 6, 16), (12, 7, 7), (30, 3, 8), (16, 16, 16)]


def square(image: Image.Image, resize: str, size: int) -> Image.Image:
    """Return what Pillow makes of it."""
    if resize == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, (128,) * len(image.getbands()))
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Image.Resampling.BILINEAR)


@pytest.mark.parametrize(("height", "width", "size"), OTHER_SHAPES)
@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_and_arrays_of_any_shape_become_the_squares_that_pillow_makes(
    tmp_path: Path, height: int, width: int, size: int, resize: Any, channels: int
):
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    image_format = ImageFormat(size, channels, resize)
    arrays = load_images(noise, image_format)
    for pixels, array in zip(noise, arrays, strict=True):
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        expected = np.asarray(square(image, resize, size)).reshape(size, size, channels).transpose(2, 0, 1)
        image.save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png", image_format).pixels.numpy(), expected)
        assert np.array_equal(array.numpy(), expected)


def test_an_image_of_any_aspect_keeps_at_least_one_row_of_pixels():
    read = decode(Image.new("L", (500, 1), 9), 1, 8, resize="pad")
    assert [row.unique().tolist() for row in read[0]] == [[128]] * 4 + [[9]] + [[128]] * 3


@pytest.mark.parametrize(("resize", "expected"), [("pad", 80), ("crop", 20), ("squash", 80)])
def test_the_default_size_is_that_at_which_nothing_is_scaled(
    resize: Any, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dha.data.sources.LARGEST_DEFAULT_SIZE", 100)
    images = np.zeros((2, 20, 80), np.uint8)
    for source in (images, [Image.fromarray(image) for image in images]):
        assert load_source(source, [0, 1], resize=resize).train.shape == (1, expected, expected)


def test_the_centre_of_the_longer_side_is_kept():
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = np.arange(64).reshape(8, 8)
    assert np.array_equal(decode(Image.fromarray(pixels), 1, 8, resize="crop")[0].numpy(), pixels[:, 8:16])
    assert np.array_equal(decode(Image.fromarray(pixels.T.copy()), 1, 8, resize="crop")[0].numpy(), pixels[:, 8:16].T)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    small = decode(Image.fromarray(stripes), 1, 8).float()
    assert small.min() > 100
    assert small.max() < 155


def test_large_jpeg_read_with_less_detail_looks_like_the_full_one(tmp_path: Path):
    y, x = np.mgrid[:512, :640]
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        full = decode(image.copy(), 3, 32)
    assert (full.float() - decode(tmp_path / "a.jpg", 3, 32).float()).abs().mean() < 3
    assert decode(tmp_path / "a.jpg", 1, 32).shape == (1, 32, 32)


def rgba(*columns: tuple[int, int, int, int]) -> Image.Image:
    """Return an image of 4 rows and one column of each colour."""
    return Image.fromarray(np.array([columns] * 4, dtype=np.uint8))


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2, 3]] * 4, dtype=np.uint8)).convert("P")
    image.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 230, 9, 9, 9])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def keyed(mode: str, transparency: Any) -> Image.Image:
    """Return an image one of whose colours counts as transparent."""
    grey = np.array([[0, 255, 0, 255]] * 4, dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.info["transparency"] = transparency
    return image


GREY_COLUMNS = rgba((10, 10, 10, 255), (10, 10, 10, 51), (200, 200, 200, 0), (200, 200, 200, 255))
COLUMNS = rgba((250, 10, 20, 255), (250, 10, 20, 51), (30, 240, 50, 0), (60, 70, 230, 255))
PREMULTIPLIED = COLUMNS.convert("RGBa")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        # Each column, of three channels or the same grey in all: its colour and how opaque it is.
        (COLUMNS, [(250, 10, 20, 1), (250, 10, 20, 0.2), (0, 0, 0, 0), (60, 70, 230, 1)]),
        (PREMULTIPLIED, [(250, 10, 20, 1), (250, 10, 20, 0.2), (0, 0, 0, 0), (60, 70, 230, 1)]),
        (GREY_COLUMNS.convert("LA"), [(10, 1), (10, 0.2), (0, 0), (200, 1)]),
        (GREY_COLUMNS.convert("LA").convert("La"), [(10, 1), (10, 0.2), (0, 0), (200, 1)]),
        (palette(None), [(250, 10, 20, 1), (30, 240, 50, 1), (60, 70, 230, 1), (9, 9, 9, 1)]),
        (palette(0), [(0, 0, 0, 0), (30, 240, 50, 1), (60, 70, 230, 1), (9, 9, 9, 1)]),
        (palette(bytes([255, 51, 0])), [(250, 10, 20, 1), (30, 240, 50, 0.2), (0, 0, 0, 0), (9, 9, 9, 1)]),
        (
            palette(bytes([255, 51, 0])).convert("PA"),
            [(250, 10, 20, 1), (30, 240, 50, 0.2), (0, 0, 0, 0), (9, 9, 9, 1)],
        ),
        (keyed("L", 0), [(0, 0), (255, 1), (0, 0), (255, 1)]),
        (keyed("1", 255), [(0, 1), (0, 0), (0, 1), (0, 0)]),
        (keyed("RGB", (255, 255, 255)), [(0, 1), (0, 0), (0, 1), (0, 0)]),
        (keyed("RGB", (1, 255, 255)), [(0, 1), (255, 1), (0, 1), (255, 1)]),
        (keyed("I;16", 65535), [(0, 1), (0, 0), (0, 1), (0, 0)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
@pytest.mark.parametrize("background", ["white", "black"])
def test_transparent_pixels_show_the_background(image: Image.Image, expected: list[tuple[float, ...]], background: Any):
    behind = {"white": 255, "black": 0}[background]
    read, facts = read_image(image, ImageFormat(4, 3, background=background))
    for column, (*colour, opaque) in enumerate(expected):
        colours = np.array(colour if len(colour) == 3 else colour * 3)
        wanted = np.rint(opaque * colours + (1 - opaque) * behind)
        assert np.abs(read[:, 2, column].numpy().astype(int) - wanted).max() <= 1, column
    assert facts.transparent == any(opaque < 1 for *_, opaque in expected)
    grey = read_image(image, ImageFormat(4, 1, background=background)).pixels[0, 2].int()
    assert (grey - (read[:, 2].float().T @ torch.tensor([0.299, 0.587, 0.114])).int()).abs().max() <= 1
    assert read_header(image).grey == (image.mode in ("L", "LA", "La", "1", "I;16"))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_transparent_files_show_the_background(tmp_path: Path, suffix: str):
    image = rgba((250, 10, 20, 255), (250, 10, 20, 255), (30, 240, 50, 0), (30, 240, 50, 0))
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", **options)
    white, black = (decode(tmp_path / f"a.{suffix}", 3, 4, background=b)[:, 0] for b in ("white", "black"))
    assert white[:, 3].tolist() == [255, 255, 255]
    assert black[:, 3].tolist() == [0, 0, 0]
    assert white[:, 0].tolist() == black[:, 0].tolist() == [250, 10, 20]


def test_png_of_few_bits_with_a_transparent_grey(tmp_path: Path):
    """Grey levels of 1, 2, 4, 16 bits and colours of 16, as the file counts them."""
    for depth, colour_type, row, key, expected in (
        (1, 0, bytes([0b01010000]), [1], [0, 77, 0, 77]),
        (2, 0, bytes([0b00011011]), [2], [0, 85, 77, 255]),
        (4, 0, bytes([0x0F, 0x37]), [3], [0, 255, 77, 119]),
        (8, 0, bytes([0, 255, 3, 7]), [3], [0, 255, 77, 7]),
        (16, 0, bytes([0, 0, 255, 255, 1, 2, 255, 0]), [0x0102], [0, 255, 77, 254]),
        (16, 2, bytes([9, 0] * 3 + [255, 255] * 3 + [1, 2] * 3 + [255, 255] * 3), [0x0102] * 3, [9, 255, 77, 255]),
    ):
        (tmp_path / "a.png").write_bytes(png(4, depth, colour_type, row, key))
        read = read_image(tmp_path / "a.png", ImageFormat(4, 3)).pixels
        shown = [77 if e == 77 else e for e in expected]
        assert read[0, 0].tolist() == [255 if e == 77 else e for e in shown], (depth, colour_type)


def png(width: int, depth: int, colour_type: int, row: bytes, key: list[int]) -> bytes:
    """Return a PNG of 4 equal rows and maybe a transparent colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 4, depth, colour_type, 0, 0, 0)
    transparent = chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in key)) if key else b""
    pixels = zlib.compress((bytes(1) + row) * 4)
    content = chunk(b"IHDR", header) + transparent + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def tiff(width: int, pixels: bytes, order: str, orientation: int = 1, deflated: bool = False) -> bytes:
    """Return a TIFF of RGB with 16 bits a channel."""
    mark, at = {"<": b"II", ">": b"MM"}[order], 8 + 6 + 2 + 10 * 12 + 4
    pixels = zlib.compress(pixels) if deflated else pixels
    tags = [(256, 3, 1, width), (257, 3, 1, 4), (258, 3, 3, 8), (259, 3, 1, 8 if deflated else 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, at), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, len(pixels))]
    entries = b""
    for tag, kind, count, value in tags:
        as_short = kind == 3 and count == 1
        entries += struct.pack(f"{order}HHI" + ("HH" if as_short else "I"), tag, kind, count, value, *[0][:as_short])
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return mark + struct.pack(f"{order}HI", 42, 14) + struct.pack(f"{order}HHH", 16, 16, 16) + directory + pixels


DEEP_COLUMNS = np.array([[0, 4095, 5], [4000, 16, 0], [1000, 2000, 3000]], dtype=np.uint16)


@pytest.mark.parametrize(
    "kind",
    ["png", "png, alpha", "png, alpha of 16 bits", "png, grey and alpha", "tiff <", "tiff >", "tiff, deflated <"],
)
def test_colours_of_12_bits_in_16_keep_their_levels(tmp_path: Path, kind: str):
    columns, opaque = DEEP_COLUMNS, np.full((3, 1), 65535 if "of 16" in kind else 4095, np.uint16)
    if "grey" in kind:
        columns = columns[:, :1].repeat(3, 1)
        row = np.hstack([columns[:, :1], opaque])
    else:
        row = np.hstack([columns, opaque]) if "alpha" in kind else columns
    if "png" in kind:
        colour_type = {"png": 2, "png, grey and alpha": 4}.get(kind, 6)
        content = png(3, 16, colour_type, row.astype(">u2").tobytes(), [])
    else:
        order = kind[-1]
        rows = np.stack([row] * 4).astype(f"{order}u2").tobytes()
        content = tiff(3, rows, order, deflated="deflated" in kind)
    (tmp_path / "a").write_bytes(content)
    expected = np.rint(columns * (255 / 4095)).astype(int)
    for file in (tmp_path / "a", io.BytesIO(content)):
        read, facts = read_image(file, ImageFormat(3, 3, "squash"))
        assert read[:, 1].T.tolist() == expected.tolist()
        assert (facts.integer_white, facts.transparent, facts.reduced) == (4095, False, False)
    read = decode(tmp_path / "a", 3, 3, resize="squash", integer_white=65535)
    assert np.abs(read[:, 1].T.numpy() - columns / 257).max() <= 1
    with pytest.raises(DhaError, match="values above 1023"):
        decode(tmp_path / "a", 3, 3, integer_white=1023)
    assert read_header(tmp_path / "a").grey == ("grey" in kind)


def test_deep_colours_are_turned_upright(tmp_path: Path):
    rows = np.stack([DEEP_COLUMNS] * 4).astype("<u2").tobytes()
    for orientation in (1, 6):
        (tmp_path / f"{orientation}.tif").write_bytes(tiff(3, rows, "<", orientation))
    straight, turned = (decode(tmp_path / f"{n}.tif", 3, 12, resize="squash") for n in (1, 6))
    assert torch.equal(turned, straight.rot90(-1, (1, 2)))


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 95}), ("tif", {})])
def test_cmyk(tmp_path: Path, suffix: str, options: dict[str, Any]):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}", **options)
    red, green, blue = decode(tmp_path / f"a.{suffix}", 3, 4)[:, 0, 0].tolist()
    assert red > 240
    assert max(green, blue) < 15
    assert 60 < decode(tmp_path / f"a.{suffix}", 1, 4)[0, 0, 0] < 95


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str, channels: int):
    pixels = np.repeat(np.array([0, 257 * 100, 257 * 200, 65535], dtype=np.uint16), 4).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert decode(tmp_path / f"a.{suffix}", channels, 4)[-1, :, 0].tolist() == [0, 100, 200, 255]
    assert read_header(tmp_path / f"a.{suffix}") == (True, 4, 4)


@pytest.mark.parametrize(
    ("dtype", "largest", "white"),
    [
        (np.uint16, 255, 255),
        (np.uint16, 256, 1023),
        (np.uint16, 1023, 1023),
        (np.uint16, 4095, 4095),
        (np.uint16, 4096, 16383),
        (np.int32, 16384, 65535),
        (np.float32, 1, 1),
        (np.float32, 1.0005, 1),
        (np.float32, 1.5, 2),
        (np.float32, 255, 255),
        (np.float32, 65535, 65535),
    ],
)
def test_deep_images_are_scaled_by_the_bits_that_their_values_take(dtype: Any, largest: float, white: int):
    pixels = np.array([[0, largest], [largest, 0]], dtype)
    read, facts = read_image(Image.fromarray(pixels), ImageFormat(2, 1))
    assert (facts.float_white if dtype is np.float32 else facts.integer_white) == white
    assert read[0, 0].tolist() == [0, round(largest / white * 255)]
    known = {"float_white" if dtype is np.float32 else "integer_white": white}
    assert torch.equal(decode(Image.fromarray(pixels), 1, 2, **known), read)
    deeper = dict.fromkeys(known, 65535)
    assert decode(Image.fromarray(pixels), 1, 2, **deeper)[0, 0].tolist() == [0, round(largest / 65535 * 255)]
    if largest > 255:
        with pytest.raises(DhaError, match=r"the image is refused: it has pixel values above 255, .*to 0\.\.255"):
            decode(Image.fromarray(pixels), 1, 2, **dict.fromkeys(known, 255))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 70000.0])
def test_deep_images_of_other_values_are_refused(value: float):
    pixels = np.zeros((3, 3), np.float32)
    pixels[1, 1] = value
    with pytest.raises(DhaError, match=r"its pixel values are .*, but 0\.\.65535 is needed"):
        decode(Image.fromarray(pixels), 1, 4)


def test_binary_files_are_read():
    file = io.BytesIO()
    quadrants().save(file, "png")
    assert read_header(file) == (False, 16, 16)
    assert corner(decode(file, 3, 8)) == [255, 0, 0]


def test_unreadable_images_are_named(tmp_path: Path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DhaError, match=r"a\.png cannot be read as an image \(UnidentifiedImageError"):
        decode(tmp_path / "a.png", 3, 8)
    with pytest.raises(DhaError, match=r"a\.png cannot be read"):
        read_header(tmp_path / "a.png")
    with pytest.raises(DhaError, match=r"missing\.png cannot be opened \(No such file or directory\): check"):
        decode(tmp_path / "missing.png", 3, 8)
    with pytest.raises(DhaError, match=r"^upload 7 cannot be read"):
        read_image(io.BytesIO(b"text"), ImageFormat(8, 3), name="upload 7")


def test_truncated_images_are_refused(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DhaError, match=f"{path.name} (cannot be read|is refused: it is cut off)"):
            decode(path, 3, 32)
