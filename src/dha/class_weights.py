"""Weights of classes and images: how much more some count than others, in every loss of a run."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dha.config import Config
from dha.data import Classes, LabelledImages, Source, Splits
from dha.errors import DhaError, one_line
from dha.paths import check_file
from dha.settings_file import LARGEST, parsed


def read_class_weight(config: Config) -> Config:
    """Return the settings with the class weights of a file in the place of its name.

    Raises:
        DhaError: if the file cannot be read, or a weight is not a positive, finite number.
    """
    weights = config.class_weight
    if isinstance(weights, str) and weights != "balanced":
        weights = _read(weights)
    if not isinstance(weights, dict):
        return config
    for name, weight in weights.items():
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise DhaError(
                f"class_weight of {_shown(name)} is {_shown(weight)}: give every class a positive, finite number"
            )
    # In types that checkpoints and YAML hold.
    weights = {name.item() if isinstance(name, np.generic) else name: float(w) for name, w in weights.items()}
    settings = {field.name: getattr(config, field.name) for field in fields(Config)}
    return Config(**{**settings, "class_weight": weights})


def _read(file: str) -> dict[Any, float]:
    place = f"class_weight={file!r}"
    path = check_file(file, "class_weight", "write none, balanced, or the name of a JSON, YAML or CSV file")
    with open(path, "rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DhaError(f"{place} has more than {LARGEST} bytes: expected a file with a weight for each class")
    expected = "expected a weight for each class, as in `cat: 2.5`, or with the suffix .csv `cat,2.5`"
    try:
        text = content.decode("utf-8-sig")
        values = _rows(text) if Path(file).suffix.lower() == ".csv" else parsed(text)
    except (yaml.YAMLError, csv.Error, ValueError, RecursionError) as error:
        raise DhaError(f"{place} cannot be read ({one_line(error)[:200]}): {expected}") from error
    if not isinstance(values, dict) or not values:
        raise DhaError(f"{place} holds {_shown(values)}: {expected}")
    return values


def _rows(text: str) -> dict[str, float]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and len(rows[0]) == 2 and not _is_number(rows[0][1]):
        rows = rows[1:]  # the names of the columns
    weights = {}
    for row in rows:
        if len(row) != 2 or not _is_number(row[1]):
            raise ValueError(f"the row {','.join(row)!r:.80} is not a class and a number")
        if row[0] in weights:
            raise ValueError(f"class {row[0]!r:.80} has two rows")
        weights[row[0]] = float(row[1])
    return weights


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def with_sample_weights(source: Source, weights: Any) -> Source:
    """Return images with a weight for each.

    Args:
        source: images that were handed over with their labels, all of them to train on.
        weights: one number per image, finite and at least 0.

    Raises:
        DhaError: if they are others, or there are not as many as images.
    """
    if weights is None:
        return source
    if source.validation is not None or source.test is not None or source.skipped:
        raise DhaError("sample_weight goes with images and labels alone, all of them to train on, none left out")
    try:
        values = np.asarray(weights, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DhaError(f"sample_weight is {_shown(weights)}: pass one number per image") from error
    if values.shape != (len(source.train),):
        count = len(source.train)
        raise DhaError(f"sample_weight has the shape {values.shape}: pass one number for each of the {count} images")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise DhaError(f"sample_weight[{wrong[0]}] is {values[wrong[0]]}: pass finite numbers of at least 0")
    return replace(source, train=source.train.weighted(torch.from_numpy(values)))


def weighted(splits: Splits, class_weight: Any) -> Splits:
    """Return the parts with a weight for each image: that of its class, times its own if it has one.

    The mean over the training images is 1, so that a learning rate means what it does without weights; validation
    images are weighed alike. Without any weights the parts stay as they are. Test images have none.

    Args:
        splits: the images.
        class_weight: None, "balanced" (of a class with n_k of n training images in K classes n / (K n_k)), or a weight
            for each class.

    Raises:
        DhaError: if a class is unknown or has no weight, or all training images weigh nothing.
    """
    train, validation = splits.train, splits.validation
    if class_weight is None and train.weights is None:
        return splits
    table = torch.ones(len(splits.classes), dtype=torch.float64)
    if class_weight == "balanced":
        counts = torch.bincount(train.labels.cpu(), minlength=len(table))
        table = len(train) / (len(table) * counts.double().clamp_min(1))
    elif class_weight is not None:
        table = torch.tensor(_by_class(splits.classes, class_weight), dtype=torch.float64)

    def raw(part: LabelledImages) -> torch.Tensor:
        own = 1.0 if part.weights is None else part.weights.double()
        return table[part.labels] * own

    mean = raw(train).mean()
    if mean == 0 or raw(validation).sum() == 0:
        raise DhaError("sample_weight is 0 for all training or all validation images: give more of them a weight")
    train, validation = (part.weighted((raw(part) / mean).float()) for part in (train, validation))
    return replace(splits, train=train, validation=validation)


def _by_class(classes: Classes, weights: Mapping[Any, float]) -> list[float]:
    # By what is written: a class of folders named 1, 2, ... is a string, and a number in a file of weights.
    known = {str(name): float(weight) for name, weight in weights.items()}
    if len(known) < len(weights):
        raise DhaError("class_weight names a class twice, as a number and as a string: name it once")
    names = [str(name) for name in classes]
    for name in known:
        if name not in names and name in ("True", "False"):
            raise DhaError("class_weight names the class true or false: write yes, no, true and false in quotes")
        if name not in names:
            listed = ", ".join(map(_shown, classes[:20])) + (", ..." if len(classes) > 20 else "")
            raise DhaError(f"class_weight has {_shown(name)}, which is no class: the classes are {listed}")
    for name in names:
        if name not in known:
            raise DhaError(f"class_weight has no weight for class {_shown(name)}: give every class one")
    return [known[name] for name in names]


def _shown(value: Any) -> str:
    return one_line(repr(value))[:80]
