"""The table of image operations: name -> function and magnitude range."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dha.augmentation import geometry, intensity
from dha.augmentation.strength import magnitudes


@dataclass(frozen=True)
class Operation:
    """One batched image operation and the range its magnitudes are drawn from.

    Attributes:
        function: of images (n, C, H, W) float32 in [0, 1], contiguous, a magnitude (n,), a position (n, 2) uniform in
            [0, 1), and the numbers of ``kind``, (n,) each, all on one device; changes the images in place, within the
            range. Deterministic.
        low, high: where the operation is weakest and where it is strongest: the range of the magnitude, in the unit the
            function states. Where they differ, ``low`` changes nothing.
        signed: whether the magnitude is as likely to be negative.
        kind: what tells operations with one function apart, which so run in one call.
        prior: weight among operations that are worth the same, > 0, for the generalisation rule.
    """

    function: Callable[..., None]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    kind: tuple[float, ...] = ()
    prior: float = 1.0

    def magnitude(self, strength: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to uniform magnitudes: low to high, or for a signed operation both signs."""
        return magnitudes(self.low, self.high, strength, torch.full_like(strength, self.signed, dtype=torch.bool))

    def apply(self, images: Tensor, magnitude: Tensor, position: Tensor) -> Tensor:
        """Return new images after the operation with magnitudes (n,) and positions (n, 2)."""
        changed = images.clone(memory_format=torch.contiguous_format)
        self.function(changed, magnitude, position, *(torch.full_like(magnitude, number) for number in self.kind))
        return changed

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return new images, with the magnitude and position that uniforms (n, 3) in [0, 1) stand for."""
        return self.apply(images, self.magnitude(uniforms[:, 0]), uniforms[:, 1:])


# Ranges as in AutoAugment (Cubuk et al., CVPR 2019) and RandAugment (Cubuk et al., 2020). The priors are what is known
# of photographs before any run: recipes for them mirror and crop, and do anything else to fewer images, if at all.
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(intensity.identity),
    "auto_contrast": Operation(intensity.auto_contrast),
    "equalize": Operation(intensity.equalize),
    "invert": Operation(intensity.solarize),  # from 0 on
    "rotate": Operation(geometry.warp, high=30.0, signed=True, kind=geometry.ROTATION),
    "posterize": Operation(intensity.posterize, low=8.0, high=4.0),
    "solarize": Operation(intensity.solarize, low=256 / 255),  # from above white, which changes nothing, to black
    "color": Operation(intensity.blend, high=0.9, signed=True, kind=intensity.COLOR),
    "contrast": Operation(intensity.blend, high=0.9, signed=True, kind=intensity.CONTRAST),
    "brightness": Operation(intensity.blend, high=0.9, signed=True, kind=intensity.BRIGHTNESS),
    "sharpness": Operation(intensity.sharpness, high=0.9, signed=True),
    "shear_x": Operation(geometry.warp, high=0.3, signed=True, kind=geometry.SHEAR_X),
    "shear_y": Operation(geometry.warp, high=0.3, signed=True, kind=geometry.SHEAR_Y),
    "translate_x": Operation(geometry.take, high=0.3, signed=True, kind=geometry.TRANSLATION_X),
    "translate_y": Operation(geometry.take, high=0.3, signed=True, kind=geometry.TRANSLATION_Y),
    "cutout": Operation(geometry.cutout, high=0.5),
    "horizontal_flip": Operation(geometry.horizontal_flip, prior=8.0),
    "crop": Operation(geometry.take, low=0.125, high=0.125, kind=geometry.CROP, prior=16.0),
}


def signed(names: Sequence[str]) -> Tensor:
    """Return which of some operations have magnitudes of both signs, bool (K,)."""
    return torch.tensor([OPERATIONS[name].signed for name in names])


def priors(names: Sequence[str]) -> Tensor:
    """Return the priors of some operations, float32 (K,)."""
    return torch.tensor([OPERATIONS[name].prior for name in names])
