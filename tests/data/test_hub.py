import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

from dha.data import Columns, load_images, load_source
from dha.errors import DhaError

NAMES = ["zebra", "yak", "ant"]


@pytest.fixture(autouse=True)
def _quiet_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for read_at_import in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(read_at_import, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def make(labels: list[int], first: int = 0, image: str = "image", label: str = "label") -> datasets.Dataset:
    pictures = [Image.new("RGB", (10, 8), (first + i, 0, 0)) for i in range(len(labels))]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({image: pictures, label: labels}, features=features)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_dataset_with_image_and_class_label():
    source = load_source(make([2, 0, 1, 0], image="photo", label="species"))
    assert source.classes == ("zebra", "yak", "ant")
    assert source.train.labels.tolist() == [2, 0, 1, 0]
    assert levels(source.train.images) == [0, 1, 2, 3]
    assert source.train.images.shape == (4, 3, 10, 10)
    assert source.name == "dataset"


def test_classes_without_images_are_left_out():
    source = load_source(make([2, 0, 0, 2]))
    assert source.classes == ("zebra", "ant")
    assert source.train.labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_splits(validation: str):
    parts = {"train": make([0, 1]), validation: make([1, 0], 10), "test": make([1], 20), "extra": make([2], 30)}
    source = load_source(datasets.DatasetDict(**parts))
    assert source.validation is not None
    assert source.test is not None
    assert levels(source.train.images) == [0, 1]
    assert levels(source.validation.images) == [10, 11]
    assert levels(source.test.images) == [20]


def test_a_single_split_is_the_train_part_and_others_must_be_named():
    assert len(load_source(datasets.DatasetDict({"all": make([0, 1])})).train) == 2
    with pytest.raises(DhaError, match=r"has the splits \['one', 'two'\] but no train; rename"):
        load_source(datasets.DatasetDict({"one": make([0, 1]), "two": make([0, 1])}))


def test_unlabelled_test_splits_count_as_absent():
    assert load_source(datasets.DatasetDict({"train": make([0, 1]), "test": make([-1, -1])})).test is None
    with pytest.raises(DhaError, match=r"dataset test: label\[1\] is -1 \(no label\); filter"):
        load_source(datasets.DatasetDict({"train": make([0, 1]), "test": make([0, -1])}))
    with pytest.raises(DhaError, match=r"dataset train has no labels"):
        load_source(make([-1, -1]))


def test_saved_to_disk(tmp_path: Path):
    make([2, 0, 1]).save_to_disk(tmp_path / "one")
    source = load_source(tmp_path / "one")
    assert (source.classes, levels(source.train.images)) == (("zebra", "yak", "ant"), [0, 1, 2])
    datasets.DatasetDict({"train": make([2, 0]), "test": make([0], 10)}).save_to_disk(tmp_path / "two")
    source = load_source(str(tmp_path / "two"))
    assert source.test is not None
    assert (len(source.train), levels(source.test.images)) == (2, [10])


def test_parquet_directory(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    make([2, 0, 1]).to_parquet(folder / "train.parquet")
    make([1], 10).to_parquet(folder / "test.parquet")
    source = load_source(folder)
    assert source.test is not None
    assert (source.classes, levels(source.train.images)) == (("zebra", "yak", "ant"), [0, 1, 2])
    assert levels(source.test.images) == [10]


def test_images_with_metadata(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    for level in range(3):
        Image.new("L", (8, 8), level).save(folder / f"{level}.png")
    rows = [{"file_name": f"{level}.png", "label": label} for level, label in enumerate("uvu")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = load_source(folder)
    assert source.classes == ("u", "v")
    assert dict(zip(levels(source.train.images), source.train.labels.tolist(), strict=True)) == {0: 0, 1: 1, 2: 0}


def test_arrays_and_plain_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3))
    dataset = datasets.Dataset.from_dict({"img": pixels.tolist(), "target": ["b", "a", "b"]})
    for source in (load_source(dataset), load_source(dataset.to_iterable_dataset())):
        assert source.classes == ("a", "b")
        assert np.array_equal(source.train.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_arrays_of_different_shapes_are_refused():
    small, large = np.zeros((1024, 4, 4)).tolist(), np.zeros((2, 8, 8)).tolist()
    dataset = datasets.Dataset.from_dict({"img": small + large, "target": [0, 1] * 513})
    with pytest.raises(DhaError, match="img holds arrays of different shapes"):
        load_source(dataset)


def test_fine_labels_win_over_coarse_ones():
    dataset = make([0, 1, 2], label="fine_label").add_column("other", [5, 5, 5])
    coarse = datasets.ClassLabel(names=["x", "y"])
    dataset = dataset.add_column("coarse_label", [0, 0, 1]).cast_column("coarse_label", coarse)
    assert load_source(dataset).classes == ("zebra", "yak", "ant")


def test_broken_images_are_named_or_skipped():
    cells: list[Any] = [{"bytes": b"no image", "path": None}, None]
    good = make([0, 1, 2]).cast_column("image", datasets.Image(decode=False))
    bad = datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}, features=good.features)
    dataset = datasets.concatenate_datasets([good, bad]).cast_column("image", datasets.Image())
    with pytest.raises(DhaError, match=r"dataset train\[3\] cannot be read as an image"):
        load_source(dataset)
    source = load_source(dataset, on_bad_image="skip")
    assert (source.skipped, levels(source.train.images)) == (2, [0, 1, 2])


def test_missing_columns_are_named():
    with pytest.raises(DhaError, match=r"no image column .*\['label', 'text'\]; rename it to 'image'"):
        load_source(datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
    with pytest.raises(DhaError, match=r"no label column .*\['image', 'kind'\]; rename it to 'label'"):
        load_source(make([0, 1]).rename_column("label", "kind").cast_column("kind", datasets.Value("int64")))
    with pytest.raises(DhaError, match="dataset train holds no images"):
        load_source(make([]))


def test_streams_are_read_twice():
    source = load_source(make([2, 0, 1]).to_iterable_dataset(num_shards=2))
    assert (source.classes, levels(source.train.images)) == (("zebra", "yak", "ant"), [0, 1, 2])
    assert source.train.labels.tolist() == [2, 0, 1]
    bare = datasets.IterableDataset.from_generator(lambda: iter([{"label": 1}]))
    with pytest.raises(DhaError, match="dataset train does not say which columns it has; pass features="):
        load_source(bare)


def test_a_stream_that_ends_early_is_noticed():
    counts = iter([3, 3, 2])

    def rows():
        yield from make([0, 1, 2]).select(range(next(counts)))

    stream = datasets.IterableDataset.from_generator(rows, features=make([0]).features)
    with pytest.raises(DhaError, match="has changed while it was read"):
        load_source(stream)


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10, 8), (level, level, level)).save(file, "jpeg", quality=100)
    return file.getvalue()


