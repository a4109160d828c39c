import io
import os
import resource
import shutil
import struct
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tests.data import corpus

from dha import DhaError
from dha.data import ImageFormat, LabelledImages, Source, load_images, load_source, read_image, split
from dha.data.decoding import read_header
from dha.errors import DataWarning

FORMAT = ImageFormat(8, 1)


def classes(folder: Path, count: int = 3) -> Path:
    """Fill a folder with two classes of different images."""
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_every_kind_of_image_can_be_trained_on(tmp_path: Path):
    names = corpus.good(tmp_path / "photos" / "a")
    classes(tmp_path / "photos")
    source = load_source(tmp_path / "photos", image_size=8)
    assert (len(source.train), source.skipped, source.train.images.shape[1]) == (len(names) + 6, 0, 3)
    turned, straight = (read_image(names[name], ImageFormat(32, 3)).pixels for name in ("turned.jpg", "colour.jpg"))
    assert torch.equal(turned, straight.rot90(-1, (1, 2)))
    with Image.open(names["moving.gif"]) as animation:
        first = read_image(animation.convert("RGB"), ImageFormat(8, 3)).pixels
        assert torch.equal(read_image(names["moving.gif"], ImageFormat(8, 3)).pixels, first)
    images = load_images(list(names.values()), ImageFormat(8, 1))
    assert images.shape == (len(names), 1, 8, 8)


def test_every_broken_file_is_named_in_one_line_with_a_remedy_or_skipped(tmp_path: Path):
    broken = corpus.bad(tmp_path / "photos" / "a")
    classes(tmp_path / "photos")
    for name, path in broken.items():
        for channels in (1, 3):
            with pytest.raises(DhaError) as caught:
                read_image(path, ImageFormat(8, channels))
            assert name.splitlines()[-1] in str(caught.value)
            assert str(caught.value).isprintable()
            assert "remove it" in str(caught.value)
    with pytest.raises(DhaError, match="--on-bad-image skip"):
        load_source(tmp_path / "photos")
    source = load_source(tmp_path / "photos", on_bad_image="skip")
    assert (len(source.train), source.skipped) == (6, len(broken))


# `dha.data.opening` turns this warning off, pytest turns it on again.
as_outside_of_tests = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@as_outside_of_tests
@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (100_000, 100_000, r"a\.png is refused .*10000000000 pixels.*scale it down"),
        (13_300, 13_300, r"a\.png is refused: it claims 13300 x 13300 pixels, more than 160000000 .*scale it down"),
        (1, 150_000_000, r"a\.png is refused: it claims 1 x 150000000 pixels, .* 131072 in a row.*scale it down"),
        (200_000, 1, r"a\.png is refused: it claims 200000 x 1 pixels"),
    ],
)
def test_bombs_are_refused_from_their_header(tmp_path: Path, width: int, height: int, message: str):
    corpus.bomb(tmp_path / "a.png", width, height)
    for read in (partial(read_image, image_format=ImageFormat(8, 3)), read_header):
        with pytest.raises(DhaError, match=message):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_enormous_files_are_refused_before_they_are_read(tmp_path: Path, kind: str):
    Image.new("RGB", (8, 8)).save(tmp_path / "a", kind)
    os.truncate(tmp_path / "a", 2**30 + 1)  # sparse
    with pytest.raises(DhaError, match=r"a is refused: it has 1073741825 bytes, .*save it with compression"):
        read_image(tmp_path / "a", ImageFormat(8, 3))


