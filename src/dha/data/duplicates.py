"""The same image in two parts: what is measured on one of them then says less than it seems to."""

import hashlib
import warnings
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from dha.data.images import LabelledImages
from dha.errors import DataWarning

_CHUNK = 256


def warn_of_duplicates(parts: Mapping[str, LabelledImages | None], place: str) -> None:
    """Give one `DataWarning` that counts, for every two parts, the images of the latter that are in the former too.

    Args:
        parts: name -> images of one shape, None for a part that there is not.
        place: what the warning calls the source.
    """
    digests = {name: _digests(part) for name, part in parts.items() if part is not None}
    counts = [(a, b, _count(digests[b], digests[a])) for a, b in combinations(digests, 2)]
    found = [f"{count} of {len(digests[b])} {b} images are {a} images too" for a, b, count in counts if count]
    if found:
        warnings.warn(
            f"{place}: {', '.join(found)} (equal in every pixel, at the size trained at): accuracy on them tells "
            "little about new images; remove duplicates",
            DataWarning,
            stacklevel=3,
        )


def _count(some: np.ndarray, known: np.ndarray) -> int:
    places = np.searchsorted(known, some)
    return int(np.count_nonzero(known[np.minimum(places, len(known) - 1)] == some))


def _digests(part: LabelledImages) -> np.ndarray:
    """Return 8 bytes for each image, sorted: of 10^12 pairs, one in 10^7 data sets has two images that share them."""
    digests = np.empty(len(part), dtype=np.uint64)
    first = 0
    for images, _ in part.chunks(_CHUNK):
        # Hashed one by one: 100,000 images of 32 x 32 take about half a second of one core.
        found = b"".join(hashlib.sha256(image).digest()[:8] for image in images.contiguous().flatten(1).numpy())
        digests[first : first + len(images)] = np.frombuffer(found, dtype=np.uint64)
        first += len(images)
    digests.sort()
    return digests
