"""Hugging Face data sets: by name on the Hub, in local files, or given from Python.

Parquet files and WebDataset archives are streamed, once for their labels and once for their images: nothing is copied
to the cache of `datasets`, and a few rows at a time are in memory. Of a local folder only data files are read: what a
README.md in it names is neither read nor fetched.
"""

import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dha.data.array_pixels import images_array
from dha.data.files import files
from dha.data.labels import Labels, check_labels
from dha.data.layouts import role_of
from dha.data.parts import ArrayPart, ItemPart, Part, Parts, Sliced, spread
from dha.data.table_files import Columns
from dha.errors import DhaError

_COLUMNS = Columns()
_IMAGE_NAMES = ("image", "img", "picture", "path", "file_name", "filename", "file", "image_path", "bytes", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")
_SAVED = ("dataset_dict.json", "state.json")
_KINDS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
_CHUNK = 1024
_LARGEST_STATE = 2**20


def is_dataset_file(file: Path) -> bool:
    """Tell whether a file is a data set by its name: .parquet, or .tar for WebDataset."""
    return file.suffix.lower() in (".parquet", ".tar")


def is_saved(folder: Path) -> bool:
    """Tell whether a directory was written by `save_to_disk`."""
    return any((folder / mark).exists() for mark in _SAVED)


def dataset_files(folder: Path) -> list[Path]:
    """Return the files of Parquet, Arrow and WebDataset in a folder: Parquet up to two folders deep, archives also in
    folders of parts, where others may hold copies of images.
    """
    patterns = "*.parquet", "*/*.parquet", "*/*/*.parquet", "*.arrow", "*.tar", "*/*.tar"
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    found = [path for path in found if not any(name.startswith(".") for name in path.relative_to(folder).parts)]
    return sorted(path for path in found if path.suffix != ".tar" or path.parent == folder or role_of(path.parent.name))


def open_dataset_path(path: Path, columns: Columns = _COLUMNS) -> Parts:
    """Open a directory written by `save_to_disk`; or a file or a directory of Parquet or WebDataset.

    Raises:
        DhaError: if `datasets` cannot load it, or it has no images or labels.
    """
    import datasets

    try:
        if path.is_dir() and is_saved(path):
            _check_saved(path)
            dataset = datasets.load_from_disk(str(path))
        else:
            kind, parts = _data_files(path)
            # Their cache would lie in the home directory, which may not be writable; nothing is kept in it.
            with tempfile.TemporaryDirectory(prefix="dha-") as cache:
                dataset = datasets.load_dataset(kind, data_files=parts, streaming=True, cache_dir=cache)
    except DhaError:
        raise
    except Exception as error:  # `datasets` raises errors of many libraries
        raise _unreadable(path, error) from error
    return open_dataset(dataset, str(path), columns)


def _data_files(path: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the kind of the files, and the files of each part."""
    found = [path] if path.is_file() else dataset_files(path)
    kinds = {file.suffix.lower() for file in found}
    if len(kinds) != 1:
        raise DhaError(f"{path} holds {' and '.join(sorted(kinds))} files; pass a folder of one kind")
    kind = _KINDS[kinds.pop()]
    parts: dict[str, list[str]] = {}
    for file in found:
        if kind == "webdataset" and not _has_end(file):
            raise DhaError(f"{file} is cut off, it has no end mark of a tar archive; copy or write it again")
        names = [] if path.is_file() else file.relative_to(path).with_suffix("").parts
        roles = {role_of(word) for name in names for word in re.split(r"[\W_\d]+", name)} - {None}
        if len(roles) > 1:
            raise DhaError(f"{file} is named after two parts, {' and '.join(sorted(map(str, roles)))}; rename it")
        parts.setdefault(str(*roles) if roles else "rest", []).append(str(file))
    if "rest" in parts and len(parts) > 1:
        raise DhaError(
            f"{parts['rest'][0]} is named after no part, unlike {next(iter(parts.values()))[0]}; name it "
            "train, validation or test, or move it away"
        )
    return kind, parts


def _check_saved(folder: Path) -> None:
    """Refuse what `save_to_disk` does not write: special files, which may never end, and files elsewhere."""
    left_out: dict[str, str] = {}
    for file in files(folder, left_out):
        if os.path.basename(file) == "state.json":
            if os.path.getsize(file) > _LARGEST_STATE:
                raise DhaError(f"{file} has {os.path.getsize(file)} bytes; save the data set again")
            state = json.loads(Path(file).read_text(encoding="utf-8"))
            for entry in state.get("_data_files", []):
                if entry["filename"] != os.path.basename(entry["filename"]):
                    raise DhaError(f"{file} names a file elsewhere, {entry['filename']!r:.80}; save it again")
    special = [path for path, reason in left_out.items() if reason == "special file"]
    if special:
        raise DhaError(f"{special[0]} is no regular file; remove it")


def _has_end(archive: Path) -> bool:
    # Looked at, because a shard that is cut off between two images reads as a shorter one.
    with archive.open("rb") as file:
        file.seek(-min(512, archive.stat().st_size), io.SEEK_END)
        return file.read() == bytes(512)


def _unreadable(place: Path | str, error: Exception) -> DhaError:
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        name = getattr(error, "filename", None) or place
        return DhaError(
            f"{place} cannot be loaded: {name} cannot be read or written ({getattr(error, 'strerror', error)}); "
            "make it readable, or set HF_HOME to a folder that can be written to"
        )
    said = " ".join(str(error).split())
    return DhaError(
        f"{place} cannot be loaded as a Hugging Face data set ({type(error).__name__}: {said:.300}); "
        "write it again with save_to_disk, to_parquet or webdataset"
    )


def open_hub(name: str, columns: Columns = _COLUMNS) -> Parts:
    """Open a data set by its name on the Hugging Face Hub, downloading it if it is not in the cache.

    Raises:
        DhaError: if it cannot be loaded, or it has no images or labels.
    """
    import datasets

    missing = f"{name!r} is no file or folder here, and "
    try:
        with _quickly(name):
            dataset = datasets.load_dataset(name)
    except Exception as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise DhaError(
                f"{missing}the cache for data sets of the Hugging Face Hub cannot be written to ({error}); set HF_HOME "
                "to a folder that can be written to"
            ) from error
        said = " ".join(str(error).split())
        raise DhaError(
            f"{missing}loading it from the Hugging Face Hub failed "
            f"({type(error).__name__}: {said:.300}); check the path, or the name and the network; if the data set has "
            "several configurations, pass datasets.load_dataset(name, configuration) from Python"
        ) from error
    return open_dataset(dataset, name, columns)


@contextmanager
def _quickly(name: str) -> Iterator[None]:
    """Use the cache alone where the Hub does not answer one request: `datasets` would ask for half a minute."""
    import datasets.config
    import huggingface_hub
    import huggingface_hub.constants

    modules: tuple[Any, ...] = datasets.config, huggingface_hub.constants
    before = [module.HF_HUB_OFFLINE for module in modules]
    if not any(before):
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
        except Exception as error:  # of whatever library is used for requests
            offline = getattr(error, "response", None) is None
        else:
            offline = False
        for module in modules:
            module.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def open_dataset(dataset: Any, name: str = "dataset", columns: Columns = _COLUMNS) -> Parts:
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
    dataset, left_out = _by_role(dataset, name)
    rest = {
        part: _part(dataset[part], f"{name} {part}", columns) if part in dataset else None
        for part in ("validation", "test")
    }
    train, declared = _part(dataset["train"], f"{name} train", columns), _class_names(dataset["train"], name, columns)
    if train is None:
        raise DhaError(f"{name} train has no labels (all are -1); pass a labelled data set")
    features = dataset["train"].features
    image, label = _image_column(features, name, columns), _label_column(features, name, columns)
    layout = f"Hugging Face data set (images in column {image!r}, labels in {label!r})"
    return Parts(name, train, rest["validation"], rest["test"], declared, layout, left_out)


def _by_role(dataset: Any, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the splits of a dictionary of them under the names train, validation and test, and others as left out."""
    if "train" not in dataset and len(dataset) == 1:
        return {"train": next(iter(dataset.values()))}, {}
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    # A split of the very name goes before others, which may be larger or smaller ones of the same images.
    for key in sorted(dataset, key=lambda key: key not in ("train", "validation", "test")):
        role = role_of(key)
        if role is None or role in found:
            left_out[f"{name} {key}"] = "split of no usual name" if role is None else f"there is another {role} split"
        else:
            found[role] = dataset[key]
    if "train" not in found:
        raise DhaError(f"{name} has the splits {sorted(dataset)} but no train; rename one of them to train")
    return found, left_out


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


def _part(dataset: Any, place: str, columns: Columns) -> Part | None:
    import datasets

    if dataset.features is None:
        raise DhaError(f"{place} does not say which columns it has; pass features= when you make it")
    dataset = dataset.with_format(None)
    labels = _labels(dataset, place, columns)
    if labels is None:
        return None
    column = _image_column(dataset.features, place, columns)
    feature = dataset.features[column]
    if _is_list_of_images(feature):
        raise DhaError(f"{place}: {column} holds lists of images; give every image a row and a label of its own")
    # Strings are paths, and bytes are files.
    if _is_encoded(feature) or getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary"):
        encoded = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))
        if isinstance(dataset, datasets.IterableDataset):
            return ItemPart(_Stream(encoded, column, place), labels, place)
        return ItemPart(Sliced(_Rows(encoded, column), len(dataset)), labels, place)
    chunks = _column(dataset.with_format("numpy"), column, place, _CHUNK)
    arrays = [np.asarray(chunk) for chunk in chunks]
    if len({array.shape[1:] for array in arrays}) > 1 or any(array.dtype == object for array in arrays):
        raise DhaError(f"{place}: {column} holds arrays of different shapes; bring them to one, or store image files")
    name = f"{place}: {column}"
    return ArrayPart({name: images_array(np.concatenate(arrays), name)}, labels, place)


