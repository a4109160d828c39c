"""What is done to every image before the network sees it, the same in training and in prediction."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from dha.config import BACKGROUND, RESIZE, Background, Resize
from dha.data.image_format import BETWEEN, FLOAT_WHITES, INTEGER_WHITES, ImageFormat
from dha.data.images import LabelledImages
from dha.errors import DhaError, shortened

SMALLEST_SIZE = 4
LARGEST_SIZE = 2048

_CHUNK = 256

_SMALLEST_STD = 1e-4

_CHOICES = {
    "resize": get_args(Resize),
    "background": get_args(Background),
    "integer_white": INTEGER_WHITES,
    "float_white": tuple(white for white in FLOAT_WHITES if white != BETWEEN),
}


@dataclass(frozen=True)
class Preprocessing:
    """Describe the images that a network takes.

    Args:
        image_size: side of the square images in pixels, 4 to 2048.
        channels: 1 (grey) or 3 (RGB).
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1]; above 0.
        resize, background: as `ImageFormat` has them.
        integer_white: pixel value that is white in images of integers of more than 8 bits.
        float_white: pixel value that is white in images of floats.

    Raises:
        DhaError: if channels is neither 1 nor 3, mean or std do not fit it, or a value is out of range.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = RESIZE
    background: Background = BACKGROUND
    integer_white: int = INTEGER_WHITES[0]
    float_white: int = FLOAT_WHITES[0]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise DhaError(f"channels is {self.channels}; pass 1 (grey) or 3 (RGB)")
        if not SMALLEST_SIZE <= self.image_size <= LARGEST_SIZE:
            raise DhaError(f"image_size is {self.image_size}; pass {SMALLEST_SIZE} to {LARGEST_SIZE} pixels")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if type(value) is not type(choices[0]) or value not in choices:
                raise DhaError(f"{name} is {value!r:.80}; pass {', '.join(map(str, choices[:-1]))} or {choices[-1]}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                said = shortened(values)
                raise DhaError(f"{name} has {len(values)} values {said}; pass one for each of {self.channels} channels")
            if not all(map(math.isfinite, values)):
                raise DhaError(f"{name} is {values}; every value must be finite")
            # Of pixels in [0, 1]; others overflow.
            if not all(_SMALLEST_STD * (name == "std") <= value <= 1 for value in values):
                raise DhaError(f"{name} is {values}; every value must be above 0, and at most 1")

    @classmethod
    def of(cls, image_format: ImageFormat, mean: tuple[float, ...], std: tuple[float, ...]) -> "Preprocessing":
        """Return the preprocessing of images of this format."""
        known = {name: value for name, value in asdict(image_format).items() if value is not None}
        return cls(mean=mean, std=std, **known)

    @property
    def image_format(self) -> ImageFormat:
        """What images are converted to before they are normalised."""
        return ImageFormat(**{field.name: getattr(self, field.name) for field in fields(ImageFormat)})

    def normalise(self, images: Tensor) -> Tensor:
        """Shift and scale pixels to mean 0 and standard deviation 1.

        Args:
            images: floats in [0, 1], (..., C, H, W).

        Returns:
            A tensor of the same shape, type and device.
        """
        mean, std = (_per_channel(values, images.dtype, images.device) for values in (self.mean, self.std))
        return (images - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return what `to_dict` was called on.

        Raises:
            DhaError: if a field is missing or does not fit the others.
        """
        expected = {field.name for field in fields(cls)}
        if missing := expected - set(values):
            raise DhaError(f"the preprocessing lacks {sorted(missing)}; it has {sorted(values)}")
        mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
        for name in ("image_size", "channels"):
            if type(values[name]) is not int:
                raise DhaError(f"{name} of the preprocessing is {values[name]!r:.80}; pass a whole number")
        return cls(**{**{name: values[name] for name in expected}, "mean": mean, "std": std})


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, because making it on a GPU waits for the device, and a training step must not.
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


def measure(images: Tensor | LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Args:
        images: uint8, (N, C, H, W), at least one image; labelled ones are read a few at a time.

    Returns:
        C means and C standard deviations; the latter are at least 1/255, so that dividing by them is safe.
    """
    chunks = images.split(_CHUNK) if isinstance(images, Tensor) else (some for some, *_ in images.chunks(_CHUNK))
    # A histogram of the 256 levels is exact and needs no float copy of the images.
    counts = sum(torch.stack([torch.bincount(c.flatten(), minlength=256) for c in some.unbind(1)]) for some in chunks)
    assert isinstance(counts, Tensor)
    shares = counts.cpu() / counts[0].sum().item()
    levels = torch.arange(256, dtype=torch.float64) / 255
    means = [(share * levels).sum() for share in shares]
    stds = [(share * (levels - mean) ** 2).sum().sqrt() for share, mean in zip(shares, means, strict=True)]
    return tuple(map(float, means)), tuple(max(float(std), 1 / 255) for std in stds)
