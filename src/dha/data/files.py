"""Which files below a folder are images: by their names where these say so, by their content where they do not."""

import os
from collections.abc import Iterator
from pathlib import Path

from dha.data.decoding import read_header
from dha.errors import DhaError
from dha.files import begins_with
from dha.ownership import HEADER, SETTINGS

SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".tga", ".tif", ".tiff", ".webp"}
    | {".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raf", ".rw2"}  # Pillow alone reads none
)
"""Names of files that say they are images. Those that Pillow cannot read are reported as images that are damaged."""

_SYSTEM = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"})

LeftOut = dict[str, str]
"""Path -> why it is left out."""


def image_files(folder: str | Path, left_out: LeftOut, known: bool = False) -> Iterator[str]:
    """Yield the paths of the images in a folder and the folders in it, in no particular order.

    Links to folders are followed, and every folder is listed once. A file with the suffix of an image counts as an
    image and is not opened; any other file is one if its content is that of an image.

    Args:
        folder: where to look.
        left_out: takes up every path that is left out, with the reason; nothing in it is opened.
        known: whether `left_out` comes from an earlier call for the same folder: then no file is opened.

    Raises:
        DhaError: if a folder cannot be listed.
    """
    for path in files(folder, left_out):
        if path not in left_out and (known or _is_image(path, left_out)):
            yield path


def files(folder: str | Path, left_out: LeftOut, skip: Path | None = None) -> Iterator[str]:
    """Yield the paths of all files in a folder and the folders in it, of hidden and special files none.

    Args:
        folder: where to look.
        left_out: takes up every path that is left out, with the reason.
        skip: a folder that is not entered.

    Raises:
        DhaError: if a folder cannot be listed.
    """
    root = os.path.realpath(folder)
    entered = {_identity(path) for path in (folder, skip) if path is not None and os.path.exists(path)}
    waiting = [str(folder)]
    while waiting:
        folders, links = [], []
        for entry in listed(waiting.pop(), left_out):
            kind = kind_of(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(entry.path)
            elif kind == "file" or (kind == "broken link" and has_image_suffix(entry.name)):
                yield entry.path
            else:
                left_out[entry.path] = kind
        inner = []
        for path in (*sorted(folders), *sorted(links)):
            if path in links and f"{root}{os.sep}".startswith(os.path.realpath(path).rstrip(os.sep) + os.sep):
                left_out[path] = "link to a folder that it lies in"
            elif (identity := _identity(path)) in entered:
                left_out[path] = "folder that is listed already"
            else:
                entered.add(identity)
                inner.append(path)
        waiting += reversed(inner)


def listed(folder: str | Path, left_out: LeftOut) -> Iterator[os.DirEntry[str]]:
    """Yield what a folder holds, less what is hidden or belongs to the system.

    Raises:
        DhaError: if it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                    left_out[entry.path] = "hidden"
                else:
                    yield entry
    except OSError as error:
        raise DhaError(
            f"folder {folder} cannot be listed ({error.strerror}); make it readable or move it away"
        ) from error


def kind_of(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file", "special file" (a pipe, device or socket) or "broken link"."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if entry.is_symlink():
            os.stat(entry.path)
    except OSError:
        return "broken link"
    return "special file"


def has_image_suffix(name: str) -> bool:
    """Tell whether the name of a file says that it is an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_image(path: str) -> bool:
    """Tell whether a regular file is an image, by its name or else by its content."""
    return _is_image(path, {})


def is_run(folder: Path, own: Path | None = None, depth: int = 2) -> bool:
    """Tell whether a folder is that of a run, or holds such folders and no images.

    Args:
        folder: to look at.
        own: the folder of this run, which may be empty.
        depth: how many folders deep runs may lie in it.
    """
    if own is not None and os.path.realpath(folder) == os.path.realpath(own):
        return True
    try:
        if begins_with(folder / SETTINGS, HEADER):
            return True
        if folder.is_symlink() or not depth:
            return False
        found = False
        for entry in listed(folder, {}):
            if entry.is_file() and not has_image_suffix(entry.name):
                continue  # A note beside the runs.
            found = entry.is_dir(follow_symlinks=False) and is_run(Path(entry.path), own, depth - 1)
            if not found:
                break
        return found
    except (OSError, DhaError):
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_image(path: str, left_out: LeftOut) -> bool:
    if has_image_suffix(path):
        return True
    try:
        read_header(path)
    except DhaError as error:
        unreadable = isinstance(error.__cause__, PermissionError)
        left_out[path] = "cannot be opened (permission denied)" if unreadable else "not an image"
        return False
    return True
