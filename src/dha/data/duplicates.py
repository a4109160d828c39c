"""The same image in two parts: what is measured on one of them then says less than it seems to."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
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
    present = [(name, part) for name, part in parts.items() if part is not None]
    (first, largest), rest = present[0], present[1:]
    known = {name: np.unique(np.concatenate([*_digests(part)]), return_counts=True) for name, part in rest}
    # Of the first part, which is that of training, no more than a chunk of digests is kept.
    shared = {(first, name): np.zeros(len(digests), dtype=bool) for name, (digests, _) in known.items()}
    for some in _digests(largest):
        for name, (digests, _) in known.items():
            places = np.minimum(np.searchsorted(digests, some), len(digests) - 1)
            shared[first, name][places[digests[places] == some]] = True
    shared |= {(a, b): np.isin(known[b][0], known[a][0]) for a, b in combinations(known, 2)}
    counts = [(a, b, int(known[b][1][both].sum())) for (a, b), both in shared.items()]
    sizes = {name: len(part) for name, part in rest}
    found = [f"{count} of {sizes[b]} {b} images are {a} images too" for a, b, count in counts if count]
    if found:
        warnings.warn(
            f"{place}: {', '.join(found)} (equal in every pixel, at the size trained at): accuracy on them tells "
            "little about new images; remove duplicates",
            DataWarning,
            stacklevel=3,
        )


def _digests(part: LabelledImages) -> Iterator[np.ndarray]:
    """Yield 8 bytes for each image: of 10^12 pairs, one in 10^7 data sets has two images that share them."""
    for images, _ in part.chunks(_CHUNK):
        # Hashed one by one: 100,000 images of 32 x 32 take about half a second of one core.
        found = b"".join(hashlib.sha256(image).digest()[:8] for image in images.contiguous().flatten(1).numpy())
        yield np.frombuffer(found, dtype=np.uint64)
