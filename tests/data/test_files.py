import inspect
import os
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from dha.data import load_source
from dha.data.files import LeftOut, image_files
from dha.errors import DhaError


def paint(path: Path, level: int = 0, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path, kind)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "photos" / "a" / "a.png")
    paint(tmp_path / "photos" / "b" / "b.png")
    return tmp_path / "photos"


def listing(folder: Path) -> tuple[set[str], LeftOut]:
    left_out: LeftOut = {}
    found = set(image_files(folder, left_out))
    assert set(image_files(folder, left_out, known=True)) == found
    return {os.path.relpath(path, folder) for path in found}, {
        os.path.relpath(path, folder): reason for path, reason in left_out.items()
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.JPG", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.avif", "AVIF"),
        ("a.scan", "JPEG2000"),
        ("a", "PNG"),
        ("a.jpg_large", "JPEG"),
        ("a.jpg?w=640", "JPEG"),
        ("a.txt", "WEBP"),
    ],
)
def test_what_pillow_reads_is_an_image_whatever_its_name(folder: Path, name: str, kind: str):
    paint(folder / "a" / name, 200, kind)
    source = load_source(folder)
    assert source.train.labels.tolist() == [0, 0, 1]
    assert sorted(source.train.images[:, 0, 0, 0].tolist())[:2] == [0, 0]
    assert max(source.train.images[:, 0, 0, 0].tolist()) == pytest.approx(200, abs=3)


def test_what_is_no_image_is_left_out_with_the_reason(folder: Path):
    (folder / "a" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "a" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "a" / "a.xml").write_text("<annotation/>")
    (folder / "a" / "empty").write_bytes(b"")
    (folder / "a" / "gone").symlink_to("nowhere")
    (folder / "a" / "__MACOSX").mkdir()
    found, left_out = listing(folder / "a")
    assert found == {"a.png"}
    assert left_out == {
        "Thumbs.db": "not an image",
        ".DS_Store": "hidden",
        "a.xml": "not an image",
        "empty": "not an image",
        "gone": "broken link",
        "__MACOSX": "hidden",
    }


@pytest.mark.parametrize("name", ["cut.jpg", "phone.heic", "link.png"])
def test_a_file_named_as_an_image_that_cannot_be_read_is_damaged(folder: Path, name: str):
    if name.startswith("link"):
        (folder / "a" / name).symlink_to("nowhere.png")
    else:
        (folder / "a" / name).write_bytes(b"")
    with pytest.raises(DhaError, match=rf"{name} cannot be (read as an image|opened)"):
        load_source(folder)
    assert load_source(folder, on_bad_image="skip").skipped == 1


def test_special_files_are_left_out_and_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(folder / "a")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found, left_out = listing(folder / "a")
    assert found == {"a.png"}
    assert left_out == dict.fromkeys(["pipe.png", "zero.png", "socket.png"], "special file")


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path):
    paint(tmp_path / "store" / "deep" / "c.png", 7)
    (tmp_path / "store" / "deep" / "back").symlink_to(tmp_path / "store")
    (folder / "a" / "more").symlink_to(tmp_path / "store")
    (folder / "a" / "twice").symlink_to(tmp_path / "store")
    (folder / "a" / "up").symlink_to("..")
    found, left_out = listing(folder / "a")
    assert found == {"a.png", "more/deep/c.png"}
    assert left_out == {
        "more/deep/back": "folder that is listed already",
        "twice": "folder that is listed already",
        "up": "link to a folder that it lies in",
    }
    assert load_source(folder).train.labels.tolist() == [0, 0, 1]


def test_folders_are_listed_deeper_than_python_recurses(folder: Path):
    image = paint(folder.joinpath("a", *["d"] * 100, "e.png"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 40)
    try:
        found = list(image_files(folder / "a", {}))
    finally:
        sys.setrecursionlimit(limit)
    assert found == [str(folder / "a" / "a.png"), str(image)]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folders_that_may_not_be_listed_are_named(folder: Path):
    (folder / "a").chmod(0)
    try:
        with pytest.raises(DhaError, match=r"photos/a cannot be listed \(Permission denied\); make it readable"):
            load_source(folder)
    finally:
        (folder / "a").chmod(0o700)


def test_folders_that_cannot_be_listed_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DhaError, match=r"photos/a cannot be listed \(Permission denied\); make it readable"):
        load_source(folder)


def test_names_in_other_encodings_are_read(folder: Path):
    other = os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png")
    paint(folder / "a" / "c.png").rename(other)
    assert len(load_source(folder).train) == 3
    Path(other).write_bytes(b"")
    with pytest.raises(DhaError, match=r"\\udcff\.png' cannot be read as an image") as caught:
        load_source(folder)
    assert str(caught.value).isprintable()
