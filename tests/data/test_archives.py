import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dha.data import load_source
from dha.errors import DhaError


def save(path: Path, first: int, count: int = 4, side: int = 8, **changes: Any) -> None:
    """Save images whose grey level is their number, with labels that alternate."""
    x = np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None], (count, side, side))
    np.savez(path, **{"x": x, "y": np.arange(first, first + count) % 2, **changes})


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_one_file(tmp_path: Path):
    save(tmp_path / "a.npz", 0)
    source = load_source(str(tmp_path / "a.npz"))
    assert levels(source.train.images) == [0, 1, 2, 3]
    assert source.train.labels.tolist() == [0, 1, 0, 1]
    assert source.classes == (0, 1)
    assert source.name.endswith("a.npz")


def test_the_other_keys(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=["u", "v"])
    source = load_source(tmp_path / "a.npz")
    assert source.classes == ("u", "v")
    assert source.train.images.shape == (2, 3, 8, 8)


def test_a_folder_is_joined_in_sorted_order(tmp_path: Path):
    save(tmp_path / "train-1.npz", 10)
    save(tmp_path / "train-0.npz", 0)
    save(tmp_path / "val.npz", 20, count=2)
    save(tmp_path / "test.npz", 30, count=3)
    source = load_source(tmp_path)
    assert source.validation is not None
    assert source.test is not None
    assert levels(source.train.images) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert levels(source.validation.images) == [20, 21]
    assert levels(source.test.images) == [30, 31, 32]
    assert source.test.labels.tolist() == [0, 1, 0]


def test_a_folder_needs_no_validation_and_test(tmp_path: Path):
    save(tmp_path / "train.npz", 0)
    source = load_source(tmp_path)
    assert (source.validation, source.test) == (None, None)


def test_missing_keys_are_named_with_those_found(tmp_path: Path):
    np.savez(tmp_path / "a.npz", data=np.zeros(3), y=np.zeros(3))
    with pytest.raises(DhaError, match=r"a\.npz holds the keys \['data', 'y'\]; it needs x and y"):
        load_source(tmp_path / "a.npz")


def test_bad_arrays_are_named_with_their_file(tmp_path: Path):
    path = tmp_path / "a.npz"
    save(path, 0, x=np.full((4, 8, 8), -2.0))
    with pytest.raises(DhaError, match=r"a\.npz: x\[0, 0, 0, 0\] is -2\.0"):
        load_source(path)
    save(path, 0, y=np.arange(3))
    with pytest.raises(DhaError, match=r"a\.npz: y are 3, but there are 4 images"):
        load_source(path)


def test_objects_are_never_unpickled(tmp_path: Path):
    save(tmp_path / "a.npz", 0, y=np.array(["a", "b", "a", None]))
    with pytest.raises(DhaError, match=r"a\.npz: y holds Python objects, which are refused.*astype\(str\)"):
        load_source(tmp_path / "a.npz")


def test_files_that_are_no_archives(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.write_text("text")
    with pytest.raises(DhaError, match=r"a\.npz cannot be read as an \.npz archive"):
        load_source(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DhaError, match=r"a\.npz holds a single array"):
        load_source(path)
    save(path, 0)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DhaError, match=r"a\.npz cannot be read"):
        load_source(path)


def test_files_of_one_part_must_fit_together(tmp_path: Path):
    save(tmp_path / "train-0.npz", 0)
    save(tmp_path / "train-1.npz", 0, side=9)
    with pytest.raises(DhaError, match=r"train-1\.npz: x holds images of 9 x 9 pixels, .*train-0\.npz: x of 8 x 8"):
        load_source(tmp_path)
    save(tmp_path / "train-1.npz", 0, y=["a", "b", "a", "b"])
    with pytest.raises(DhaError, match=r"train-1\.npz and .*train-0\.npz mix strings and numbers"):
        load_source(tmp_path)


def test_classes_of_the_test_part_must_be_known(tmp_path: Path):
    save(tmp_path / "train.npz", 0)
    save(tmp_path / "test.npz", 0, y=[0, 1, 7, 1])
    with pytest.raises(DhaError, match=r"class 7 in .*test\.npz is not among the 2 classes of .*train\.npz \(0, 1\)"):
        load_source(tmp_path)


def test_deep_archives_share_what_is_white(tmp_path: Path):
    save(tmp_path / "train-0.npz", 0, x=np.full((4, 8, 8), 100, np.uint16))
    save(tmp_path / "train-1.npz", 0, x=np.full((4, 8, 8), 4000, np.uint16))
    save(tmp_path / "train-2.npz", 0, x=np.full((4, 3, 8, 8), 90, np.uint8))
    save(tmp_path / "test.npz", 0, x=np.full((4, 8, 8, 1), 1000, np.int64))
    source = load_source(tmp_path, channels=1)
    assert source.test is not None
    assert levels(source.train.images) == [6] * 4 + [249] * 4 + [90] * 4
    assert levels(source.test.images) == [62] * 4
    assert source.image_format.integer_white == 4095


def member(dtype: str, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """Return an .npy file whose header may claim anything."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def write(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (member("|u1", (10**6, 1000, 1000)), member("|u1", (4,), bytes(4)), "x claims 1000000000000 bytes, but is 128"),
        (member("|u1", (4, 8, 8), bytes(256)), member("<U1000000", (10**6,)), "y claims 4000000000000 bytes"),
        (member("|u1", (-1, 8, 8), bytes(64)), member("|u1", (4,), bytes(4)), "x claims -64 bytes"),
        (member("|u1", (4, 8, 8), bytes(100)), member("|u1", (4,), bytes(4)), "x claims 256 bytes, but is 228"),
        (b"no header", member("|u1", (4,), bytes(4)), "x cannot be read .*write the archive again"),
        (
            member("|u1", (4, 1000, 1000), bytes(4 * 10**6)),
            member("|u1", (4,), bytes(4)),
            r"x takes 0\.0 GB, .*as files",
        ),
    ],
)
def test_archives_that_claim_what_they_do_not_hold_or_what_does_not_fit_end_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: bytes, y: bytes, message: str
):
    monkeypatch.setattr("dha.data.archives.total_memory", lambda: 8 * 10**6 - 1)
    monkeypatch.setattr("dha.data.archives._array", None)
    write(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(DhaError, match=rf"a\.npz: {message}"):
        load_source(tmp_path / "a.npz")


def test_a_single_array_under_the_name_of_an_archive_is_not_loaded(tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(member("|u1", (10**6, 1000, 1000)))
    with pytest.raises(DhaError, match=r"a\.npz holds a single array"):
        load_source(tmp_path / "a.npz")
