"""Folders of class folders, alone or in folders for train, validation and test."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dha.data.files import LeftOut, has_image_suffix, image_files, is_run, kind_of, listed
from dha.data.labels import Labels
from dha.data.layouts import split_folders
from dha.data.parts import ItemPart, Parts, spread
from dha.errors import DhaError


def open_folder(folder: Path, own: Path | None = None) -> Parts:
    """List the images of a folder.

    Args:
        folder: holds one folder of images for each class; or folders for train and maybe validation and test that do,
            by their usual names in any case (`train`, `Training`, `val`, `dev`, `test_set`). Hidden files, and folders
            of runs, are left out.
        own: the folder of this run, which may lie in the data.

    Raises:
        DhaError: if there are no class folders; if one holds no images, is a link to a folder that it lies in or cannot
            be listed; or if the folders may be parts and may be classes.
    """
    left_out: LeftOut = {}
    inner = subfolders(folder, left_out, own)
    parts = split_folders(folder, inner)
    if parts is None:
        return Parts(str(folder), _part(folder, inner, left_out), layout="one folder for each class", left_out=left_out)
    for path in inner:
        if path not in parts.values():
            left_out[str(path)] = "no images in it"
    opened: dict[str, ItemPart] = {
        role: _part(path, subfolders(path, left_out), left_out) for role, path in parts.items()
    }
    said = ", ".join(f"{role} {path.name}/" for role, path in parts.items())
    layout = f"folders of class folders: {said}"
    return Parts(
        str(folder), opened["train"], opened.get("validation"), opened.get("test"), layout=layout, left_out=left_out
    )


def subfolders(folder: Path, left_out: LeftOut, own: Path | None = None) -> list[Path]:
    """Return the folders in a folder, sorted, less those of runs; what else lies in it is left out."""
    found = []
    for entry in listed(folder, left_out):
        kind = kind_of(entry)
        if kind == "folder":
            if is_run(Path(entry.path), own):
                left_out[entry.path] = "folder of a run"
            else:
                found.append(Path(entry.path))
        elif kind == "file":
            left_out[entry.path] = "in no class folder" if has_image_suffix(entry.name) else "not an image"
        else:
            left_out[entry.path] = kind
    return sorted(found)


@dataclass(frozen=True)
class ClassFolders:
    """Paths of the images in class folders, which are listed one folder at a time: millions of names are many bytes.

    `counts` are the numbers of images in the `folders`, less the files that are left out.
    """

    folders: Sequence[Path]
    counts: Sequence[int]
    left_out: LeftOut = field(default_factory=dict)

    def chunks(self, size: int) -> Iterator[Sequence[str]]:
        """Yield the paths, sorted within each folder."""
        for folder in self.folders:
            paths = self._images(folder)
            yield from (paths[first : first + size] for first in range(0, len(paths), size))

    def sample(self, count: int) -> Sequence[str]:
        """Return evenly spread paths."""
        ends = np.cumsum(self.counts)
        wanted = np.array(spread(int(ends[-1]), count))
        of_folder = np.searchsorted(ends, wanted, side="right")
        found = []
        for number in np.unique(of_folder).tolist():
            paths = self._images(self.folders[number])
            first = int(ends[number]) - self.counts[number]
            found += [paths[i - first] for i in wanted[of_folder == number].tolist() if i - first < len(paths)]
        return found

    def _images(self, folder: Path) -> list[str]:
        return sorted(image_files(folder, self.left_out, known=True), key=lambda path: path.split(os.sep))


def _part(folder: Path, classes: Sequence[Path], left_out: LeftOut) -> ItemPart:
    if not classes:
        raise DhaError(
            f"{folder} holds no class folders; put the images of each class into a folder named after it, or "
            "pass a table of paths and labels"
        )
    counts: list[int] = []
    for class_folder in classes:
        if class_folder.is_symlink() and folder.resolve().is_relative_to(class_folder.resolve()):
            raise DhaError(f"class folder {class_folder} is a link to a folder that it lies in; remove the link")
        counts.append(sum(1 for _ in image_files(class_folder, left_out)))
        if not counts[-1]:
            raise DhaError(f"class folder {class_folder} holds no images; add some or remove it")
    numbers = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    labels = Labels(np.array([path.name for path in classes]), numbers)
    return ItemPart(ClassFolders(classes, counts, left_out), labels, str(folder))
