"""Folders of class folders, alone or below train/, val/ and test/."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dha.data.labels import Labels
from dha.data.parts import ItemPart, Parts, spread
from dha.errors import DhaError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

_VALIDATION = ("val", "valid", "validation")


def open_folder(folder: Path) -> Parts:
    """List the images of a folder.

    Args:
        folder: holds one folder of images for each class, or `train/` and maybe `val/` (also `valid/`,
            `validation/`) and `test/` that do. Hidden files and folders are ignored.

    Raises:
        DhaError: if there are no class folders, or one holds no images or is a link to a folder that it lies in.
    """
    inner = {path.name.lower(): path for path in _folders(folder)}
    # A class may be called "train" too: then its images lie directly in it.
    if "train" in inner and _folders(inner["train"]) and not any(_listed(inner["train"], deep=False)):
        validation = [inner[name] for name in _VALIDATION if name in inner]
        if len(validation) > 1:
            raise DhaError(f"{folder} holds {' and '.join(path.name for path in validation)}; keep one of them")
        return Parts(
            str(folder),
            _part(inner["train"]),
            _part(validation[0]) if validation else None,
            _part(inner["test"]) if "test" in inner else None,
        )
    if inner and set(inner) <= {*_VALIDATION, "test"}:
        raise DhaError(f"{folder} holds {', '.join(sorted(inner))} but no train; add it, or pass the inner folder")
    return Parts(str(folder), _part(folder))


@dataclass(frozen=True)
class ClassFolders:
    """Paths of the images in class folders, which are listed one folder at a time: millions of names are many bytes.

    `counts` are the numbers of images in the `folders`.
    """

    folders: Sequence[Path]
    counts: Sequence[int]

    def chunks(self, size: int) -> Iterator[Sequence[str]]:
        """Yield the paths, sorted within each folder."""
        for folder in self.folders:
            paths = _images(folder)
            yield from (paths[first : first + size] for first in range(0, len(paths), size))

    def sample(self, count: int) -> Sequence[str]:
        """Return evenly spread paths."""
        ends = np.cumsum(self.counts)
        wanted = np.array(spread(int(ends[-1]), count))
        of_folder = np.searchsorted(ends, wanted, side="right")
        found = []
        for number in np.unique(of_folder).tolist():
            paths = _images(self.folders[number])
            first = int(ends[number]) - self.counts[number]
            found += [paths[i - first] for i in wanted[of_folder == number].tolist() if i - first < len(paths)]
        return found


def _part(folder: Path) -> ItemPart:
    classes = _folders(folder)
    if not classes:
        raise DhaError(f"{folder} holds no class folders; put the images of each class into a folder named after it")
    counts: list[int] = []
    for class_folder in classes:
        if class_folder.is_symlink() and folder.resolve().is_relative_to(class_folder.resolve()):
            raise DhaError(f"class folder {class_folder} is a link to a folder that it lies in; remove the link")
        counts.append(sum(1 for _ in _listed(class_folder)))
        if not counts[-1]:
            raise DhaError(
                f"class folder {class_folder} holds no images; add some ({' '.join(sorted(SUFFIXES))}) or remove it"
            )
    numbers = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    labels = Labels(np.array([path.name for path in classes]), numbers)
    return ItemPart(ClassFolders(classes, counts), labels, str(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[str]:
    return sorted(_listed(folder), key=lambda path: path.split(os.sep))


def _listed(folder: Path | str, deep: bool = True) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    yield from _listed(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and os.path.isfile(entry.path):
                yield entry.path
