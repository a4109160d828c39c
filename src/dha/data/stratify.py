"""Hold out a share of every class."""

import numpy as np


def hold_out(labels: np.ndarray, fraction: float, rng: np.random.Generator, keep: int = 1) -> np.ndarray:
    """Draw a share of each class at random.

    Args:
        labels: (N,), class numbers; each class has more than `keep` images.
        fraction: share to hold out, in (0, 1); rounded for each class, to at least one image.
        rng: source of the draw.
        keep: images of each class to leave at least.

    Returns:
        bool, (N,): true where an image is held out.
    """
    held = np.zeros(len(labels), dtype=bool)
    for label in np.flatnonzero(np.bincount(labels)):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - keep)
        held[members[:count]] = True
    return held
