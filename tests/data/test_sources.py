from dataclasses import asdict
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
    def refuse(name: str, columns: object):
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr("dha.data.sources.open_hub", refuse)


def test_default_size_is_the_longer_side_at_most_64():
    assert load_source(X, [0, 1, 0]).train.images.shape == (3, 1, 12, 12)
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
    with pytest.raises(DhaError, match=r"there is no such file or folder|names no|name a folder"):
        load_source(source)


@pytest.mark.parametrize(
    ("source", "meant"),
    [("photo", "photos"), ("Photos/Train", "photos"), ("photos/trian", "photos/train"), ("lables.csv", "labels.csv")],
)
def test_a_slip_in_a_path_is_told_with_the_nearest_name(
    source: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(DhaError, match=rf"no such file or folder: did you mean '{meant}'\?"):
        load_source(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * 300, r"cannot be read \(File name too long\)"),
        ("~nosuchuser/x", r"'~nosuchuser/x': there is no such user"),
        ("a\0b", r"is no name that a file can have"),
        ("/dev/null", r"'/dev/null' is neither a folder nor a file"),
        ("\udcff/x", r"no such file or folder"),
    ],
)
def test_paths_that_cannot_be_opened(source: str, message: str):
    with pytest.raises(DhaError, match=message) as caught:
        load_source(source)
    assert str(caught.value).isprintable()


def test_a_name_of_the_hub_that_is_like_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist2").mkdir()
    with pytest.raises(DhaError, match=r"did you mean 'mnist2'\? \(of the Hugging Face Hub: hf://datasets/mnist\)"):
        load_source("mnist")
    with pytest.raises(AssertionError, match="asked for mnist"):
        load_source("hf://datasets/mnist")


@pytest.mark.parametrize("name", ["mnist", "owner/set", "uoft-cs/cifar10"])
def test_other_names_reach_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=f"asked for {name}"):
        load_source(name)


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DhaError, match=r"a\.doc is a file, but not an \.npz archive"):
        load_source(tmp_path / "a.doc")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "the source is a int; pass a path"),
        (None, {}, "the source is a NoneType"),
        ("digits", {"labels": [1]}, "labels were given along with a str; give them only with arrays"),
        (X, {"labels": [1, 1, 1]}, r"x has 1 class \(1,\); at least 2"),
        (X, {"labels": [0, 1, 0], "image_size": 3}, "image_size: 3 pixels; pass an image_size of at least 4"),
        (X[:, :3, :3], {"labels": [0, 1, 0]}, "images in x: 3 pixels; pass an image_size of at least 4"),
        (X, {"labels": [0, 1, 0], "channels": 4}, "channels is 4; pass 1"),
        (X, {"labels": [0, 1, 0], "on_bad_image": "ignore"}, "on_bad_image is 'ignore'; pass 'error' or 'skip'"),
    ],
)
def test_bad_arguments(source: Any, options: dict[str, Any], message: str):
    with pytest.raises(DhaError, match=message):
        load_source(source, **options)


def test_tiny_images_are_fine_when_a_size_is_given():
    assert load_source(torch.zeros(2, 3, 3), [0, 1], image_size=4).train.images.shape == (2, 1, 4, 4)


def deep_folder(folder: Path, levels: dict[str, list[int]], dtype: Any = np.uint16) -> Path:
    """Write flat images of these levels into class folders."""
    for name, values in levels.items():
        (folder / name).mkdir(parents=True)
        for i, level in enumerate(values):
            suffix = "tif" if dtype is np.float32 else "png"
            Image.fromarray(np.full((8, 8), level, dtype)).save(folder / name / f"{i}.{suffix}")
    return folder


@pytest.mark.parametrize(
    ("levels", "dtype", "white"),
    [
        ([0, 5, 900, 1000], np.uint16, 1023),
        ([0, 5, 900, 4000], np.uint16, 4095),
        ([0, 200, 900, 60000], np.uint16, 65535),
        ([0, 3, 100, 200], np.uint16, 255),
        ([0, 0.5, 0.7, 1], np.float32, 1),
        ([0, 0.5, 70, 200], np.float32, 255),
        ([0, 100, 250, 999], np.float32, 1023),
    ],
)
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_all_deep_images_of_a_source_are_scaled_alike(
    tmp_path: Path, levels: list[int], dtype: Any, white: int, cache: Any
):
    folder = deep_folder(tmp_path / "photos", {"a": levels[:2], "b": levels[2:]}, dtype)
    Image.new("L", (8, 8), 77).save(folder / "b" / "shallow.png")
    # The second time from the file on disk.
    for source in (load_source(folder, cache=cache, folder=tmp_path / "run") for _ in range(2)):
        expected = [round(level / white * 255) for level in levels] + [77]
        assert source.train.images[:, 0, 3, 3].tolist() == expected
        whites = source.image_format.integer_white, source.image_format.float_white
        assert whites == ((None, white) if dtype is np.float32 else (white, None))
        again = load_source(folder, classes=("a", "b"), **asdict(source.image_format))
        assert torch.equal(again.train.images, source.train.images)


def test_parts_of_a_source_share_what_is_white(tmp_path: Path):
    deep_folder(tmp_path / "train", {"a": [0, 100], "b": [200, 1000]})
    deep_folder(tmp_path / "val", {"a": [100], "b": [4000]})
    source = load_source(tmp_path)
    assert source.validation is not None
    assert source.image_format.integer_white == 4095
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 6, 12, 62]
    assert source.validation.images[:, 0, 0, 0].tolist() == [6, 249]


def test_images_deeper_than_the_model_knows_are_named(tmp_path: Path):
    folder = deep_folder(tmp_path / "photos", {"a": [0, 5], "b": [900, 1024]})
    with pytest.raises(DhaError, match=r"b.1\.png is refused: .* values above 1023, .*scale them to 0\.\.1023"):
        load_source(folder, classes=("a", "b"), integer_white=1023)
    source = load_source(folder, integer_white=1023, on_bad_image="skip")
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 224]


@pytest.mark.parametrize("kind", ["files", "list", "array"])
def test_transparent_images_with_nothing_to_see_are_not_trained_on(tmp_path: Path, kind: str):
    alpha = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    x = np.stack([np.full_like(alpha, 254), alpha], -1)
    labels: Any = [0, 1, 0, 1]
    source: Any = {"list": list(x), "array": x}.get(kind)
    if kind == "files":
        source, labels = tmp_path, None
        for i, image in enumerate(x):
            (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    with pytest.raises(DhaError, match=r"4 of 4 images are transparent and have nothing to see .*--background black"):
        load_source(source, labels)
    black = load_source(source, labels, background="black")
    assert black.train.images.float().std() > 50
    model: dict[str, Any] = asdict(black.image_format) | {"background": "white"}
    assert load_source(source, labels, classes=black.classes, **model).report.facts.noted["blank"] == 4
