import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dha.cli import main
from dha.data import DataReport, load_source, split
from dha.errors import DataWarning, DhaError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six different images in each of two classes, and files that are none."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (10, 8 + number % 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "photos" / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "photos" / "README.md").write_text("")
    (tmp_path / "photos" / "loose.png").write_bytes(b"")
    return tmp_path / "photos"


def report(place: Path, **options) -> DataReport:
    source = load_source(place, on_bad_image="skip", **options)
    return split(source, validation_fraction=0.2, test_fraction=0.2, seed=0).report


def test_the_report_says_what_was_read_and_how_it_was_converted(folder: Path):
    assert report(folder, image_size=16).lines(Path("run")) == [
        f"data: {folder}, one folder for each class",
        "images: 12 in 2 classes: cat 6, dog 6",
        "parts: train 8, validation 2 (held out of the training images), test 2 (held out of the training images)",
        "sizes: 8 to 10 x 10 to 10 pixels, median 9 x 10",
        "converted: to 16 x 16 pixels, colour; 8 not square, squashed to squares (--resize)",
        "left out: 4 files or folders, listed in run/left-out.csv: 2 not an image, 1 in no class folder, 1 hidden",
    ]


def test_every_conversion_is_counted(folder: Path):
    noise = np.random.default_rng(1).integers(0, 256, (10, 10, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "dog" / "transparent.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 16).save(folder / "dog" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise[..., :3]).save(folder / "dog" / "turned.jpg", exif=exif)
    frames = [Image.fromarray(noise[..., channel]) for channel in range(2)]
    frames[0].save(folder / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    found = report(folder, image_size=16, resize="pad", background="black").to_dict()
    assert found["converted"] == [
        "to 16 x 16 pixels, colour",
        "8 not square, padded to squares (--resize)",
        "1 in grey, made colour",
        "1 of more than 8 bits, of which 4095 is white",
        "1 transparent, shown on black (--background)",
        "1 turned upright by their EXIF orientation",
        "1 animated or of several pages, the first of which is used",
    ]
    assert found["modes"] == {"RGB": 13, "RGBA": 1, "I;16": 1, "P": 1}
    assert found["sizes"] == {"width": [8, 9, 10], "height": [10, 10, 10]}


def test_the_report_of_images_taken_up_from_disk_is_that_of_those_decoded(folder: Path, tmp_path: Path):
    (folder / "cat" / "damaged.png").write_bytes(b"")
    first, again = (report(folder, cache="disk", folder=tmp_path / "run") for _ in range(2))
    assert first.left_out[str(folder / "cat" / "damaged.png")].startswith("cannot be read as an image")
    assert (first.to_dict(), first.left_out) == (again.to_dict(), again.left_out)


def test_uneven_classes_are_in_the_report(folder: Path):
    for number in range(3, 6):
        (folder / "dog" / f"{number}.png").unlink()
    assert "classes: uneven; --class-weight balanced gives every class the same weight" not in report(folder).lines()
    for number in range(6, 12):
        image = Image.fromarray(np.full((8, 8, 3), number, np.uint8))
        image.save(folder / "cat" / f"{number}.png")
    assert "classes: uneven; --class-weight balanced gives every class the same weight" in report(folder).lines()


def test_fit_prints_the_report_first_and_keeps_it_in_run_and_model(folder: Path, tmp_path: Path, capfd):
    (folder / "cat" / "damaged.png").write_bytes(b"")
    other = os.fsdecode(os.fsencode(folder / "cat") + b"/\xff.txt")
    Path(other).write_text("")
    out = tmp_path / "run"
    options = ["--epochs", "1", "--architecture.width", "4", "--image-size", "8", "--device", "cpu"]
    assert main(["fit", str(folder), "--out", str(out), "--on-bad-image", "skip", *options]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"data: {folder}, one folder for each class"
    assert any(line.startswith(f"left out: 6 files or folders, listed in {out}/left-out.csv: ") for line in lines)
    data = json.loads((out / "data.json").read_text())
    assert data == json.loads((out / "model" / "model.json").read_text())["data"]
    assert (data["classes"], data["left_out"]) == ({"cat": 6, "dog": 6}, 6)
    with open(out / "left-out.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows[other] == "not an image"
    assert rows[str(folder / "cat" / "damaged.png")].startswith("cannot be read as an image")


def test_the_same_image_in_two_classes_is_in_the_report(folder: Path):
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    with pytest.warns(DataWarning, match=r"2 images are in more than one class .*cat/0\.png in 'cat', .*dog/copy\.png"):
        found = report(folder)
    assert set(found.conflicts) == {(str(folder / "cat" / "0.png"), "cat"), (str(folder / "dog" / "copy.png"), "dog")}
    assert "conflicts: 2 images are in more than one class" in found.lines()


def test_damaged_images_are_counted_in_the_error(folder: Path):
    for name in ("cat/a.png", "dog/a.png", "dog/b.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(DhaError, match=r"cat/a\.png cannot be read .* \(2 more of the first 15 images .*\), or leave"):
        load_source(folder)


def test_a_damaged_image_among_many_is_found_before_all_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "cat" / "0.png").write_bytes(b"no image")
    monkeypatch.setattr("dha.data.parts._LOOK_ON", 10)
    monkeypatch.setattr("dha.data.parts.read_image", None)
    with pytest.raises(DhaError, match=r"cat/0\.png cannot be read .*, or leave it out with --on-bad-image skip"):
        load_source(folder)
