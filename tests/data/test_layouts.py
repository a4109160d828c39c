from pathlib import Path

import pytest
from PIL import Image

from dha.data import load_source
from dha.data.layouts import role_of
from dha.errors import DhaError


def paint(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)


def classes(folder: Path) -> None:
    paint(folder / "a" / "a.png", folder / "b" / "b.png")


NAMES = {
    "train": "train Train TRAINING train_images train-set images.train Trainset train2017 training_data trn",
    "validation": "val Valid validation Dev eval val2017 images_val validation-set",
    "test": "test Testing test_set TEST test1 testdata holdout hold-out",
}


@pytest.mark.parametrize(("role", "names"), NAMES.items())
def test_usual_names_of_parts_in_any_case_and_with_usual_additions(role: str, names: str):
    assert [role_of(name) for name in names.split()] == [role] * len(names.split())


@pytest.mark.parametrize("name", ["cat", "trainer", "training_shoes", "test_tube", "trainval", "PublicTest", "images"])
def test_other_names_are_no_parts(name: str):
    assert role_of(name) is None


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Training", None, "Testing"), ("train_images", "dev", None), ("TRAIN", "Validation", "test-set")],
)
def test_folders_of_parts_are_no_classes(tmp_path: Path, train: str, validation: str | None, test: str | None):
    for name in filter(None, (train, validation, test)):
        classes(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("<x/>")
    source = load_source(tmp_path)
    assert source.classes == ("a", "b")
    assert [part is not None for part in (source.validation, source.test)] == [bool(validation), bool(test)]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["Testing", "cat", "dog"], r"holds Testing, which may be parts .*, beside cat and dog: are these classes or"),
        (["train", "cat"], r"holds train, which may be parts .*, beside cat"),
        (["Training", "PublicTest"], r"holds Training, which may be parts .*, beside PublicTest"),
        (["train", "Training"], r"holds Training and train; keep one of them"),
        (["train", "val", "dev"], r"holds dev and val; keep one of them"),
        (["fold1", "fold2", "fold3"], r"holds fold1, fold2 and fold3, which look like parts for cross-validation"),
        (["PublicTest", "trainval"], r"holds PublicTest and trainval, which look like parts of a data set"),
        (["Testing"], r"holds testing but no train; add it"),
        (["photos"], r"holds only the folder photos; pass .*/photos"),
    ],
)
def test_what_is_not_surely_a_part_or_a_class_is_refused(tmp_path: Path, folders: list[str], message: str):
    for name in folders:
        classes(tmp_path / name)
    with pytest.raises(DhaError, match=message):
        load_source(tmp_path)


def test_a_test_folder_without_classes_beside_classes_is_refused(tmp_path: Path):
    classes(tmp_path)
    paint(tmp_path / "test" / "1.png")
    with pytest.raises(DhaError, match=r"holds test, which may be parts .*, beside a and b"):
        load_source(tmp_path)


def test_folders_of_parts_without_classes_are_refused(tmp_path: Path):
    paint(tmp_path / "train" / "cat.0.png", tmp_path / "test" / "1.png")
    with pytest.raises(DhaError, match=r"(train|test) holds no class folders; .* or pass a table of paths and labels"):
        load_source(tmp_path)


def test_folders_of_runs_are_left_out_of_the_data(tmp_path: Path):
    classes(tmp_path)
    run = tmp_path / "runs" / "first"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("# dha fit .\nepochs: 1\n")
    (tmp_path / "runs" / "notes.txt").write_text("the first was too short")
    assert load_source(tmp_path).classes == ("a", "b")
    own = tmp_path / "runs" / "second"
    own.mkdir()
    assert load_source(tmp_path, folder=own).classes == ("a", "b")
    (own / "model").mkdir()
    with pytest.raises(DhaError, match=r"class folder .*runs holds no images"):
        load_source(tmp_path)


def test_a_run_in_its_own_data_takes_up_its_decoded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    classes(tmp_path)
    own = tmp_path / "run"
    load_source(tmp_path, folder=own, cache="disk")
    (own / "config.yaml").write_text("# dha fit .\n")
    monkeypatch.setattr("dha.data.parts.read_image", None)
    assert len(load_source(tmp_path, folder=own, cache="disk").train) == 2


@pytest.mark.parametrize("name", ["5" * 59 + "x", "dataset" * 8 + "x", "dataset" * 100_000 + "x"])
def test_a_name_of_any_length_is_told_at_once(name: str):
    assert role_of(name) is None
