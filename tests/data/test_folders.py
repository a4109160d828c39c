from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import load_source
from dha.errors import DhaError


def paint(path: Path, level: int, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, level, level)).save(path)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "dog" / "b.png", 1)
    paint(tmp_path / "dog" / "A.PNG", 2)
    paint(tmp_path / "cat" / "deep" / "er" / "c.bmp", 3)
    paint(tmp_path / "cat" / "d.gif", 4)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    paint(tmp_path / "cat" / ".hidden.png", 5)
    paint(tmp_path / "cat" / ".hidden" / "e.png", 6)
    paint(tmp_path / ".git" / "f.png", 7)
    (tmp_path / "README.md").write_text("no image")
    return tmp_path


def test_class_folders(folder: Path):
    source = load_source(folder)
    assert source.classes == ("cat", "dog")
    assert levels(source.train.images) == [4, 3, 2, 1]
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.train.images.shape == (4, 3, 10, 10)
    assert (source.validation, source.test, source.skipped) == (None, None, 0)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val", None])
@pytest.mark.parametrize("test", ["test", None])
def test_train_validation_and_test(tmp_path: Path, validation: str | None, test: str | None):
    for level, part in enumerate(("train", validation, test)):
        if part:
            paint(tmp_path / part / "a" / "a.png", 10 * level)
            paint(tmp_path / part / "b" / "b.png", 10 * level + 1)
    source = load_source(str(tmp_path))
    assert source.classes == ("a", "b")
    assert levels(source.train.images) == [0, 1]
    assert (source.validation and levels(source.validation.images)) == ([10, 11] if validation else None)
    assert (source.test and levels(source.test.images)) == ([20, 21] if test else None)


def test_train_may_be_a_class(tmp_path: Path):
    paint(tmp_path / "train" / "a.png", 0)
    paint(tmp_path / "train" / "more" / "b.png", 0)
    paint(tmp_path / "bus" / "c.png", 0)
    assert load_source(tmp_path).classes == ("bus", "train")


def test_images_stay_with_their_labels_in_many_threads(tmp_path: Path):
    for number in range(600):
        paint(tmp_path / str(number % 3) / f"{number:03}.png", number % 251, (4, 4), "L")
    source = load_source(tmp_path)
    expected = [number % 251 for label in range(3) for number in range(label, 600, 3)]
    assert levels(source.train.images) == expected
    assert source.train.images.shape == (600, 1, 4, 4)


def test_one_channel_only_if_all_are_grey(tmp_path: Path):
    paint(tmp_path / "a" / "a.png", 9, mode="L")
    paint(tmp_path / "b" / "b.png", 9, mode="L")
    assert load_source(tmp_path).train.images.shape[1] == 1
    assert load_source(tmp_path, channels=3).train.images.shape[1] == 3
    paint(tmp_path / "b" / "c.png", 9)
    assert load_source(tmp_path).train.images.shape[1] == 3
    assert load_source(tmp_path, channels=1).train.images.shape[1] == 1


def test_the_size_is_the_median_longer_side_at_most_64(tmp_path: Path):
    for number, size in enumerate([(9, 20), (30, 14), (100, 200)]):
        paint(tmp_path / "ab"[number % 2] / f"{number}.png", number, size)
    assert load_source(tmp_path).train.images.shape[2:] == (30, 30)
    assert load_source(tmp_path, resize="crop").train.images.shape[2:] == (14, 14)
    assert load_source(tmp_path, image_size=20).train.images.shape[2:] == (20, 20)
    for number in range(3, 4):
        paint(tmp_path / "a" / f"{number}.png", number, (80, 90))
    assert load_source(tmp_path).train.images.shape[2:] == (60, 60)
    for number in range(6, 12):
        paint(tmp_path / "a" / f"{number}.png", number, (80, 90))
    assert load_source(tmp_path).train.images.shape[2:] == (64, 64)


def test_unreadable_images_are_an_error_or_skipped(folder: Path):
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DhaError, match=r"cat/broken\.jpg cannot be read as an image .*--on-bad-image skip"):
        load_source(folder)
    source = load_source(folder, on_bad_image="skip")
    assert source.skipped == 1
    assert levels(source.train.images) == [4, 3, 2, 1]
    assert source.train.labels.tolist() == [0, 0, 1, 1]


def test_a_class_may_not_vanish_by_skipping(folder: Path):
    for name in ("b.png", "A.PNG"):
        (folder / "dog" / name).write_bytes(b"no image")
    with pytest.raises(DhaError, match=r"no image of class 'dog' could be read"):
        load_source(folder, on_bad_image="skip")


def test_folders_without_any_image_say_why(folder: Path):
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"no image")
    with pytest.raises(DhaError, match=r"seems to hold no image at all: .*cannot be read as an image"):
        load_source(folder, on_bad_image="skip")


def test_empty_class_folders_are_named(folder: Path):
    (folder / "emu").mkdir()
    with pytest.raises(DhaError, match=r"class folder .*emu holds no images; add some or remove it"):
        load_source(folder)


def test_folders_without_classes(tmp_path: Path):
    with pytest.raises(DhaError, match=rf"{tmp_path} holds no class folders"):
        load_source(tmp_path)
    paint(tmp_path / "only" / "a.png", 0)
    with pytest.raises(DhaError, match=r"has 1 class \('only',\); at least 2"):
        load_source(tmp_path)


def test_classes_of_validation_and_test_must_be_known(tmp_path: Path):
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "c")):
        paint(tmp_path / part / name / "a.png", 0)
    # Found from the names alone: the broken image is not even opened.
    (tmp_path / "train" / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DhaError, match=r"class 'c' in .*test is not among the 2 classes of .*train \('a', 'b'\)"):
        load_source(tmp_path)


def test_ambiguous_and_incomplete_layouts(tmp_path: Path):
    for part in ("val", "test"):
        paint(tmp_path / part / "a" / "a.png", 0)
    with pytest.raises(DhaError, match=r"holds test, val but no train"):
        load_source(tmp_path)
    paint(tmp_path / "train" / "a" / "a.png", 0)
    paint(tmp_path / "valid" / "a" / "a.png", 0)
    with pytest.raises(DhaError, match=r"holds val and valid; keep one"):
        load_source(tmp_path)


def test_a_saved_models_classes_and_shape_are_applied(folder: Path):
    source = load_source(folder, image_size=6, channels=1, classes=("emu", "dog", "cat"))
    assert source.classes == ("emu", "dog", "cat")
    assert source.train.labels.tolist() == [2, 2, 1, 1]
    assert source.train.images.shape == (4, 1, 6, 6)
    assert np.array_equal(levels(source.train.images), [4, 3, 2, 1])
    with pytest.raises(DhaError, match=r"class 'cat' in .* is not among the 2 classes of the model \('dog', 'emu'\)"):
        load_source(folder, classes=("dog", "emu"))
