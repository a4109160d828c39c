import shutil
import warnings
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


def test_bombs_are_refused_from_their_header(tmp_path: Path):
    corpus.bomb(tmp_path / "a.png")
    with pytest.raises(DhaError, match=r"a\.png is refused .*10000000000 pixels.*scale it down"):
        read_image(tmp_path / "a.png", ImageFormat(8, 3))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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
    return LabelledImages(images, torch.tensor([i % 2 for i in range(len(numbers))]))


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
    source = Source("photos", numbered([1] * 20), None, None, ("a", "b"), FORMAT)
    with pytest.warns(DataWarning, match="4 of 4 validation images are training images too"):
        split(source, validation_fraction=0.2, test_fraction=0, seed=0)
    split(
        Source("photos", numbered([1, 1]), numbered([2, 2]), None, ("a", "b"), FORMAT),
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
