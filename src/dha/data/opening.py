"""Opening image files that anybody may have made: by content, of formats that run nothing, none of enormous size."""

import os
import stat
import struct
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from dha.errors import DhaError

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"),
    *("ICO", "ICNS", "PCX", "SGI", "QOI", "PSD", "SUN", "DDS"),
)
"""What files may hold, whatever their name says: what Pillow decodes itself and knows by its first bytes. It hands
others to programs (EPS to Ghostscript) or to the system (WMF)."""

MAX_PIXELS = 160_000_000
"""Images of more are refused before they are decoded: the largest sensors have 151 million."""

MAX_SIDE = 2**17

MAX_BYTES = 2**30
"""Of a file; 160 million pixels of 16-bit colours take 0.9 times that without compression."""

_PIECE = 2**20

_TAIL = 1024
"""Zeros at the end of a compressed image that no encoder writes."""

_TGA = frozenset({".tga", ".icb", ".vda", ".vst"})

_RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"})

# Pillow warns from a lower number of pixels on, and refuses from a higher one on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(image: str | Path | IO[bytes] | None) -> Image.Image:
    """Open an image file and read its header, not its pixels.

    Raises:
        DhaError: if it is too large, cut off, or of a kind that cannot be read; without its name.
        Exception: any other, as a broken file makes Pillow raise nearly anything.
    """
    if image is None:
        raise DhaError("there is no image in this row: fill it in")
    formats = FORMATS
    if isinstance(image, str | Path):
        # Opening a pipe would wait for ever, and a device may have no end.
        known = os.stat(image)
        if not stat.S_ISREG(known.st_mode):
            raise DhaError("it is no regular file: pass an image file")
        if known.st_size > MAX_BYTES:  # Pillow reads files of some formats into memory before it looks at them.
            raise DhaError(f"it has {known.st_size} bytes, more than {MAX_BYTES}: save it with compression")
        suffix = os.path.splitext(image)[1].lower()
        if suffix in _RAW:
            raise DhaError("it holds the raw data of a camera: convert it to JPEG, PNG or TIFF")
        # The format has no first bytes by which it is known.
        formats = (*FORMATS, "TGA") if suffix in _TGA else FORMATS
    else:
        image.seek(0)
    try:
        opened = Image.open(image, formats=formats)
    except UnidentifiedImageError:
        if _is_heif(image):
            raise DhaError("it is an HEIC photograph, which Pillow does not read: convert it to JPEG or PNG") from None
        raise
    try:
        check_size(*opened.size)
        # Decoders of the others notice themselves.
        if opened.format in ("JPEG", "MPO"):
            _check_end(opened)
        elif opened.format in ("WEBP", "AVIF"):
            _check_tail(image)
    except BaseException:
        opened.close()
        raise
    return opened


def check_size(width: int, height: int) -> None:
    """Raise a `DhaError` for an image that is larger than any camera makes them."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DhaError(
            f"it claims {width} x {height} pixels, more than {MAX_PIXELS} or {MAX_SIDE} in a row: scale it down"
        )


def unreadable(name: str, error: Exception) -> DhaError:
    """Return the error that names an image, what is wrong with it, and a remedy."""
    name = name if name.isprintable() else repr(name)
    if isinstance(error, DhaError):
        return DhaError(f"{name} is refused: {error}, or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return DhaError(f"{name} is refused ({error}): scale it down or remove it")
    if isinstance(error, OSError) and error.strerror:  # Pillow's own errors of this type have none
        return DhaError(f"{name} cannot be opened ({error.strerror}): check the path and its permissions, or remove it")
    return DhaError(f"{name} cannot be read as an image ({type(error).__name__}: {error}): repair or remove it")


def _is_heif(image: str | Path | IO[bytes]) -> bool:
    if isinstance(image, str | Path):
        with open(image, "rb") as file:
            start = file.read(12)
    else:
        image.seek(0)
        start = image.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _check_tail(image: str | Path | IO[bytes]) -> None:
    """Raise a `DhaError` for a compressed image that ends with zeros, as what is left of a copy that was cut off."""
    with open(image, "rb") if isinstance(image, str | Path) else nullcontext(image) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        if size > _TAIL and not any(file.read()):
            raise DhaError("it is cut off and filled up with zeros: copy it again")


def _check_end(opened: Image.Image) -> None:
    """Raise a `DhaError` for a JPEG without an end, filled up with zeros maybe: it decodes to an image that is partly
    grey, and only the decoder notices.
    """
    file: IO[bytes] = opened.fp  # pyright: ignore[reportAttributeAccessIssue]
    place = file.tell()
    try:
        file.seek(-2, os.SEEK_END)
        if file.read(2) == b"\xff\xd9":
            return
        # Cameras append other data. A thumbnail before the pixels has an end of its own.
        file.seek(2)
        while (marker := file.read(2))[:1] == b"\xff" and marker != b"\xff\xda":
            if marker == b"\xff\xff":  # a marker may begin with several of these
                file.seek(-1, os.SEEK_CUR)
            else:
                file.seek(struct.unpack(">H", file.read(2))[0] - 2, os.SEEK_CUR)
        last = b""
        while piece := file.read(_PIECE):
            if b"\xff\xd9" in last + piece:
                return
            last = piece[-1:]
        raise DhaError("it is cut off, a JPEG without an end: copy it again")
    finally:
        file.seek(place)
