"""The same image in two parts: what is measured on one of them then says less than it seems to."""

import hashlib
import warnings
from collections.abc import Mapping
from itertools import combinations

from torch import Tensor

from dha.data.images import LabelledImages
from dha.errors import DataWarning


def warn_of_duplicates(parts: Mapping[str, LabelledImages | None], place: str) -> None:
    """Give one `DataWarning` that counts, for every two parts, the images of the latter that are in the former too.

    Args:
        parts: name -> images of one shape, None for a part that there is not.
        place: what the warning calls the source.
    """
    digests = {name: _digests(part.images) for name, part in parts.items() if part is not None}
    known = {name: set(found) for name, found in digests.items()}
    counts = [(a, b, sum(digest in known[a] for digest in digests[b])) for a, b in combinations(digests, 2)]
    found = [f"{count} of {len(digests[b])} {b} images are {a} images too" for a, b, count in counts if count]
    if found:
        warnings.warn(
            f"{place}: {', '.join(found)} (equal in every pixel, at the size trained at): accuracy on them tells "
            "little about new images; remove duplicates",
            DataWarning,
            stacklevel=3,
        )


def _digests(images: Tensor) -> list[bytes]:
    # Hashed one by one: 100,000 images of 32 x 32 take about half a second of one core.
    return [hashlib.sha256(image).digest() for image in images.contiguous().flatten(1).numpy()]
