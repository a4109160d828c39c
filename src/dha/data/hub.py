"""Hugging Face data sets: by name on the Hub, in local files, or given from Python.

Parquet files, WebDataset archives and images with metadata are streamed, once for their labels and once for their
images: nothing is copied to the cache of `datasets`, and a few rows at a time are in memory.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dha.data.array_pixels import images_array
from dha.data.labels import Labels, check_labels
from dha.data.parts import ArrayPart, ItemPart, Part, Parts, Sliced, spread
from dha.errors import DhaError

_IMAGE_NAMES = ("image", "img", "picture")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")
_SPLITS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SAVED = ("dataset_dict.json", "state.json")
_MARKS = (*_SAVED, "dataset_info.json", "*.parquet", "*/*.parquet", "*.tar", "train*/*.tar", "*.arrow")
_FILES = {".parquet": "parquet", ".tar": "webdataset"}
_CHUNK = 1024
_METADATA = ("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl")


def is_dataset_directory(folder: Path) -> bool:
    """Tell whether a folder is laid out as a Hugging Face data set rather than as plain class folders."""
    return any(next(folder.glob(pattern), None) for pattern in (*_MARKS, *_METADATA))


def is_dataset_file(file: Path) -> bool:
    """Tell whether a file is a data set by its name: .parquet, or .tar for WebDataset."""
    return file.suffix.lower() in _FILES


def open_dataset_path(path: Path) -> Parts:
    """Open a directory written by `save_to_disk`; or a file or a directory of Parquet or WebDataset, or a directory of
    images and metadata.

    Raises:
        DhaError: if `datasets` cannot load it, or it has no images or labels.
    """
    import datasets

    for archive in [path] if path.is_file() else sorted(path.glob("*.tar")) + sorted(path.glob("*/*.tar")):
        if archive.suffix == ".tar" and not _has_end(archive):
            raise DhaError(f"{archive} is cut off, it has no end mark of a tar archive; copy or write it again")
    try:
        if path.is_file():
            kind = _FILES[path.suffix.lower()]
            dataset = datasets.load_dataset(kind, data_files=str(path), streaming=True)
        elif any((path / mark).is_file() for mark in _SAVED):
            dataset = datasets.load_from_disk(str(path))
        else:
            dataset = datasets.load_dataset(str(path), streaming=True)
    except Exception as error:  # `datasets` raises errors of many libraries
        raise _unreadable(path, error) from error
    return open_dataset(dataset, str(path))


def _has_end(archive: Path) -> bool:
    # Looked at, because a shard that is cut off between two images reads as a shorter one.
    with archive.open("rb") as file:
        file.seek(-min(512, archive.stat().st_size), io.SEEK_END)
        return file.read() == bytes(512)


def _unreadable(place: Path | str, error: Exception) -> DhaError:
    return DhaError(
        f"{place} cannot be loaded as a Hugging Face data set ({type(error).__name__}: {error}); "
        "write it again with save_to_disk, to_parquet or webdataset"
    )


def open_hub(name: str) -> Parts:
    """Open a data set by its name on the Hugging Face Hub, downloading it if it is not in the cache.

    Raises:
        DhaError: if it cannot be loaded, or it has no images or labels.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(name)
    except Exception as error:
        raise DhaError(
            f"{name!r} is no file or folder here, and loading it from the Hugging Face Hub failed "
            f"({type(error).__name__}: {error}); check the path, or the name and the network; if the data set has "
            "several configurations, pass datasets.load_dataset(name, configuration) from Python"
        ) from error
    return open_dataset(dataset, name)


def open_dataset(dataset: Any, name: str = "dataset") -> Parts:
    """Open a `datasets.Dataset` or `IterableDataset`, or a dictionary of them by split.

    A validation or test split in which nothing is labelled (all labels -1) counts as absent.

    Raises:
        DhaError: if it is another object, has no train split, no images or no labels.
    """
    import datasets

    if isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        dataset = {"train": dataset}
    elif not isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DhaError(f"{name} is a {type(dataset).__name__}; pass a datasets.Dataset or DatasetDict")
    if "train" not in dataset and len(dataset) == 1:
        dataset = {"train": next(iter(dataset.values()))}
    if "train" not in dataset:
        raise DhaError(f"{name} has the splits {sorted(dataset)} but no train; rename one of them to train")
    rest: dict[str, Part | None] = {}
    for part, names in _SPLITS.items():
        split = next((dataset[key] for key in names if key in dataset), None)
        rest[part] = None if split is None else _part(split, f"{name} {part}")
    train, declared = _part(dataset["train"], f"{name} train"), _class_names(dataset["train"], name)
    if train is None:
        raise DhaError(f"{name} train has no labels (all are -1); pass a labelled data set")
    return Parts(name, train, declared=declared, **rest)


