"""The table of image operations: name -> function and magnitude range."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dha.augmentation import geometry, intensity


def _as_it_is(magnitude: Tensor, position: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    return magnitude, position


@dataclass(frozen=True)
class Operation:
    """One batched image operation and the range its magnitudes are drawn from.

    Attributes:
        function: of images (n, C, H, W) float32 in [0, 1] and what `plan` returns for them, all on one device; returns
            new images of the same shape and range. Deterministic.
        low, high: the range of the magnitude, in the unit the docstring of the operation states.
        signed: whether the magnitude is as likely to be negative.
        plan: function of magnitude (n,), position (n, 2) uniform in [0, 1) and the size (H, W) of the images; returns
            tensors with n rows each. Magnitude and position as they are when not given.
    """

    function: Callable[..., Tensor]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    plan: Callable[[Tensor, Tensor, tuple[int, int]], tuple[Tensor, ...]] = _as_it_is

    def magnitude(self, strength: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to uniform magnitudes: low to high, or for a signed operation both signs."""
        if not self.signed:
            return self.low + (self.high - self.low) * strength
        spread = 2 * strength - 1
        return spread.sign() * (self.low + (self.high - self.low) * spread.abs())

    def apply(self, images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
        """Apply the operation with magnitudes (n,) and positions (n, 2)."""
        height, width = images.shape[-2:]
        return self.function(images, *self.plan(magnitude, position, (height, width)))

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Apply the operation with the magnitude and position that uniforms (n, 3) in [0, 1) stand for."""
        return self.apply(images, self.magnitude(uniforms[:, 0]), uniforms[:, 1:])

    def planned(self, uniforms: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return what the function wants, for the magnitude and position that uniforms (n, 3) in [0, 1) stand for."""
        return self.plan(self.magnitude(uniforms[:, 0]), uniforms[:, 1:], size)


# Ranges as in AutoAugment (Cubuk et al., CVPR 2019) and RandAugment (Cubuk et al., 2020).
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(intensity.identity),
    "auto_contrast": Operation(intensity.auto_contrast),
    "equalize": Operation(intensity.equalize),
    "invert": Operation(intensity.solarize),  # from 0 on
    "rotate": Operation(geometry.warp, high=30.0, signed=True, plan=geometry.rotation),
    "posterize": Operation(intensity.posterize, low=4.0, high=8.0),
    "solarize": Operation(intensity.solarize, high=1.0),
    "color": Operation(intensity.blend, high=0.9, signed=True, plan=intensity.color),
    "contrast": Operation(intensity.blend, high=0.9, signed=True, plan=intensity.contrast),
    "brightness": Operation(intensity.blend, high=0.9, signed=True, plan=intensity.brightness),
    "sharpness": Operation(intensity.sharpness, high=0.9, signed=True),
    "shear_x": Operation(geometry.warp, high=0.3, signed=True, plan=geometry.shear_x),
    "shear_y": Operation(geometry.warp, high=0.3, signed=True, plan=geometry.shear_y),
    "translate_x": Operation(geometry.take, high=0.3, signed=True, plan=geometry.translation_x),
    "translate_y": Operation(geometry.take, high=0.3, signed=True, plan=geometry.translation_y),
    "cutout": Operation(geometry.cutout, high=0.5),
    "horizontal_flip": Operation(geometry.horizontal_flip),
    "crop": Operation(geometry.take, low=0.125, high=0.125, plan=geometry.crop),
}
