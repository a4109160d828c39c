"""Train, validation and test parts for one run."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dha.data.duplicates import find_duplicates
from dha.data.images import LabelledImages
from dha.data.labels import Classes
from dha.data.report import DataReport
from dha.data.sources import Source
from dha.data.stratify import hold_out
from dha.errors import DataWarning, DhaError

_TEST_SEED = 7_919  # fixed: a test part that moved with the run's seed would leak into the next run's training

_UNEVEN = 10
"""How many times as many images one class may have as another."""


@dataclass(frozen=True)
class Splits:
    """The parts that one run works with.

    Attributes:
        train, validation, test: the images; `test` is None if there is none.
        classes: what labels stand for.
        held_out: whether the validation images were taken out of the training images.
        report: what was read, by these parts.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None
    classes: Classes
    held_out: bool
    report: DataReport = field(default_factory=DataReport)


def split(
    source: Source, *, validation_fraction: float, test_fraction: float, seed: int, weighted: bool = False
) -> Splits:
    """Take the parts that a source has and hold out those that it lacks, a share of every class.

    Args:
        source: the labelled images.
        validation_fraction: share, in (0, 1), of the training images (less the test part, if one is held out) to hold
            out if the source has no validation part.
        test_fraction: share, in [0, 1), of the training images to hold out if the source has no test part; 0 for none.
        seed: decides the validation part, at least 0. The test part is the same for every seed.
        weighted: whether classes or images will have weights: then nothing is said of uneven classes.

    Returns:
        Disjoint parts with at least one image of each class in every part that was held out and in train.

    Warns:
        DataWarning: if an image of one part is in another part too, with counts; if an image is in two classes; if a
            class has more than ten times as many training images as another.

    Raises:
        DhaError: if a fraction or the seed is out of range, or a class has too few images to be split.
    """
    if not 0 < validation_fraction < 1:
        raise DhaError(f"validation_fraction is {validation_fraction}; pass a number between 0 and 1, both excluded")
    if not 0 <= test_fraction < 1:
        raise DhaError(f"test_fraction is {test_fraction}; pass 0 (no test part) or a number below 1")
    if seed < 0:
        raise DhaError(f"seed is {seed}; pass 0 or more")
    train, validation, test = source.train, source.validation, source.test
    hold_validation, hold_test = validation is None, test is None and test_fraction > 0
    _check_counts(source, needed=1 + hold_validation + hold_test)
    if hold_test:
        train, test = _hold_out(train, test_fraction, _TEST_SEED, keep=1 + hold_validation)
    if hold_validation:
        train, validation = _hold_out(train, validation_fraction, seed, keep=1)
    assert validation is not None
    parts = {"train": train, "validation": validation, "test": test}
    present = {name: part for name, part in parts.items() if part is not None}
    held_out = [name for name, held in (("validation", hold_validation), ("test", hold_test)) if held]

    def names(part: str, rows: Sequence[int]) -> list[str]:
        origin = "train" if part in held_out else part
        return source.names[origin](rows) if origin in source.names else [f"{origin}[{row}]" for row in rows]

    conflicts = find_duplicates(present, source.classes, source.name, names)
    if not weighted:
        _warn_of_uneven(source)
    report = source.report.with_parts({name: part.labels for name, part in present.items()}, held_out, conflicts)
    return Splits(train, validation, test, source.classes, hold_validation, replace(report, weighted=weighted))


def _warn_of_uneven(source: Source) -> None:
    counts = np.bincount(source.train.labels.numpy(), minlength=len(source.classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] > _UNEVEN * counts[least]:
        warnings.warn(
            f"{source.name}: class {source.classes[most]!r} has {counts[most]} training images, "
            f"{source.classes[least]!r} has {counts[least]}: rare classes are learned badly, --class-weight balanced "
            "gives every class the same weight",
            DataWarning,
            stacklevel=3,
        )


def _hold_out(data: LabelledImages, fraction: float, seed: int, keep: int) -> tuple[LabelledImages, LabelledImages]:
    held = hold_out(data.labels.numpy(), fraction, np.random.default_rng(seed), keep)
    return data.select(~held), data.select(held)


def _check_counts(source: Source, needed: int) -> None:
    counts = np.bincount(source.train.labels.numpy(), minlength=len(source.classes))
    scarce = np.flatnonzero(counts < needed)
    if len(scarce):
        raise DhaError(
            f"class {source.classes[scarce[0]]!r} of {source.name} has {counts[scarce[0]]} training image(s), but "
            f"{needed} are needed to have it in every part; add images, remove the class, or give the parts yourself"
        )
