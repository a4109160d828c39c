"""Hugging Face data sets: by name on the Hub, in a local directory, or given from Python."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dha.data.arrays import pixels_from_array
from dha.data.labels import check_labels
from dha.data.parts import ArrayPart, ItemPart, Part, Parts
from dha.errors import DhaError

_IMAGE_NAMES = ("image", "img", "picture")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
_SPLITS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json", "*.parquet", "*/*.parquet", "*.arrow")
_METADATA = ("metadata.csv", "metadata.jsonl", "*/metadata.csv", "*/metadata.jsonl")


def is_dataset_directory(folder: Path) -> bool:
    """Tell whether a folder is laid out as a Hugging Face data set rather than as plain class folders."""
    return any(next(folder.glob(pattern), None) for pattern in (*_MARKS, *_METADATA))


def open_dataset_directory(folder: Path) -> Parts:
    """Open a directory written by `save_to_disk`, or with parquet files or images and metadata.

    Raises:
        DhaError: if `datasets` cannot load it, or it has no images or labels.
    """
    import datasets

    saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        dataset = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # `datasets` raises errors of many libraries
        raise DhaError(
            f"{folder} cannot be loaded as a Hugging Face data set ({type(error).__name__}: {error}); "
            "write it again with save_to_disk or to_parquet"
        ) from error
    return open_dataset(dataset, str(folder))


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
    """Open a `datasets.Dataset` or `datasets.DatasetDict`.

    A validation or test split in which nothing is labelled (all labels -1) counts as absent.

    Raises:
        DhaError: if it is another object, has no train split, no images or no labels.
    """
    import datasets

    if isinstance(dataset, datasets.Dataset):
        dataset = {"train": dataset}
    elif not isinstance(dataset, datasets.DatasetDict):
        raise DhaError(f"{name} is a {type(dataset).__name__}; pass a datasets.Dataset or DatasetDict (not streaming)")
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
class _Items:
    """Encoded images of a column, read slice by slice."""

    dataset: Any
    column: str

    def __getitem__(self, rows: slice) -> list[Any]:
        cells = self.dataset[rows][self.column]
        return [io.BytesIO(c["bytes"]) if c and c["bytes"] else Path(c["path"]) if c else None for c in cells]


def _part(dataset: Any, place: str) -> Part | None:
    import datasets

    if len(dataset) == 0:
        raise DhaError(f"{place} holds no images; pass a data set with at least one")
    labels = _labels(dataset, place)
    if labels is None:
        return None
    column = _image_column(dataset.features, place)
    if _is_encoded(dataset.features[column]):
        encoded = dataset.with_format(None).select_columns(column).cast_column(column, datasets.Image(decode=False))
        return ItemPart(_Items(encoded, column), labels, place)
    images = np.asarray(dataset.with_format("numpy").select_columns(column)[:][column])
    return ArrayPart(pixels_from_array(images, f"{place}: {column}"), labels, place)


def _labels(dataset: Any, place: str) -> np.ndarray | None:
    import datasets

    column = _label_column(dataset.features, place)
    feature = dataset.features[column]
    values = dataset.with_format(None).select_columns(column)[:][column]
    if not isinstance(feature, datasets.ClassLabel):
        return check_labels(values, len(dataset), f"{place}: {column}")
    numbers = check_labels(values, len(dataset), f"{place}: {column}")
    unlabelled = np.flatnonzero(numbers < 0)
    if len(unlabelled) == len(numbers):
        return None
    if len(unlabelled):
        raise DhaError(f"{place}: {column}[{unlabelled[0]}] is -1 (no label); filter such rows out")
    unknown = np.flatnonzero(numbers >= len(feature.names))
    if len(unknown):
        raise DhaError(
            f"{place}: {column}[{unknown[0]}] is {numbers[unknown[0]]}, but there are {len(feature.names)} classes; "
            "correct the label or filter such rows out"
        )
    return np.array(feature.names)[numbers]


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
