"""Labelled images from any kind of source, checked before any long work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dha.config import BACKGROUND, RESIZE, Background, Resize
from dha.data.archives import open_archive, open_archives
from dha.data.arrays import open_arrays
from dha.data.cache import Cache, Where
from dha.data.digits import open_digits
from dha.data.files import files, has_image_suffix
from dha.data.folders import open_folder
from dha.data.hub import dataset_files, is_dataset_file, is_saved, open_dataset, open_dataset_path, open_hub
from dha.data.image_format import BETWEEN, ImageFormat, read_alike
from dha.data.images import LabelledImages
from dha.data.labels import Classes, encode, find_classes
from dha.data.parts import ItemPart, OnBadImage, Part, Parts, Sliced
from dha.data.preprocessing import SMALLEST_SIZE
from dha.data.report import DataReport, Facts
from dha.data.table_files import SUFFIXES, Columns, is_table, read_frame, read_table
from dha.data.tables import open_paths, open_table, open_table_folder
from dha.errors import DhaError
from dha.paths import HUB, check_source, expanded

LARGEST_DEFAULT_SIZE = 64

_KINDS = (
    "a path (folder of class folders, .csv, .tsv, .jsonl or .parquet table of paths and labels, .npz file, folder of "
    'train*.npz, .parquet or .tar file or a folder of them, saved data set), "digits", a name on the Hugging Face Hub, '
    "an array or tensor with labels, a list of Pillow images or of paths with labels, a pandas DataFrame, a "
    "datasets.Dataset or DatasetDict"
)


@dataclass(frozen=True)
class Source:
    """Labelled images in memory or on disk, all of one format.

    `classes[k]` is the class with number k; `skipped` counts images left out because they could not be read; `report`
    says what was read; `names` gives, for a part, what errors call the images of these rows of its store.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages | None
    classes: Classes
    image_format: ImageFormat
    skipped: int = 0
    report: DataReport = field(default_factory=DataReport)
    names: Mapping[str, Callable[[Sequence[int]], list[str]]] = field(default_factory=dict)


def load_source(
    source: Any,
    labels: Any = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    resize: Resize = RESIZE,
    background: Background = BACKGROUND,
    integer_white: int | None = None,
    float_white: int | None = None,
    classes: Sequence[str] | Sequence[int] | None = None,
    on_bad_image: OnBadImage = "error",
    cache: Where = "auto",
    folder: Path | None = None,
    columns: Columns = Columns(),  # noqa: B008
) -> Source:
    """Read labelled images into memory, or into a file where they would take too much of it.

    Args:
        source: a path, "digits", a name on the Hugging Face Hub, images as array, tensor, list of Pillow images or list
            of paths, a pandas DataFrame of paths and labels, or a `datasets.Dataset` or `DatasetDict`. "digits" is the
            built-in data set; a folder of that name is ./digits.
        labels: (N,), whole numbers, strings or booleans; for arrays and lists only.
        image_size: side of the images in pixels, at least 4; None for the median size of the training images, which
            is their shorter side where `resize` is "crop", else their longer side, at most 64.
        channels: 1 (grey) or 3 (RGB); None for 1 if the training images are grey, else 3.
        resize: as `ImageFormat` has it, as the next three.
        background: what shows through transparent pixels.
        integer_white: pixel value that is white in images of integers of more than 8 bits.
        float_white: pixel value that is white in images of floats.
        classes: number labels by this order, as a saved model does; None for the classes of the training images.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.
        cache: where decoded images are kept, as `Cache` has it; arrays stay in memory.
        folder: of the run, where a file of decoded images is kept, and which is no part of the data; None for a
            temporary file.
        columns: of paths, labels and parts in a table; images and labels in a `datasets.Dataset`.

    Returns:
        The parts that the source has; without a train part of its own, all images are the train part.

    Raises:
        DhaError: if the source is missing, empty or of no known kind, labels do not match images, there are fewer than
            two classes, a class is unknown, an image cannot be read, or there is no room for them on the disk.
    """
    if image_size is not None:
        _check_size(image_size, "image_size")
    if channels not in (None, 1, 3):
        raise DhaError(f"channels is {channels}; pass 1 (grey) or 3 (RGB)")
    if on_bad_image not in ("error", "skip"):
        raise DhaError(f"on_bad_image is {on_bad_image!r}; pass 'error' or 'skip'")
    parts = _open(source, labels, folder, columns, on_bad_image)
    known = find_classes(parts.train.labels, parts.declared) if classes is None else cast(Classes, tuple(classes))
    if len(known) < 2:
        raise DhaError(f"{parts.train.place} has {len(known)} class {known}; at least 2 are needed to tell apart")
    # All labels are checked before the first image is decoded.
    numbers = {
        name: encode(part.labels, known, part.place, parts.train.place if classes is None else "the model")
        for name, part in _present(parts)
    }
    if image_size is None or channels is None:
        own_channels, own_size = parts.train.geometry(resize, on_bad_image)
        channels = channels or own_channels
        image_size = image_size or _check_size(min(LARGEST_DEFAULT_SIZE, own_size), f"images in {parts.train.place}")
    image_format = ImageFormat(image_size, channels, resize, background, integer_white, float_white)
    loaded: dict[str, LabelledImages] = {}
    kept_in = Cache(cache, folder, _listed_files(parts) or _path(source))
    readers = {name: partial(part.read, on_bad_image=on_bad_image, cache=kept_in) for name, part in _present(parts)}
    read, image_format = read_alike(readers, image_format)
    if image_format.float_white == BETWEEN:
        raise DhaError(
            f"{parts.name}: the largest float pixel is between 1 and 2, which fits neither [0, 1] nor 0..255; scale "
            "all images to [0, 1]"
        )
    facts = sum((some.facts for some in read.values()), Facts())
    for name, part in _present(parts):
        images, good = read[name][:2]
        loaded[name] = LabelledImages(images, numbers[name])
        if good is not None:
            loaded[name] = loaded[name].select(good)
            _check_readable(numbers[name], loaded[name], known, part.place)
    if classes is None and 2 * facts.noted["blank"] > sum(facts.sizes.values()):
        other = "black" if background == "white" else "white"
        raise DhaError(
            f"{parts.name}: {facts.noted['blank']} of {sum(facts.sizes.values())} images are transparent and have "
            f"nothing to see on a {background} background; pass --background {other}"
        )
    report = DataReport(
        parts.name,
        parts.layout,
        known,
        image_format=image_format,
        facts=facts,
        left_out=parts.left_out | facts.unreadable,
        columns=columns,
    ).with_parts({name: images.labels for name, images in loaded.items()})
    return Source(
        parts.name,
        loaded["train"],
        loaded.get("validation"),
        loaded.get("test"),
        known,
        image_format,
        sum(len(numbers[name]) - len(images) for name, images in loaded.items()),
        report,
        {name: part.names for name, part in _present(parts) if isinstance(part, ItemPart)},
    )


