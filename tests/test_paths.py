import os
import stat

import pytest

from dha import AugmentationConfig, Config, DhaError
from dha.paths import check_device, check_files, check_model, check_place, check_source, numbered_folder

LONG = 300 * "x"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "file.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("source", ["digits", "photos", "cifar10", "owner/set", "./photos"])
def test_sources_that_are_there_or_on_a_hub_pass(source, place):
    check_source(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("photso", "source='photso': there is no such file or folder: did you mean 'photos'?"),
        ("./nothing", "there is no such file or folder"),
        ("nothing.npz", "there is no such file or folder"),
        ("photos/cats", "there is no such file or folder"),
        ("file.txt/x", "there is no such file or folder"),
        ("~nosuchuser/x", "there is no such user"),
        ("pipe", "is neither a folder nor a file"),
        (LONG, "cannot be read (File name too long)"),
        ("a\0b", "is no name that a file can have"),
        ("", "name a folder or file"),
        ("photos\udcff", "source='photos\\udcff': there is no such file or folder: did you mean 'photos'?"),
    ],
)
def test_sources_that_are_not_there_are_refused_at_once_with_the_nearest_name(source, message, place):
    with pytest.raises(DhaError) as error:
        check_source(source)
    assert message in str(error.value)


def test_what_must_not_be_read_is_named(place, monkeypatch):
    # No permission stops root, who may run the tests.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    for check in (lambda: check_source("photos"), lambda: check_files(Config(network="file.txt:make"))):
        with pytest.raises(DhaError, match=r"cannot be read \(Permission denied\)"):
            check()


@pytest.mark.parametrize("out", ["new", "new/deeper/run", "photos", "./photos/run"])
def test_a_place_for_a_run_is_tried_and_left_as_it_was(out, place):
    before = sorted(place.rglob("*"))
    check_place(out)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "out", ["file.txt", "file.txt/run", "pipe", LONG, f"new/{LONG}", "~nosuchuser/x", "/proc/x/run"]
)
def test_a_place_where_no_run_can_be_is_named(out, place):
    with pytest.raises(DhaError, match=r"^out='"):
        check_place(out)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "nett.py:make"}, "there is no file nett.py: did you mean 'net.py'?"),
        ({"network": "net.py"}, "names no function in a file"),
        ({"network": "photos:make"}, "is a folder"),
        (
            {"augmentation": AugmentationConfig(start="policy.json")},
            "augmentation.start='policy.json': there is no such",
        ),
        ({"augmentation": AugmentationConfig(start="pipe")}, "augmentation.start='pipe' is no ordinary file"),
    ],
)
def test_files_that_settings_name_have_to_be_there(settings, message, place):
    (place / "net.py").write_text("")
    with pytest.raises(DhaError) as error:
        check_files(Config(**settings))
    assert message in str(error.value)


def test_a_run_is_told_from_its_model(place):
    (place / "photos" / "model").mkdir()
    with pytest.raises(DhaError, match=r"no model.json in it\): give 'photos/model'"):
        check_model("photos")
    with pytest.raises(DhaError, match="is not a folder"):
        check_model("file.txt")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cpu:1", "cuda:-1", ""])
def test_devices_are_named_as_torch_names_them(name):
    with pytest.raises(DhaError, match="choose from auto, cpu, cuda, cuda:1"):
        check_device(name)
    check_device("cuda:3")


def test_runs_without_a_name_are_numbered(place):
    assert numbered_folder("digits") == "runs/digits-1"
    assert numbered_folder("../some photos.npz") == "runs/some_photos-1"
    assert numbered_folder("digits") == "runs/digits-2"
    assert stat.S_ISDIR((place / "runs" / "digits-2").stat().st_mode)
