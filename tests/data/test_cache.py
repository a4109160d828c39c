import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import Batches, Cache, LabelledImages, Source, load_source, measure, parts, split
from dha.data import cache as module
from dha.errors import DhaError
from dha.state import fingerprint

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of real JPEG files of many sizes, in two classes."""
    generator = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40 + number, 36)).save(path)
    return tmp_path / "photos"


def both(photos: Path, **options) -> tuple[Source, Source]:
    memory, disk = (load_source(photos, image_size=16, cache=cache, **options) for cache in ("memory", "disk"))
    assert not memory.train.on_disk
    assert disk.train.on_disk
    return memory, disk


def test_images_on_disk_are_those_in_memory(photos: Path):
    memory, disk = both(photos)
    assert torch.equal(memory.train.images, disk.train.images)
    assert torch.equal(memory.train.labels, disk.train.labels)
    assert measure(memory.train) == measure(disk.train) == measure(disk.train.images)
    several = [split(source, validation_fraction=0.2, test_fraction=0.1, seed=3) for source in (memory, disk)]
    assert fingerprint(several[0]) == fingerprint(several[1])
    joined = [part.train.join(part.validation) for part in several]
    assert torch.equal(joined[0].images, joined[1].images)
    assert joined[1].on_disk, "splitting and joining copy no pixels"


@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_from_disk_are_those_from_memory(photos: Path, drop_last: bool):
    epochs = []
    for source in both(photos):
        some = source.train.select(torch.arange(59, 4, -1))
        batches = Batches(some, 8, torch.Generator().manual_seed(1), CPU, drop_last, share=(1, 2))
        epochs.append([pair for _ in range(2) for pair in batches])
    assert len(epochs[0]) == len(epochs[1]) == (12 if drop_last else 14)
    for (images, labels), (expected, numbers) in zip(*epochs, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, numbers)


def test_an_epoch_from_disk_goes_on_where_it_was_broken_off(photos: Path):
    _, disk = both(photos)

    def make(seed: int) -> Batches:
        return Batches(disk.train, 8, torch.Generator().manual_seed(seed), CPU, True)

    whole, broken, other = make(0), make(0), make(1)
    expected = [labels.tolist() for _ in range(2) for _, labels in whole]
    begun = []
    for _, labels in broken:
        begun.append(labels.tolist())
        if len(begun) == 3:
            break
    other.load_state_dict(broken.state_dict())
    assert begun + [labels.tolist() for batches in (other, other) for _, labels in batches] == expected
    assert begun + [labels.tolist() for batches in (broken, broken) for _, labels in batches] == expected


def test_an_error_of_the_reader_reaches_who_waits_for_the_batch(photos: Path, monkeypatch: pytest.MonkeyPatch):
    _, disk = both(photos)

    def fail(self: LabelledImages, indices: torch.Tensor, pinned: bool = False):
        raise OSError("gone")

    monkeypatch.setattr(LabelledImages, "read", fail)
    with pytest.raises(OSError, match="gone"):
        next(iter(Batches(disk.train, 8, torch.Generator(), CPU, True)))


def test_what_is_too_large_for_memory_goes_to_disk(photos: Path, monkeypatch: pytest.MonkeyPatch):
    size = 60 * 3 * 16 * 16
    for memory, on_disk in ((4 * size, False), (4 * size - 1, True)):
        monkeypatch.setattr(module, "total_memory", lambda memory=memory: memory)
        assert load_source(photos, image_size=16).train.on_disk == on_disk


def test_the_memory_of_this_machine_is_known():
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < module.total_memory() <= 1024 * int(lines["MemTotal"].split()[0])


def test_images_that_cannot_be_read_are_skipped_on_disk_too(photos: Path, tmp_path: Path):
    (photos / "a" / "10.jpg").write_bytes(b"no image")
    memory, disk = both(photos, on_bad_image="skip", folder=tmp_path / "run")
    again = load_source(photos, image_size=16, cache="disk", on_bad_image="skip", folder=tmp_path / "run")
    for source in (disk, again):
        assert (source.skipped, len(source.train)) == (1, 59)
        assert torch.equal(source.train.images, memory.train.images)
        assert torch.equal(source.train.labels, memory.train.labels)
    with pytest.raises(DhaError, match=r"10\.jpg cannot be read"):
        load_source(photos, image_size=16, cache="disk", folder=tmp_path / "run")
    assert len(list((tmp_path / "run" / module.FOLDER).iterdir())) == 2, "nothing is left of the attempt"


def test_a_run_decodes_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "run"

    def load(**options) -> torch.Tensor:
        return load_source(photos, **{"image_size": 16, "cache": "disk", "folder": run, **options}).train.images

    expected = load()
    shutil.copytree(run, tmp_path / "copy")
    monkeypatch.setattr("dha.data.parts.read_image", None)
    assert torch.equal(load(), expected)
    for changed in ({"image_size": 8}, {"channels": 1}, {"folder": tmp_path / "other"}):
        with pytest.raises(TypeError, match="not callable"):
            load(**changed)
    os.utime(photos / "a" / "00.jpg")
    with pytest.raises(TypeError, match="not callable"):
        load()
    Cache(folder=run).remove()
    assert not list(run.iterdir())


def test_a_run_removes_no_file_that_it_has_not_written(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    foreign = [run / "images" / "a.png", run / module.FOLDER / "notes.txt", run / module.FOLDER / "a.u8"]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    load_source(photos, image_size=16, cache="disk", folder=run)
    Cache(folder=run).remove()
    assert sorted(path for path in run.rglob("*") if path.is_file()) == sorted(foreign)
    assert all(file.read_text() == "mine" for file in foreign)


def test_a_partial_file_follows_no_link(photos: Path, tmp_path: Path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    load = partial(load_source, photos, image_size=16, cache="disk", folder=run)
    expected = load().train.images.clone()
    (file,) = (run / module.FOLDER).glob("*.u8")
    victim.write_text("mine")
    for planted in (file, file.with_suffix(".json"), file.with_suffix(".partial")):
        file.unlink(missing_ok=True)
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim)
        assert torch.equal(load().train.images, expected)
        assert victim.read_text() == "mine"
    Cache(folder=run).remove()
    (run / module.FOLDER).symlink_to(tmp_path)
    with pytest.raises(DhaError, match="it is a link"):
        load()
    Cache(folder=run).remove()
    assert victim.read_text() == "mine"


def test_a_file_that_was_cut_off_is_decoded_anew(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    load = partial(load_source, photos, image_size=16, cache="disk", folder=run)
    expected = load().train.images.clone()
    (file,) = (run / module.FOLDER).glob("*.u8")
    for cut_off in (file, file.with_suffix(".json")):
        os.truncate(cut_off, cut_off.stat().st_size // 2)
        assert torch.equal(load().train.images, expected)


def test_without_a_folder_no_file_is_left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "tmp"))
    source = load_source(photos, image_size=16, cache="disk")
    assert not list((tmp_path / "tmp").iterdir())
    assert source.train.images.float().std() > 10
    pictures = [Image.new("L", (8, 8), level) for level in range(4)]
    source = load_source(pictures, [0, 1, 0, 1], cache="disk", folder=tmp_path / "run")
    assert (source.train.on_disk, list((tmp_path / "run").iterdir())) == (True, [])
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@contextmanager
def room_for(size: int):
    """No file grows beyond so many bytes: making it larger fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("folder", [True, False])
