"""How every image becomes a square of pixels for the network: the same in training, evaluation and prediction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from dha.config import BACKGROUND, RESIZE, Background, Resize

PADDING = 128
"""Grey level of the borders that `resize="pad"` adds: in the middle, so that it is an edge to dark and bright images
alike, and near 0 after normalisation."""

NEARLY = 4
"""Grey levels by which the pixels of an image may differ that has nothing to see."""

INTEGER_WHITES = (255, 1023, 4095, 16383, 65535)
"""Of 8, 10, 12, 14 and 16 bits."""

BETWEEN = 2
"""What floats above 1 and up to 2 fit: neither [0, 1] nor 0..255. One image may be that dark, a data set is not."""

FLOAT_WHITES = (1, BETWEEN, *INTEGER_WHITES)

SLACK = 1e-3
"""How much floats may be above white, as a share of it: resizing and division leave such traces."""


@dataclass(frozen=True)
class ImageFormat:
    """Describe what images are converted to.

    Args:
        image_size: side S of the square that the network takes, in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: what becomes of images that are not square: "pad" scales the longer side to S and adds borders, "crop"
            cuts out the central square, "squash" scales both sides to S.
        background: what shows through transparent pixels, "white" or "black".
        integer_white: pixel value that is white in images of integers of more than 8 bits: 255, 1023, 4095, 16383 or
            65535. None where it is still to be found from the images.
        float_white: the same in images of floats: 1 or one of those. None where it is still to be found.
    """

    image_size: int
    channels: int
    resize: Resize = RESIZE
    background: Background = BACKGROUND
    integer_white: int | None = None
    float_white: int | None = None

    def content(self, width: float, height: float) -> tuple[int, int]:
        """Return the width and height, at most S, that an image of this width and height is scaled to (its central
        square, where that is cut out); borders fill the rest.
        """
        side = self.image_size
        if self.resize != "pad":
            return side, side
        if width >= height:
            return side, max(1, round(height / width * side))
        return max(1, round(width / height * side)), side


class HasWhites(Protocol):
    """Images that were read, with what is white among those of more than 8 bits; None if there are none."""

    @property
    def integer_white(self) -> int | None: ...  # noqa: D102

    @property
    def float_white(self) -> int | None: ...  # noqa: D102


Read = TypeVar("Read", bound=HasWhites)


def read_alike(
    readers: Mapping[str, Callable[[ImageFormat], Read]], image_format: ImageFormat
) -> tuple[dict[str, Read], ImageFormat]:
    """Read several lots of images with one white for all; those that fit less on their own are read twice.

    Args:
        readers: each reads a lot, by the least white that it fits where the format leaves one open.
        image_format: to read them in.

    Returns:
        What the readers returned, and the format with the whites that were open; None stays where no image has one.
    """
    read = {name: reader(image_format) for name, reader in readers.items()}
    still_open = [white for white in ("integer_white", "float_white") if getattr(image_format, white) is None]
    found = {white: max((getattr(lot, white) or 0 for lot in read.values()), default=0) or None for white in still_open}
    image_format = replace(image_format, **found)
    for name, reader in readers.items():
        if any(getattr(read[name], white) not in (None, deepest) for white, deepest in found.items()):
            read[name] = reader(image_format)
    return read, image_format


def typical_size(resize: Resize, width: int, height: int) -> int:
    """Return the image size at which an image is not scaled: its longer side, or the shorter where that is cut to."""
    return min(width, height) if resize == "crop" else max(width, height)
