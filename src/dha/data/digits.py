"""The small handwritten digits that come with scikit-learn: no download, no files."""

import numpy as np

from dha.data.labels import Labels
from dha.data.parts import ArrayPart, Parts
from dha.data.stratify import hold_out

_TEST_FRACTION = 0.2
_TEST_SEED = 20_010_101  # fixed, so that all runs and all evaluations share the test part


def open_digits() -> Parts:
    """Return 1,797 grey images of 8 x 8 pixels in 10 classes, a fixed fifth of each class as the test part."""
    from sklearn.datasets import load_digits

    x, y = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = np.rint(x * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    y = y.astype(np.int64)
    held = hold_out(y, _TEST_FRACTION, np.random.default_rng(_TEST_SEED))
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    return Parts(
        "digits",
        train=ArrayPart({"digits train": images[train]}, Labels.of(y[train]), "digits train"),
        test=ArrayPart({"digits test": images[test]}, Labels.of(y[test]), "digits test"),
    )
