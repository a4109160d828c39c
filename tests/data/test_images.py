from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import ImageFormat, LabelledImages, convert_channels, on_device, read_image, resize_arrays
from dha.errors import DhaError


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_select_keeps_images_and_labels_together():
    data = LabelledImages(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([10, 11, 12, 13]))
    chosen = data.select([3, 1])
    assert chosen.labels.tolist() == [13, 11]
    assert chosen.images.flatten().tolist() == [3, 1]
    assert data.select(np.array([True, False, False, True])).labels.tolist() == [10, 13]
    assert len(data.select([])) == 0
    image, label = data[2]
    assert (int(image), label) == (2, 12)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), r"float32 of shape \(2, 1, 4, 4\); pass uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(3,\); pass int64 .*\(2,\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), r"labels are float32"),
    ],
)
def test_labelled_images_refuses_wrong_tensors(images: torch.Tensor, labels: torch.Tensor, message: str):
    with pytest.raises(DhaError, match=message):
        LabelledImages(images, labels)


def test_resize_is_the_identity_at_the_right_size():
    images = noise(3, 3, 8, 8)
    assert resize_arrays(images, ImageFormat(8, 3)) is images


@pytest.mark.parametrize(("height", "width", "size"), [(40, 24, 8), (24, 41, 10), (9, 6, 16), (12, 7, 7)])
def test_resize_agrees_with_reading_the_same_image(height: int, width: int, size: int):
    images = noise(2, 3, height, width)
    resized = resize_arrays(images, ImageFormat(size, 3))
    assert resized.shape == (2, 3, size, size)
    for image, small in zip(images, resized, strict=True):
        read = read_image(as_pil(image), ImageFormat(size, 3)).pixels
        assert (read.int() - small.int()).abs().max() <= 1


def test_resize_of_many_images_fills_every_chunk():
    images = torch.arange(2500).remainder(251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    assert torch.equal(resize_arrays(images, ImageFormat(4, 3)), images[:, :, :4, :4])


def test_convert_channels():
    images = noise(2, 3, 5, 6)
    assert convert_channels(images, 3) is images
    grey = convert_channels(images, 1)
    assert np.array_equal(grey[0, 0].numpy(), np.asarray(as_pil(images[0]).convert("L")))
    assert torch.equal(convert_channels(grey, 3), torch.cat([grey, grey, grey], 1))


def test_joined_images_stand_one_part_after_the_other_with_their_labels():
    images = torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2)
    whole = LabelledImages(images, torch.arange(5))
    joined = whole.select([3, 4]).join(whole.select([0]))
    assert joined.labels.tolist() == [3, 4, 0]
    assert torch.equal(joined.images, images[[3, 4, 0]])


def test_selections_of_selections_keep_to_their_store_and_others_are_joined_in_memory():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    whole = LabelledImages(images, torch.arange(6) + 10)
    some = whole.select([5, 3, 1]).select(torch.tensor([True, False, True]))
    assert some.labels.tolist() == [15, 11]
    assert [(int(some[i][0]), some[i][1]) for i in (0, 1)] == [(5, 15), (1, 11)]
    assert whole.join(some).labels.tolist() == [10, 11, 12, 13, 14, 15, 15, 11]
    other = some.join(LabelledImages(images + 6, torch.arange(6)).select([0]))
    assert (other.images.flatten().tolist(), other.labels.tolist()) == ([5, 1, 6], [15, 11, 0])


@pytest.mark.parametrize("rows", [None, [5, 3, 1, 0]])
def test_all_ways_of_reading_give_the_same(rows: list[int] | None):
    data = LabelledImages(noise(6, 3, 4, 5), torch.arange(6))
    data = data if rows is None else data.select(rows)
    assert data.shape == (3, 4, 5)
    assert [len(labels) for _, labels in data.chunks(4)] == ([4, 2] if rows is None else [4])
    assert torch.equal(torch.cat([images for images, _ in data.chunks(3)]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in data.chunks(3)]), data.labels)
    indices = torch.tensor([3, 0, 3], dtype=torch.int32)
    for images, labels in (data.at(indices), data.read(indices)):
        assert torch.equal(images, data.images[[3, 0, 3]])
        assert torch.equal(labels, data.labels[[3, 0, 3]])


def test_a_store_is_moved_to_the_device_once_and_only_if_it_fits(monkeypatch: pytest.MonkeyPatch):
    whole = LabelledImages(noise(6, 3, 4, 4), torch.arange(6))
    meta, parts = torch.device("meta"), [whole.select([0, 1]), whole.select([2]), whole]
    moved = on_device(parts, meta)
    assert [part.device.type for part in moved] == ["meta"] * 3
    assert [len(part) for part in moved] == [2, 1, 6]
    assert moved[0].join(moved[1])._store is moved[2]._store
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 6 * 48 - 1, 10**9))
    assert on_device(parts, torch.device("cuda")) == tuple(parts)


def test_a_store_on_disk_stays_there_where_the_free_memory_is_not_known(tmp_path: Path):
    (tmp_path / "store").write_bytes(bytes(48 * 2))
    store = torch.from_file(str(tmp_path / "store"), shared=True, size=96, dtype=torch.uint8).view(2, 3, 4, 4)
    data = LabelledImages(store, torch.arange(2))
    assert on_device([data], torch.device("meta")) == (data,)
    assert on_device([data], torch.device("cpu"))[0].on_disk
