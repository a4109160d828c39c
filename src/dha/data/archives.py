"""NumPy archives (.npz) and folders of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dha.data.array_pixels import images_array
from dha.data.cache import total_memory
from dha.data.labels import Labels, check_labels
from dha.data.parts import ArrayPart, Parts
from dha.errors import DhaError, shortened

_MOST_DEFLATED = 1100
"""The ZIP format compresses no data more than 1032 times."""

_KEYS = (("x", "y"), ("images", "labels"))


def open_archive(path: Path) -> Parts:
    """Read one .npz file with the arrays `x` and `y` (or `images` and `labels`).

    Raises:
        DhaError: if it is not such a file, or the arrays are not labelled images.
    """
    return Parts(str(path), _part([path]), layout="an .npz archive")


def open_archives(folder: Path) -> Parts:
    """Read a folder with `train*.npz`, joined in sorted order, and maybe `val*.npz` and `test*.npz`.

    Raises:
        DhaError: if one is not such a file, or files of one part do not fit together.
    """
    validation, test = sorted(folder.glob("val*.npz")), sorted(folder.glob("test*.npz"))
    return Parts(
        str(folder),
        _part(sorted(folder.glob("train*.npz"))),
        _part(validation) if validation else None,
        _part(test) if test else None,
        layout=".npz archives",
    )


def _part(paths: Sequence[Path]) -> ArrayPart:
    parts = [_read(path) for path in paths]
    first = parts[0]
    (name, images), *_ = first.arrays.items()
    for part in parts[1:]:
        (other_name, other), *_ = part.arrays.items()
        if other.shape[1:3] != images.shape[1:3]:
            raise DhaError(
                f"{other_name} holds images of {other.shape[1]} x {other.shape[2]} pixels, {name} of "
                f"{images.shape[1]} x {images.shape[2]}; archives of one part must hold images of one size"
            )
        if (part.labels.values.dtype.kind == "U") != (first.labels.values.dtype.kind == "U"):
            raise DhaError(f"{part.place} and {first.place} mix strings and numbers as labels; use one kind")
    labels = Labels.of(part.labels.values[part.labels.numbers] for part in parts)
    arrays = {name: array for part in parts for name, array in part.arrays.items()}
    return ArrayPart(arrays, labels, " + ".join(p.place for p in parts[:2]))


def _read(path: Path) -> ArrayPart:
    with _opened(path) as file:  # opened here because NumPy leaves broken archives open
        archive = _archive(file, path)
        keys = next((pair for pair in _KEYS if set(pair) <= set(archive.files)), None)
        if keys is None:
            raise DhaError(
                f"{path} holds the keys {shortened(sorted(archive.files))}; it needs x and y (or images and labels)"
            )
        for key in keys:
            _check_header(archive, key, path)
        x, y = (_array(archive, key, path) for key in keys)
    name = f"{path}: {keys[0]}"
    images = images_array(x, name)
    return ArrayPart({name: images}, Labels.of(check_labels(y, len(images), f"{path}: {keys[1]}")), str(path))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DhaError(f"{path} cannot be opened ({error.strerror}): check its permissions") from error


def _archive(file: IO[bytes], path: Path) -> np.lib.npyio.NpzFile:
    start = file.read(6)
    file.seek(0)
    if start == b"\x93NUMPY":  # not loaded, because its header may claim any size
        raise DhaError(f"{path} holds a single array; write x and y into it with np.savez(path, x=..., y=...)")
    if not start.startswith(b"PK"):
        raise DhaError(f"{path} cannot be read as an .npz archive (it is no ZIP file); write it with np.savez")
    try:
        archive = np.load(file, allow_pickle=False)
    except Exception as error:  # NumPy's errors on broken archives are of many kinds
        raise DhaError(f"{path} cannot be read as an .npz archive ({error}); write it with np.savez") from error
    assert isinstance(archive, np.lib.npyio.NpzFile)
    return archive


def _check_header(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> None:
    """Refuse an array that is not there, or that does not fit the memory, before memory is taken for it."""
    try:
        member = archive.zip.getinfo(f"{key}.npy")  # pyright: ignore[reportOptionalMemberAccess]
        with archive.zip.open(member) as file:  # pyright: ignore[reportOptionalMemberAccess]
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
    except Exception as error:
        raise _unreadable(path, key, error) from error
    if dtype.hasobject:
        raise DhaError(
            f"{path}: {key} holds Python objects, which are refused because reading them can run code: save numbers or "
            "strings (.astype(str))"
        )
    count = math.prod(shape)
    size = count * dtype.itemsize
    if min(shape, default=0) < 0 or size > member.file_size or member.file_size > _MOST_DEFLATED * member.compress_size:
        raise DhaError(
            f"{path}: {key} claims {size} bytes, but is {member.file_size} bytes, compressed to "
            f"{member.compress_size}; write the archive again with np.savez"
        )
    # With the copy of 8 bits that is made of it.
    if size + count > (memory := total_memory()):
        raise DhaError(
            f"{path}: {key} takes {(size + count) / 1e9:.1f} GB, of {memory / 1e9:.1f} GB of memory; save uint8, or "
            "the images as files"
        )


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return archive[key]
    except Exception as error:
        raise _unreadable(path, key, error) from error


def _unreadable(path: Path, key: str, error: Exception) -> DhaError:
    said = f"{type(error).__name__}: {error}"
    return DhaError(f"{path}: {key} cannot be read ({said}); write the archive again with np.savez")
