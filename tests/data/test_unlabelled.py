import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import ImageFormat, load_images, read_image
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
