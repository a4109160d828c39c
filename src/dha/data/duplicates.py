"""The same image in two parts, which makes a measurement worth less than it seems, or in two classes."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from dha.data.images import LabelledImages
from dha.errors import DataWarning

_CHUNK = 256
_NAMED = 3


def find_duplicates(
    parts: Mapping[str, LabelledImages],
    classes: Sequence[Any],
    place: str,
    names: Callable[[str, Sequence[int]], list[str]],
) -> list[tuple[str, str]]:
    """Look for images that are equal in every pixel.

    Args:
        parts: name -> images of one shape; the first is that of training.
        classes: what their labels stand for.
        place: what warnings call the source.
        names: returns what images are called, of the part and the rows of its store.

    Returns:
        Name and class of each image that is in more than one class, equal ones after each other.

    Warns:
        DataWarning: with the number of images, for every two parts, of the latter that are in the former too; and with
            the first images that are in more than one class.
    """
    digests = {name: _digests(part) for name, part in parts.items()}
    found = []
    for first, second in combinations(parts, 2):
        count = int(np.isin(digests[second], digests[first]).sum())
        if count:
            names_of = {"train": "training"}
            found.append(f"{count} of {len(parts[second])} {second} images are {names_of.get(first, first)} images too")
    if found:
        _warn(
            f"{place}: {', '.join(found)} (equal in every pixel, at the size trained at): accuracy on them tells "
            "little about new images; remove duplicates"
        )
    conflicts = _conflicts(parts, digests, classes, names)
    if conflicts:
        said = ", ".join(f"{name} in {label!r}" for name, label in conflicts[: 2 * _NAMED])
        _warn(
            f"{place}: {len(conflicts)} images are in more than one class (equal in every pixel, at the size trained "
            f"at): {said}{', ...' if len(conflicts) > 2 * _NAMED else ''}; remove them from the wrong class"
        )
    return conflicts


def _conflicts(
    parts: Mapping[str, LabelledImages],
    digests: Mapping[str, np.ndarray],
    classes: Sequence[Any],
    names: Callable[[str, Sequence[int]], list[str]],
) -> list[tuple[str, str]]:
    every = np.concatenate([*digests.values()])
    labels = torch.cat([part.labels for part in parts.values()]).numpy()
    order = np.argsort(every, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(every[order]) != 0])
    differ = np.minimum.reduceat(labels[order], starts) != np.maximum.reduceat(labels[order], starts)
    places = order[np.repeat(differ, np.diff(np.r_[starts, len(every)]))]
    named: dict[int, str] = {}
    first = 0
    for part, images in parts.items():
        own = places[(places >= first) & (places < first + len(images))]
        rows = images.rows[torch.from_numpy(own - first)].tolist() if len(own) else []
        named |= dict(zip(own.tolist(), names(part, rows) if rows else [], strict=True))
        first += len(images)
    return [(named[place], str(classes[int(labels[place])])) for place in places.tolist()]


def _digests(part: LabelledImages) -> np.ndarray:
    """Return 8 bytes for each image: of 10^12 pairs, one in 10^7 data sets has two images that share them."""
    # Hashed one by one: 100,000 images of 32 x 32 take about half a second of one core.
    found = b"".join(
        hashlib.sha256(image).digest()[:8]
        for images, *_ in part.chunks(_CHUNK)
        for image in images.contiguous().flatten(1).numpy()
    )
    return np.frombuffer(found, dtype=np.uint64)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)