def _labels(dataset: Any, place: str, columns: Columns) -> Labels | None:
    import datasets

    column = _label_column(dataset.features, place, columns)
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


def _class_names(dataset: Any, name: str, columns: Columns) -> tuple[str, ...] | None:
    names = getattr(dataset.features[_label_column(dataset.features, name, columns)], "names", None)
    return None if names is None else tuple(names)


def _is_encoded(feature: Any) -> bool:
    import datasets

    # Parquet that other tools wrote holds images as plain structs.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_list_of_images(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return inner is not None and (_is_encoded(inner) or _is_list_of_images(inner))


def _image_column(features: Any, place: str, columns: Columns) -> str:
    return _choose(features, _is_encoded, columns.path, _IMAGE_NAMES, f"{place} has no image column", "path")


def _label_column(features: Any, place: str, columns: Columns) -> str:
    import datasets

    def is_class(feature: Any) -> bool:
        return isinstance(feature, datasets.ClassLabel)

    return _choose(features, is_class, columns.label, _LABEL_NAMES, f"{place} has no label column", "label")


def _choose(
    features: Any, wanted: Callable[[Any], bool], given: str | None, names: tuple[str, ...], problem: str, option: str
) -> str:
    typed = [column for column in features if wanted(features[column])]
    if given is not None and given in features:
        return given
    if given is None and len(typed) == 1:
        return typed[0]
    for column in names if given is None else ():
        if column in (typed or features):
            return column
    raise DhaError(
        f"{problem} that can be told from its columns {sorted(features)}; rename it to {names[0]!r} (rename_column), "
        f"or name it by --{option}-column ({option}_column in Python)"
    )
