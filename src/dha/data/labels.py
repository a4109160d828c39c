"""Labels as users give them (whole numbers, strings or booleans), and their numbering from 0."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dha.errors import DhaError

Classes = tuple[str, ...] | tuple[int, ...]

_LONGEST = 1000
"""Characters of a class name. NumPy keeps every string in the room of the longest."""


@dataclass(frozen=True)
class Labels:
    """Labels of N images, four bytes each however long their names are.

    Args:
        values: (K,), the different labels, whole numbers, strings or booleans, sorted.
        numbers: int32, (N,), the place in `values` of the label of each image.
    """

    values: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.numbers)

    @classmethod
    def of(cls, labels: np.ndarray | Iterable[np.ndarray]) -> "Labels":
        """Return the labels of one array, (N,), or of several after one another, of which one is kept at a time."""
        known: dict[Any, int] = {}
        numbers = [np.empty(0, dtype=np.int32)]
        for part in [labels] if isinstance(labels, np.ndarray) else labels:
            values, inverse = np.unique(part, return_inverse=True)
            table = np.array([known.setdefault(value, len(known)) for value in values.tolist()], dtype=np.int32)
            numbers.append(table[inverse])
        values, places = np.unique(np.array(list(known)), return_inverse=True)
        return cls(values, places.astype(np.int32)[np.concatenate(numbers)])


def check_labels(labels: Any, count: int, place: str, first: int = 0) -> np.ndarray:
    """Check labels as the user gave them.

    Args:
        labels: (N,), whole numbers, also as floats, strings or booleans: an array, tensor or sequence.
        count: N, the number of images.
        place: what errors call the labels.
        first: the number that errors give to the first of them.

    Returns:
        (N,), whole numbers, strings or booleans.

    Raises:
        DhaError: if there is not exactly one label for each image, all of one kind, or one is too large or too long.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu()
    try:
        given = np.asarray(labels, dtype=object) if isinstance(labels, list | tuple) else np.asarray(labels)
    except ValueError as error:
        raise DhaError(f"{place} do not form a 1-D array ({error}); pass one label for each image") from error
    if given.ndim != 1:
        several = " (images of several classes at once are not classified)" if given.ndim == 2 else ""
        raise DhaError(f"{place} have shape {given.shape}; pass a 1-D array with one label for each image{several}")
    if len(given) != count:
        raise DhaError(f"{place} are {len(given)}, but there are {count} images; pass one label for each image")
    if given.dtype.kind not in "biufOSUmM":
        raise DhaError(f"{place} have the type {given.dtype!s:.80}; pass whole numbers (.astype(int)) or strings")
    if given.dtype.kind == "U" and given.size and np.ascontiguousarray(given).view(np.uint32).max() > sys.maxunicode:
        raise DhaError(f"{place} hold characters that do not exist; write the strings again")
    for value in np.unique(given).tolist() if given.dtype.kind == "U" else ():
        if problem := _problem(value):
            raise DhaError(f"{place}[{first + int(np.flatnonzero(given == value)[0])}] {problem}")
    if given.dtype.kind in "biU" or (given.dtype.kind == "u" and given.dtype.itemsize < 8):
        return given
    values = given.tolist()
    for index, value in enumerate(values):
        if problem := _problem(value):
            raise DhaError(f"{place}[{first + index}] {problem}")
    kinds = sorted({_kind(value) or "" for value in values}, reverse=True)
    if len(kinds) > 1:
        raise DhaError(f"{place} mix {' and '.join(kinds)}; pass one kind, for example with .astype(str)")
    return np.array(values, dtype={"strings": str, "booleans": bool}.get("".join(kinds), np.int64))


def is_missing(value: Any) -> bool:
    """Tell whether a value stands for none: None or NaN, in the ways of Python, NumPy and pandas."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _kind(value: Any) -> str | None:
    kinds = {"strings": str, "booleans": bool | np.bool_, "numbers": int | float | np.integer | np.floating}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), None)


def _problem(value: Any) -> str | None:
    """Return what keeps a value from being a label."""
    if is_missing(value):
        return f"is missing ({value}); label this image or leave it out"
    kind = _kind(value)
    if kind == "strings":
        if len(value) > _LONGEST:
            return f"has {len(value)} characters ({value[:20]!r}...); pass at most {_LONGEST}"
        return f"is {value!r:.80}; leave out the character of code 0" if "\0" in value else None
    if kind is None or (kind == "numbers" and value != value // 1):
        return f"is {value!r:.80} ({type(value).__name__}); pass whole numbers (.astype(int)) or strings"
    if not -(2**63) <= value < 2**63:
        return f"is {value!r:.80}; pass whole numbers of 64 bits, or strings"
    return None


def find_classes(labels: Labels, declared: Sequence[str] | None = None) -> Classes:
    """Return the classes that occur in `labels`: in the order of `declared` if given, else sorted."""
    present = labels.values.tolist()
    if declared is None:
        return tuple(present)
    return tuple(name for name in declared if name in set(present))


def encode(labels: Labels, classes: Classes, place: str, origin: str) -> Tensor:
    """Number labels by their place in `classes`.

    Args:
        labels: of N images.
        classes: K different classes of the same kind.
        place: what errors call the data.
        origin: where the classes come from, for errors.

    Returns:
        int64, (N,), in 0..K-1.

    Raises:
        DhaError: if a label is not among the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    for name in labels.values.tolist():
        if name not in numbers:
            known = ", ".join(repr(c) for c in classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise DhaError(
                f"class {name!r} in {place} is not among the {len(classes)} classes of {origin} ({known}); "
                "correct the label or leave these images out"
            )
    table = np.array([numbers[name] for name in labels.values.tolist()], dtype=np.int64)
    return torch.from_numpy(table[labels.numbers])