@dataclass(frozen=True)
class _Rows:
    """Encoded images of a column, read slice by slice."""

    dataset: Any
    column: str

    def __getitem__(self, rows: slice) -> list[Any]:
        return _encoded(self.dataset[rows][self.column])


@dataclass(frozen=True)
class _Stream:
    """Encoded images of a column, read one after the other."""

    dataset: Any
    column: str
    place: str

    def chunks(self, size: int) -> Iterator[Sequence[Any]]:
        """Yield all of them in order, at most `size` of them at a time."""
        return map(_encoded, _column(self.dataset, self.column, self.place, size))

    def sample(self, count: int) -> Sequence[Any]:
        """Return the first ones of files from all over."""
        files = spread(self.dataset.num_shards, count)
        each = -(-count // len(files))
        found: list[Any] = []
        for file in files:
            first = self.dataset.shard(self.dataset.num_shards, file).take(each)
            found += [item for chunk in _Stream(first, self.column, self.place).chunks(each) for item in chunk]
        return found


def _column(dataset: Any, column: str, place: str, size: int) -> Iterator[Any]:
    rows = dataset.select_columns(column).iter(batch_size=size)
    while True:
        try:
            batch = next(rows, None)
        except Exception as error:  # `datasets` raises errors of many libraries
            raise _unreadable(place, error) from error
        if batch is None:
            return
        yield batch[column]


def _encoded(cells: Sequence[Any]) -> list[Any]:
    return [io.BytesIO(c["bytes"]) if c and c["bytes"] else Path(c["path"]) if c else None for c in cells]


def _part(dataset: Any, place: str) -> Part | None:
    import datasets

    if dataset.features is None:
        raise DhaError(f"{place} does not say which columns it has; pass features= when you make it")
    dataset = dataset.with_format(None)
    labels = _labels(dataset, place)
    if labels is None:
        return None
    column = _image_column(dataset.features, place)
    if _is_encoded(dataset.features[column]):
        encoded = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))
        if isinstance(dataset, datasets.IterableDataset):
            return ItemPart(_Stream(encoded, column, place), labels, place)
        return ItemPart(Sliced(_Rows(encoded, column), len(dataset)), labels, place)
    chunks = _column(dataset.with_format("numpy"), column, place, _CHUNK)
    arrays = [np.asarray(chunk) for chunk in chunks]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise DhaError(f"{place}: {column} holds arrays of different shapes; bring them to one, or store image files")
    name = f"{place}: {column}"
    return ArrayPart({name: images_array(np.concatenate(arrays), name)}, labels, place)


def _labels(dataset: Any, place: str) -> Labels | None:
    import datasets

    column = _label_column(dataset.features, place)
    feature = dataset.features[column]
    labels = Labels.of(_checked(_column(dataset, column, place, _CHUNK), f"{place}: {column}"))
    if not len(labels):
        raise DhaError(f"{place} holds no images; pass a data set with at least one")
    if not isinstance(feature, datasets.ClassLabel):
        return labels
    if (labels.values < 0).all():
        return None
    for wrong, said in (
        (labels.values < 0, "-1 (no label); filter such rows out"),
        (
            labels.values >= len(feature.names),
            f"{labels.values[-1]}, but there are {len(feature.names)} classes; "
            "correct the label or filter such rows out",
        ),
    ):
        if wrong.any():
            first = np.flatnonzero(wrong[labels.numbers])[0]
            raise DhaError(f"{place}: {column}[{first}] is {said}")
    names, order = np.unique(np.array(feature.names)[labels.values], return_inverse=True)
    return Labels(names, order.astype(np.int32)[labels.numbers])


def _checked(chunks: Iterable[Any], place: str) -> Iterator[np.ndarray]:
    first = 0
    for chunk in chunks:
        yield check_labels(chunk, len(chunk), place, first)
        first += len(chunk)


def _class_names(dataset: Any, name: str) -> tuple[str, ...] | None:
    names = getattr(dataset.features[_label_column(dataset.features, name)], "names", None)
    return None if names is None else tuple(names)


def _is_encoded(feature: Any) -> bool:
    import datasets

    # Parquet that other tools wrote holds images as plain structs.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _image_column(features: Any, place: str) -> str:
    return _choose(features, _is_encoded, _IMAGE_NAMES, f"{place} has no image column")


def _label_column(features: Any, place: str) -> str:
    import datasets

    return _choose(features, lambda f: isinstance(f, datasets.ClassLabel), _LABEL_NAMES, f"{place} has no label column")


def _choose(features: Any, wanted: Callable[[Any], bool], names: tuple[str, ...], problem: str) -> str:
    typed = [column for column in features if wanted(features[column])]
    if len(typed) == 1:
        return typed[0]
    for column in names:
        if column in (typed or features):
            return column
    raise DhaError(
        f"{problem} that can be told from its columns {sorted(features)}; rename it to {names[0]!r} (rename_column)"
    )
