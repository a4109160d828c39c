"""How strongly an operation is applied: strengths drawn from a density that rises or falls exponentially.

With v in [0, 1] from no effect of an operation to the end of its range, p(v) is proportional to exp(tilt v): uniform
at 0, mostly weak below, mostly strong above. It is what a softmax over candidates becomes where worth is linear in v.
"""

import torch
from torch import Tensor

STEEPEST = 8.0
"""The largest tilt either way: the mean then is 1/8 from an end."""


def intensity(uniforms: Tensor, both: Tensor) -> Tensor:
    """Return v for the strength numbers that operations take, in [0, 1].

    Args:
        uniforms: strengths, in [0, 1), any shape; of a signed operation .5 is no effect, and both ends are strong.
        both: whether the operation is signed, bool of the same shape.
    """
    return torch.where(both, (2 * uniforms - 1).abs(), uniforms)


def magnitudes(low: Tensor | float, high: Tensor | float, uniforms: Tensor, both: Tensor) -> Tensor:
    """Return magnitudes from low to high for the strength numbers that operations take, of both signs where ``both``.

    Args:
        low: end of the range where an operation is weakest, of the shape of the others or one number.
        high: the other end.
        uniforms: strengths, in [0, 1), any shape.
        both: whether the operation is signed, bool of the same shape.
    """
    size = low + (high - low) * intensity(uniforms, both)
    return torch.where(both, (2 * uniforms - 1).sign() * size, size)


def tilted(uniforms: Tensor, tilts: Tensor, both: Tensor) -> Tensor:
    """Return strengths whose v have the density exp(tilt v), from uniform ones by the inverse of its distribution.

    Args:
        uniforms: in [0, 1), any shape.
        tilts: of the same shape, within ``STEEPEST``; 0 leaves a strength as it is.
        both: whether the operation is signed, bool of the same shape; signs are kept.
    """
    v = intensity(uniforms, both)
    flat = tilts.abs() < 1e-3
    safe = torch.where(flat, 1.0, tilts)
    moved = torch.where(flat, v, (v * safe.expm1()).log1p() / safe).clamp(0, 1 - 2**-24)
    sign = (2 * uniforms - 1).sign()
    return torch.where(flat, uniforms, torch.where(both, (0.5 * (1 + sign * moved)).clamp_max(1 - 2**-24), moved))


def log_mean_exp(tilts: Tensor) -> Tensor:
    """Return the logarithm of the mean of exp(tilt (v - 1/2)) over uniform v: log(sinh(tilt / 2) / (tilt / 2))."""
    half = tilts.abs().clamp_min(1e-3) / 2
    return half + torch.log1p(-torch.exp(-2 * half)) - torch.log(2 * half)
