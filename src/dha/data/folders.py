"""Folders of class folders, alone or below train/, val/ and test/."""

from pathlib import Path

import numpy as np

from dha.data.parts import ItemPart, Parts
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
    if "train" in inner and _folders(inner["train"]) and not _images(inner["train"], "*"):
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


def _part(folder: Path) -> ItemPart:
    classes = _folders(folder)
    if not classes:
        raise DhaError(f"{folder} holds no class folders; put the images of each class into a folder named after it")
    paths: list[Path] = []
    labels: list[str] = []
    for class_folder in classes:
        if class_folder.is_symlink() and folder.resolve().is_relative_to(class_folder.resolve()):
            raise DhaError(f"class folder {class_folder} is a link to a folder that it lies in; remove the link")
        found = _images(class_folder, "**/*")
        if not found:
            raise DhaError(
                f"class folder {class_folder} holds no images; add some ({' '.join(sorted(SUFFIXES))}) or remove it"
            )
        paths += found
        labels += [class_folder.name] * len(found)
    return ItemPart(paths, np.array(labels), str(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
        and path.is_file()
    )
