from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import load_source
from dha.errors import DhaError

X = np.arange(3, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(12, 2)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str):
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr("dha.data.sources.open_hub", refuse)


def test_default_size_is_the_shorter_side_at_most_64():
    assert load_source(X, [0, 1, 0]).train.images.shape == (3, 1, 8, 8)
    assert load_source(np.zeros((2, 100, 80, 3), np.uint8), [0, 1]).train.images.shape == (2, 3, 64, 64)


def test_size_and_channels_can_be_given():
    source = load_source(X, [0, 1, 0], image_size=5, channels=3)
    assert source.train.images.shape == (3, 3, 5, 5)
    assert source.train.images[:, 2, 4, 4].tolist() == [0, 1, 2]


def test_given_classes_number_the_labels():
    source = load_source(X, [5, 7, 5], classes=[9, 7, 5])
    assert source.classes == (9, 7, 5)
    assert source.train.labels.tolist() == [2, 1, 2]
    assert load_source(X, [5, 5, 5], classes=[7, 5]).train.labels.tolist() == [1, 1, 1]
    with pytest.raises(DhaError, match=r"class 5 in x is not among the 2 classes of the model \(7, 9\)"):
        load_source(X, [5, 7, 5], classes=(7, 9))
    with pytest.raises(DhaError, match=r"class 5 in x is not among .*\('5', '7'\)"):
        load_source(X, [5, 7, 5], classes=("5", "7"))


def test_the_builtin_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "digits" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "digits" / name / "a.png")
    assert len(load_source("digits").classes) == 10
    assert load_source("./digits").classes == ("a", "b")
    assert load_source(Path("digits")).classes == ("a", "b")


@pytest.mark.parametrize(
    "source", ["./data", "../data", "/no/such/data", "~/no-such-data", "data.npz", "a/b/c", "data/", "", Path("data")]
)
def test_missing_paths_do_not_reach_the_hub(source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DhaError, match="no such file or folder; pass a path"):
        load_source(source)


@pytest.mark.parametrize("name", ["mnist", "owner/set", "uoft-cs/cifar10"])
def test_other_names_reach_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=f"asked for {name}"):
        load_source(name)


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DhaError, match=r"a\.csv is a file, but not an \.npz archive"):
        load_source(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "the source is a int; pass a path"),
        (None, {}, "the source is a NoneType"),
        ("digits", {"labels": [1]}, "labels were given along with a str; give them only with arrays"),
        (X, {"labels": [1, 1, 1]}, r"x has 1 class \(1,\); at least 2"),
        (X, {"labels": [0, 1, 0], "image_size": 3}, "image_size: 3 pixels; pass an image_size of at least 4"),
        (X[:, :3], {"labels": [0, 1, 0]}, "images in x: 3 pixels; pass an image_size of at least 4"),
        (X, {"labels": [0, 1, 0], "channels": 4}, "channels is 4; pass 1"),
        (X, {"labels": [0, 1, 0], "on_bad_image": "ignore"}, "on_bad_image is 'ignore'; pass 'error' or 'skip'"),
    ],
)
def test_bad_arguments(source: Any, options: dict[str, Any], message: str):
    with pytest.raises(DhaError, match=message):
        load_source(source, **options)


def test_tiny_images_are_fine_when_a_size_is_given():
    assert load_source(torch.zeros(2, 3, 3), [0, 1], image_size=4).train.images.shape == (2, 1, 4, 4)