def shard(path: Path, rows: list[tuple[int, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for level, label in rows:
            for suffix, content in (("jpg", jpeg(level)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{path.stem}-{level:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("test", ["test-0.tar", "test/0.tar"])
def test_a_folder_of_webdataset_shards(tmp_path: Path, test: str):
    train = test.replace("test", "train")
    shard(tmp_path / "set" / train, [(10, 3), (20, 7)])
    shard(tmp_path / "set" / train.replace("0", "1"), [(30, 3)])
    shard(tmp_path / "set" / test, [(40, 7)])
    source = load_source(tmp_path / "set")
    assert source.test is not None
    assert (source.classes, source.train.shape) == ((3, 7), (3, 10, 10))
    assert (levels(source.train.images), source.train.labels.tolist()) == ([10, 20, 30], [0, 1, 0])
    assert (levels(source.test.images), source.test.labels.tolist()) == ([40], [1])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_one_file(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        shard(path, [(10, 0), (20, 2), (30, 0)])
    else:
        cells = [{"bytes": jpeg(level), "path": None} for level in (10, 20, 30)]
        datasets.Dataset.from_dict({"image": cells, "label": [0, 2, 0]}).to_parquet(path)
    source = load_source(str(path))
    assert (source.classes, levels(source.train.images)) == ((0, 2), [10, 20, 30])
    assert source.train.labels.tolist() == [0, 1, 0]


def test_damaged_files_are_named(tmp_path: Path):
    whole = shard(tmp_path / "a.tar", [(level, level % 2) for level in range(40)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    for place in (tmp_path / "a.tar", tmp_path):
        with pytest.raises(DhaError, match=r"a\.tar is cut off, .*; copy or write it again"):
            load_source(place)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DhaError, match=r"a\.parquet cannot be loaded"):
        load_source(tmp_path / "a.parquet")
    (tmp_path / "b.tar").write_bytes(bytes(10240))
    with pytest.raises(DhaError, match=r"b\.tar cannot be loaded"):
        load_source(tmp_path / "b.tar")


def test_tar_files_beside_class_folders_of_the_same_images_are_no_shards(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
        (tmp_path / name / "backup.tar").write_bytes(b"")
    assert load_source(tmp_path).classes == ("a", "b")


def test_unreachable_names_say_what_was_tried():
    with pytest.raises(
        DhaError,
        match=r"'nobody/nothing' is no file or folder here, and loading it .*Hub failed .*OfflineMode.*network",
    ):
        load_source("nobody/nothing")


def test_directories_that_cannot_be_loaded(tmp_path: Path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DhaError, match=r"cannot be loaded as a Hugging Face data set .*save_to_disk"):
        load_source(tmp_path)


@pytest.mark.parametrize("where", ["http://localhost:9/train.parquet", "/elsewhere/train.parquet", "pipe.parquet"])
def test_what_a_readme_in_a_data_folder_names_is_not_read(tmp_path: Path, where: str):
    folder = tmp_path / "set"
    folder.mkdir()
    make([2, 0, 1]).to_parquet(folder / "train.parquet")
    os.mkfifo(folder / "pipe.parquet")
    config = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {where}\n"
    (folder / "README.md").write_text(f"---\n{config}---\n")
    assert levels(load_source(folder).train.images) == [0, 1, 2]


def test_parts_of_data_files_follow_from_their_names(tmp_path: Path):
    for name, first in (("data/train-00000-of-00002", 0), ("data/train-00001-of-00002", 10), ("data/dev", 20)):
        (tmp_path / "data").mkdir(exist_ok=True)
        make([2, 0], first).to_parquet(tmp_path / f"{name}.parquet")
    source = load_source(tmp_path)
    assert source.validation is not None
    assert (levels(source.train.images), levels(source.validation.images)) == ([0, 1, 10, 11], [20, 21])
    make([1]).to_parquet(tmp_path / "more.parquet")
    with pytest.raises(DhaError, match=r"more\.parquet is named after no part, unlike .*; name it train"):
        load_source(tmp_path)
    shard(tmp_path / "a.tar", [(10, 0)])
    with pytest.raises(DhaError, match=r"holds \.parquet and \.tar files; pass a folder of one kind"):
        load_source(tmp_path)


def test_a_pipe_named_as_an_image_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    cells = [{"bytes": jpeg(10), "path": None}, {"bytes": None, "path": str(tmp_path / "pipe.png")}]
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DhaError, match=r"pipe\.png is refused: it is no regular file"):
        load_source(tmp_path / "a.parquet")


def test_a_saved_data_set_that_names_files_elsewhere_is_refused(tmp_path: Path):
    make([2, 0, 1]).save_to_disk(tmp_path / "one")
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../two.arrow"
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DhaError, match=r"state\.json names a file elsewhere, '\.\./two\.arrow'"):
        load_source(tmp_path / "one")


def test_columns_of_a_data_set_can_be_named():
    dataset = make([2, 0, 1]).rename_columns({"image": "one", "label": "kind"})
    dataset = dataset.add_column("label", [5, 6, 5])
    assert load_source(dataset, columns=Columns("one", "label")).classes == (5, 6)
    with pytest.raises(DhaError, match=r"no label column .*; rename it to 'label' .* or name it by --label-column"):
        load_source(dataset, columns=Columns(label="what"))


def test_data_files_are_read_where_the_home_directory_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make([2, 0, 1]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert len(load_source(tmp_path / "a.parquet").train) == 3


def test_the_hub_is_asked_once_where_it_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    for read_at_import in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(read_at_import, "HF_HUB_OFFLINE", False)

    def unreachable(self: object, name: str, timeout: float):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DhaError, match=r"'photoz' is no file or folder here, and .* failed .*Offline"):
        load_source("photoz")
    assert not datasets.config.HF_HUB_OFFLINE


def test_columns_of_images_and_labels_are_taken():
    dataset = make([0, 1, 0, 2])
    columns = load_source(dataset["image"], dataset["label"])
    whole = load_source(dataset)
    assert torch.equal(columns.train.images, whole.train.images)
    assert columns.train.labels.tolist() == [0, 1, 0, 2]
    assert torch.equal(load_images(dataset["image"], columns.image_format), whole.train.images)


@pytest.mark.parametrize("kind", ["string", "binary"])
@pytest.mark.parametrize("streamed", [True, False])
def test_columns_of_paths_and_of_files_are_images(tmp_path: Path, kind: str, streamed: bool):
    for level in (10, 20, 30):
        (tmp_path / f"{level}.jpg").write_bytes(jpeg(level))
    cells = [str(tmp_path / f"{level}.jpg") if kind == "string" else jpeg(level) for level in (10, 20, 30)]
    features = datasets.Features({"image": datasets.Value(kind), "label": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": cells, "label": ["a", "b", "a"]}, features=features)
    source = load_source(dataset.to_iterable_dataset() if streamed else dataset)
    assert (levels(source.train.images), source.train.labels.tolist()) == ([10, 20, 30], [0, 1, 0])


def test_lists_of_images_or_labels_are_refused():
    pictures = [[Image.new("L", (8, 8))]] * 2
    images = datasets.Features({"image": datasets.Sequence(datasets.Image()), "label": datasets.Value("int64")})
    with pytest.raises(DhaError, match="image holds lists of images; give every image a row and a label of its own"):
        load_source(datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=images))
    labels = make([0, 1]).remove_columns("label").add_column("label", [[0, 1], [1, 0]])
    with pytest.raises(DhaError, match=r"label have shape \(2, 2\); .* several classes at once are not"):
        load_source(labels)


def test_splits_of_a_data_set_are_told_by_their_usual_names_and_others_are_left_out():
    splits: Any = {name: make([0, 1, 0, 1]) for name in ("train", "testing", "extra")}
    source = load_source(datasets.DatasetDict(splits))
    assert source.test is not None
    assert source.report.left_out == {"dataset extra": "split of no usual name"}


def test_images_beside_data_files_are_left_out_and_hidden_data_files_are_none(tmp_path: Path):
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name / f"{number}.png")
    (folder / ".cache").mkdir()
    make([0, 1, 0, 1]).to_parquet(folder / ".cache" / "x.parquet")
    assert load_source(folder).classes == ("a", "b")
    make([0, 1, 0, 1]).to_parquet(folder / "x.parquet")
    reasons = load_source(folder).report.left_out
    assert list(reasons.values()) == ["not in the data files"] * 4