def test_a_full_disk_is_named_before_anything_is_decoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("dha.data.parts.read_image", None)
    with (
        room_for(60 * 3 * 16 * 16 - 1),
        pytest.raises(DhaError, match=r"60 decoded images do not fit"),
    ):
        load_source(photos, image_size=16, cache="disk", folder=tmp_path / "run" if folder else None)
    left = list((tmp_path / "run" / module.FOLDER).iterdir()) if folder else list(tmp_path.glob(".dha*"))
    assert not left


def test_a_folder_that_cannot_be_made_is_named(photos: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DhaError, match=r"cannot be written to .*file.*choose another folder"):
        load_source(photos, image_size=16, cache="disk", folder=tmp_path / "file")


SLOW = """
import sys, time
from pathlib import Path
from dha.data import load_source, parts

read_image = parts.read_image
parts.read_image = lambda *arguments: (time.sleep(0.2), read_image(*arguments))[1]
load_source(Path(sys.argv[1]), image_size=16, cache="disk", folder=Path(sys.argv[2]))
"""


def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(photos), str(run)])
    while not list(run.glob(f"{module.FOLDER}/*.partial")):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert len(list(run.glob(f"{module.FOLDER}/*.partial"))) == 1
    memory = load_source(photos, image_size=16, cache="memory")
    assert torch.equal(load_source(photos, image_size=16, cache="disk", folder=run).train.images, memory.train.images)
    assert not list(run.glob(f"{module.FOLDER}/*.partial"))


def test_who_comes_while_images_are_decoded_waits_for_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_image, decoded = parts.read_image, []

    def slow(*arguments):
        time.sleep(0.002)
        decoded.append(arguments)
        return read_image(*arguments)

    monkeypatch.setattr(parts, "read_image", slow)
    load = partial(load_source, photos, image_size=16, cache="disk", folder=tmp_path / "run")
    with ThreadPoolExecutor(3) as pool:
        several = [future.result().train.images for future in [pool.submit(load) for _ in range(3)]]
    assert len(decoded) == 60
    assert all(torch.equal(images, several[0]) for images in several)
    assert several[0].float().std() > 10


def test_pixels_beside_paths_in_a_list_are_never_taken_from_an_earlier_cache(tmp_path: Path):
    Image.new("L", (8, 8), 50).save(tmp_path / "0.png")
    for level in (10, 200):
        x = [np.full((8, 8), level, np.uint8), str(tmp_path / "0.png")]
        source = load_source(x, [0, 1], cache="disk", folder=tmp_path / "run")
        assert source.train.images[:, 0, 0, 0].tolist() == [level, 50]
