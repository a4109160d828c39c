import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import ImageFormat, load_images, read_image, stream_images
from dha.data import unlabelled as module
from dha.errors import DhaError


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "b.jpg")]
    for path, shape in zip(paths, ((20, 30, 3), (40, 12, 3)), strict=True):
        Image.fromarray(generator.integers(256, size=shape, dtype=np.uint8)).save(path)
    return paths


def test_paths_are_read_as_training_images_are(files):
    images = load_images(files, ImageFormat(10, 3))
    assert images.shape == (2, 3, 10, 10)
    for image, path in zip(images, files, strict=True):
        assert torch.equal(image, read_image(path, ImageFormat(10, 3)).pixels)
    assert torch.equal(load_images(str(files[0]), ImageFormat(10, 3)), images[:1])


def test_arrays_go_the_way_of_arrays():
    arrays = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6)
    assert torch.equal(load_images(arrays, ImageFormat(6, 1))[:, 0], torch.from_numpy(arrays))


def test_what_cannot_be_read_is_named(files, tmp_path):
    with pytest.raises(DhaError, match=r"gone\.jpg: no such image file"):
        load_images([files[0], tmp_path / "gone.jpg"], ImageFormat(8, 3))
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DhaError, match=r"text\.jpg"):
        load_images(tmp_path / "text.jpg", ImageFormat(8, 3))
    with pytest.raises(DhaError, match="empty"):
        load_images([], ImageFormat(8, 3))


def numbered(folder: Path, count: int) -> list[Path]:
    """Write grey images whose level is their number."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("L", (4, 4), i).save(path)
    return paths


def test_streamed_images_come_in_order_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST_IMAGES", 3)
    taken = []
    paths = (taken.append(path) or path for path in numbered(tmp_path, 11))
    sizes = []
    for chunk in stream_images(paths, ImageFormat(4, 1)):
        levels = chunk.pixels[:, 0, 0, 0].tolist()
        assert [Path(path).name for path in chunk.paths] == [f"{level}.png" for level in levels]
        sizes.append(len(levels))
        assert len(taken) <= min(11, sum(sizes) + 3)
    assert sizes == [3, 3, 3, 2]
    monkeypatch.setattr(module, "_MOST_BYTES", 40)
    assert [len(chunk.paths) for chunk in stream_images(numbered(tmp_path, 3), ImageFormat(4, 1))] == [2, 1]


def test_a_damaged_file_is_reported_and_the_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST_IMAGES", 2)
    paths = numbered(tmp_path, 5)
    paths[2].write_text("text")
    paths[3].unlink()
    os.mkfifo(paths[3])
    paths.append(tmp_path / "gone.png")
    chunks = list(stream_images(paths, ImageFormat(4, 3), on_bad_image="skip"))
    assert torch.cat([chunk.pixels for chunk in chunks])[:, 2, 0, 0].tolist() == [0, 1, 4]
    errors = [(Path(path).name, str(error)) for chunk in chunks for path, error in chunk.errors]
    assert [name for name, _ in errors] == ["2.png", "3.png", "gone.png"]
    for (name, error), reason in zip(errors, ("UnidentifiedImage", "no regular file", "No such file"), strict=True):
        assert name in error
        assert reason in error
    with pytest.raises(DhaError, match=r"2\.png cannot be read"):
        list(stream_images(paths, ImageFormat(4, 3)))


def test_a_stream_that_is_left_ends_its_threads(tmp_path: Path):
    before = threading.active_count()
    for _ in stream_images(numbered(tmp_path, 300), ImageFormat(4, 1)):
        break
    assert threading.active_count() == before