def _open(source: Any, labels: Any, own: Path | None, columns: Columns, on_bad_image: OnBadImage) -> Parts:
    paths = _paths(source)
    if paths:
        return open_paths(paths, labels, on_bad_image)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return open_arrays(source, labels)
    if labels is not None and not isinstance(source, str | Path):
        return open_arrays(source, labels)
    if labels is not None:
        raise DhaError(f"labels were given along with a {type(source).__name__}; give them only with arrays or lists")
    if isinstance(source, str | Path):
        return _open_named(source, own, columns, on_bad_image)
    if type(source).__module__.split(".")[0] == "datasets":
        return open_dataset(source, columns=columns)
    if type(source).__name__ == "DataFrame" and hasattr(source, "columns"):
        table = read_frame(source, columns)
        if isinstance(table.paths[0], str | Path | int | float):
            return open_table(table, on_bad_image)
        if table.splits is None:
            return open_arrays(list(table.paths), list(table.labels))
        raise DhaError(
            "the DataFrame holds images and a column of parts; pass paths of images, or leave that column out"
        )
    raise DhaError(f"the source is a {type(source).__name__}; pass {_KINDS}")


def _paths(source: Any) -> list[str | Path] | None:
    """Return the paths in a list, array or pandas Series that holds nothing else."""
    if type(source).__name__ == "Series" or (isinstance(source, np.ndarray) and source.dtype.kind in "UO"):
        source = source.tolist()
    if isinstance(source, list | tuple) and all(isinstance(item, str | Path) for item in source):
        return list(source)
    return None


def _open_named(source: str | Path, own: Path | None, columns: Columns, on_bad_image: OnBadImage) -> Parts:
    if source == "digits":
        return open_digits()
    check_source(source)
    path = expanded(source, "source")
    if path.is_dir():
        if next(path.glob("train*.npz"), None):
            return _with_images_left_out(open_archives(path), path)
        if is_saved(path) or any(not is_table(file, columns) for file in dataset_files(path)):
            return _with_images_left_out(open_dataset_path(path, columns), path)
        return open_table_folder(path, columns, on_bad_image, own) or open_folder(path, own)
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return open_archive(path)
        if is_dataset_file(path) and not is_table(path, columns):
            return open_dataset_path(path, columns)
        if path.suffix.lower() in SUFFIXES:
            return open_table(read_table(path, columns), on_bad_image)
        raise DhaError(
            f"{path} is a file, but not an .npz archive, .parquet, .tar or a table (.csv, .tsv, .jsonl); pass {_KINDS}"
        )
    return open_hub(str(source).removeprefix(HUB), columns)


def _with_images_left_out(parts: Parts, folder: Path) -> Parts:
    """Note the image files beside files of data, which are not read."""
    for path in files(folder, {}):
        if has_image_suffix(path):
            parts.left_out[path] = "not in the data files"
    return parts


def _listed_files(parts: Parts) -> list[str]:
    """Return the paths of all images where these are given one by one."""
    found: list[str] = []
    for _, part in _present(parts):
        if isinstance(part, ItemPart) and isinstance(part.items, Sliced) and isinstance(part.items.items, list):
            if not all(isinstance(item, str) for item in part.items.items):
                return []  # Pixels beside the files have no identity that a cache could be told by.
            found += part.items.items
    return found


def _path(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or source == "digits":
        return None
    path = expanded(source, "source")
    return path if path.exists() else None


def _present(parts: Parts) -> list[tuple[str, Part]]:
    named = (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
    return [(name, part) for name, part in named if part is not None]


def _check_size(size: int, what: str) -> int:
    if size < SMALLEST_SIZE:
        raise DhaError(f"{what}: {size} pixels; pass an image_size of at least {SMALLEST_SIZE}")
    return size


def _check_readable(numbers: torch.Tensor, read: LabelledImages, classes: Classes, place: str) -> None:
    counts, left = (torch.bincount(labels, minlength=len(classes)) for labels in (numbers, read.labels))
    lost = ((counts > 0) & (left == 0)).nonzero()
    if len(lost):
        raise DhaError(
            f"{place}: no image of class {classes[int(lost[0])]!r} could be read; replace them or remove the class"
        )