@as_outside_of_tests
def test_a_small_file_that_claims_many_pixels_is_refused(tmp_path: Path):
    frame = b"," + struct.pack("<HHHHB", 0, 0, 12_000, 13_000, 0) + bytes([8, 1, 0x80, 0])
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 12_000, 13_000, 0xF0, 0, 0) + bytes(6) + frame)
    with pytest.raises(DhaError, match=r"a\.gif cannot be read .*truncated"):
        read_image(tmp_path / "a.gif", ImageFormat(8, 3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
def test_a_very_large_image_is_scaled_as_others_are(mode: str, resize: Any, monkeypatch: pytest.MonkeyPatch):
    ramp = Image.linear_gradient("L").resize((1000, 701))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    else:
        turned = ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ramp.convert("P") if mode == "P" else Image.merge(mode, (ramp, turned, ramp, ramp)[: len(mode)])
    whole = read_image(image, ImageFormat(16, 3, resize)).pixels.int()
    monkeypatch.setattr("dha.data.conversion._BAND", 20_000)
    assert torch.equal(read_image(image, ImageFormat(16, 3, resize)).pixels.int(), whole)
    monkeypatch.setattr("dha.data.decoding._LARGE", 1000)
    large = read_image(image, ImageFormat(16, 3, resize)).pixels.int()
    assert (large - whole).abs().max() <= 1
    assert large.float().std() > 15


def test_a_large_image_is_decoded_without_a_second_copy(tmp_path: Path):
    Image.new("RGBA", (6000, 6000), (100, 200, 50, 100)).save(tmp_path / "a.png", compress_level=1)
    # The most that this process has ever taken, in kilobytes: what came before may hide a copy, and adds none.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_image(tmp_path / "a.png", ImageFormat(16, 3))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_files_of_other_formats_are_read_whatever_their_name_says(tmp_path: Path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    lossless = ("PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", "ICO", "PCX", "SGI", "QOI", "DDS")
    for kind in (*lossless, "JPEG", "WEBP", "AVIF", "JPEG2000", "MPO"):
        options = {"append_images": [image], "save_all": True} if kind == "MPO" else {"sizes": [(12, 12)]}
        image.save(tmp_path / "a.jpg", kind, **options)
        read, facts = read_image(tmp_path / "a.jpg", ImageFormat(12, 3))
        assert not facts.animated
        assert read_header(tmp_path / "a.jpg")[1:] == (12, 12)
        if kind in lossless and kind != "GIF":
            assert np.array_equal(read.permute(1, 2, 0).numpy(), np.asarray(image)), kind
        else:
            assert np.abs(read.permute(1, 2, 0).numpy() - np.asarray(image).astype(int)).mean() < 60, kind
    image.save(tmp_path / "a.tga")
    assert np.array_equal(
        read_image(tmp_path / "a.tga", ImageFormat(12, 3)).pixels.permute(1, 2, 0).numpy(), np.asarray(image)
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read_and_that_is_told(tmp_path: Path, kind: str):
    frames = [Image.new("L", (8, 8), level) for level in (250, 10, 100)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], **options)
    read, facts = read_image(tmp_path / "a", ImageFormat(8, 1))
    assert facts.animated
    assert read.unique().tolist() == [250]


def test_formats_that_cannot_be_read_say_what_to_do(tmp_path: Path):
    for name, content, message in (
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(50), "an HEIC photograph.*convert it to JPEG or PNG"),
        ("a.jpg", b"\0\0\0\x18ftypmif1" + bytes(50), "an HEIC photograph.*convert it to JPEG or PNG"),
        ("a.NEF", b"II*\0", "raw data of a camera: convert it to JPEG, PNG or TIFF"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "UnidentifiedImageError"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DhaError, match=rf"{name} .*{message}"):
            read_image(tmp_path / name, ImageFormat(8, 3))


def test_images_that_are_cut_off_are_errors_and_never_partly_grey(tmp_path: Path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    kinds = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "PCX", "SGI", "QOI", "DDS")
    for kind in kinds:
        noise.save(tmp_path / "a", kind)
        content = (tmp_path / "a").read_bytes()
        for share in (0.5, 0.95):
            (tmp_path / "a").write_bytes(content[: int(share * len(content))])
            with pytest.raises(DhaError, match=r"cannot be read|cut off"):
                read_image(tmp_path / "a", ImageFormat(8, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF"])
def test_compressed_images_whose_second_half_is_zeros_are_refused(tmp_path: Path, kind: str):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    noise.save(tmp_path / "a", kind, **options)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    for file in (tmp_path / "a", io.BytesIO((tmp_path / "a").read_bytes())):
        with pytest.raises(DhaError, match=r"cannot be read|cut off"):
            read_image(file, ImageFormat(8, 3))


def test_a_jpeg_that_is_filled_up_with_zeros_is_refused_and_one_with_a_trailer_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exif = Image.Exif()
    exif[0x010E] = "with an end marker \xff\xd9 of a thumbnail"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.jpg", exif=exif.tobytes() + b"\xff\xd9")
    content = (tmp_path / "a.jpg").read_bytes()
    half = len(content) // 2
    (tmp_path / "b.jpg").write_bytes(content[:half] + bytes(len(content) - half))
    for read in (partial(read_image, image_format=ImageFormat(8, 3)), read_header):
        with pytest.raises(DhaError, match=r"b\.jpg is refused: it is cut off"):
            read(tmp_path / "b.jpg")
    monkeypatch.setattr("dha.data.opening._PIECE", 7)  # so that the end mark is looked for across pieces
    (tmp_path / "c.jpg").write_bytes(content + bytes(100))
    read, whole = (read_image(tmp_path / name, ImageFormat(8, 3)).pixels for name in ("c.jpg", "a.jpg"))
    assert torch.equal(read, whole)


@as_outside_of_tests
def test_a_photograph_of_12000_pixels_is_read(tmp_path: Path):
    corpus.flat_png(tmp_path / "a.png", 12_000, 12_000)
    assert read_image(tmp_path / "a.png", ImageFormat(16, 1)).pixels.unique().tolist() == [0]


def test_links_that_lead_back_are_refused_as_classes_and_left_out_within_one(tmp_path: Path):
    folder = classes(tmp_path / "photos")
    (folder / "a" / "self").symlink_to("self")
    (folder / "a" / "up").symlink_to("..")
    (folder / "c").symlink_to("c")
    assert len(load_source(folder).train) == 6
    (folder / "d").symlink_to(".")
    with pytest.raises(DhaError, match="photos/d is a link to a folder that it lies in; remove the link"):
        load_source(folder)


def test_a_class_of_one_image_is_named(tmp_path: Path):
    folder = classes(tmp_path / "photos")
    shutil.copytree(folder / "a", folder / "c", ignore=lambda *_: ["1.png", "2.png"])
    with pytest.raises(DhaError, match=r"class 'c' of .* has 1 training image"):
        split(load_source(folder), validation_fraction=0.3, test_fraction=0, seed=0)


def numbered(numbers: list[int]) -> LabelledImages:
    images = torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return LabelledImages(images, torch.tensor([number % 2 for number in numbers]))


def test_duplicates_across_parts_are_counted_in_one_warning():
    source = Source(
        "photos", numbered([1, 2, 3, 4]), numbered([5, 4, 6]), numbered([1, 1, 2, 6, 7]), ("a", "b"), ImageFormat(8, 1)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split(source, validation_fraction=0.1, test_fraction=0.1, seed=0)
    assert [w.category for w in caught] == [DataWarning]
    message = str(caught[0].message)
    assert message.startswith(
        "photos: 1 of 3 validation images are training images too, 3 of 5 test images are training images too, "
        "1 of 5 test images are validation images too"
    )


def test_duplicates_are_found_in_parts_that_are_held_out_and_not_within_one():
    source = Source("photos", numbered([1, 2] * 10), None, None, ("a", "b"), FORMAT)
    with pytest.warns(DataWarning, match="4 of 4 validation images are training images too"):
        split(source, validation_fraction=0.2, test_fraction=0, seed=0)
    split(
        Source("photos", numbered([1, 1, 2, 2]), numbered([3, 4, 3, 4]), None, ("a", "b"), FORMAT),
        validation_fraction=0.1,
        test_fraction=0,
        seed=0,
    )


@pytest.mark.parametrize("labels", [[0, 2**70], [0, -(2**64)]])
def test_labels_beyond_64_bits_are_named(labels: list[int]):
    with pytest.raises(DhaError, match=r"labels\[1\] is -?\d+; pass whole numbers of 64 bits"):
        load_source(np.zeros((2, 8, 8), np.uint8), labels)


def check_source(x: Any, labels: Any) -> None:
    try:
        source = load_source(x, labels)
    except DhaError:
        return
    assert source.train.images.dtype == torch.uint8
    assert source.train.labels.max() == len(source.classes) - 1


SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)
IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
LABEL = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats(), st.binary(max_size=2), st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(x=hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), SHAPES | IMAGES))
def test_any_array_is_a_source_or_an_error_of_ours(x: np.ndarray):
    check_source(x, [i % 2 for i in range(len(x))] if x.ndim else [0])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(labels=LABEL | st.lists(LABEL, min_size=2, max_size=4) | hnp.arrays(hnp.scalar_dtypes(), st.integers(2, 4)))
def test_any_labels_are_a_source_or_an_error_of_ours(labels: Any):
    check_source(np.zeros((3, 8, 8), np.uint8), labels)
