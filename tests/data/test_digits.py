import numpy as np
import torch
from sklearn.datasets import load_digits

from dha.data import Cache, ImageFormat, load_source
from dha.data.digits import open_digits


def test_all_digits_are_there_once():
    parts = open_digits()
    assert parts.test is not None
    train, test = (part.read(ImageFormat(8, 1), "error", Cache()).images for part in (parts.train, parts.test))
    x, y = load_digits(return_X_y=True)
    expected = np.rint(np.asarray(x) * 255 / 16).astype(np.uint8)
    together = torch.cat([train, test]).flatten(1).numpy()
    labels = np.concatenate([part.labels.values[part.labels.numbers] for part in (parts.train, parts.test)])
    rows = np.column_stack([together, labels])
    assert sorted(map(bytes, rows.astype(np.uint8))) == sorted(
        map(bytes, np.column_stack([expected, y]).astype(np.uint8))
    )


def test_the_test_part_is_a_fixed_fifth_of_each_class():
    first, second = load_source("digits"), load_source("digits")
    assert first.test is not None
    assert second.test is not None
    assert first.train.images.shape == (1438, 1, 8, 8)
    assert first.classes == tuple(range(10))
    assert torch.equal(first.test.images, second.test.images)
    counts = torch.bincount(torch.cat([first.train.labels, first.test.labels]))
    assert torch.equal(torch.bincount(first.test.labels), (counts * 0.2).round().long())
    assert first.test.images.max() == 255
