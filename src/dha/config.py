"""Everything a run can be told, as one tree of dataclasses: the same names in Python, YAML and on the command line."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dha.errors import DhaError

PARTS = ("architecture", "augmentation", "hyperparameters")


@dataclass
class Section:
    """Gives a dataclass scikit-learn's parameter access: ``set_params(architecture__channels=8)`` reaches into it."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]

    def set_params(self, **values: Any) -> "Section":
        """Set fields by name; a ``DhaError`` names an unknown one."""
        for name, value in values.items():
            if name not in self.get_params():
                raise DhaError(f"{type(self).__name__} has no {name!r}: choose from {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self


@dataclass
class ArchitectureConfig(Section):
    """How the network is built and searched.

    Args:
        cells: number of cells; those at one and two thirds of the depth halve height and width.
        channels: channels of a node in the first cell.
        resolution: largest side in pixels that cells work on; the stem halves images until they fit.
        nodes: nodes per cell.
        code_size: length of the compressed code of each node.
        penalty: weight of the L1 norm in the LASSO that recovers the sparse codes.
        learning_rate: of Adam on the compressed codes.
        deadline: share of the run after which the search ends at the latest; the rest belongs to the final network.
        tolerance: a node freezes when its sparse code moves at most this far between two recoveries.
    """

    cells: int = 5
    channels: int = 16
    resolution: int = 20
    nodes: int = 4
    code_size: int = 7
    penalty: float = 0.1
    learning_rate: float = 0.005
    deadline: float = 0.4
    tolerance: float = 0.001


@dataclass
class AugmentationConfig(Section):
    """How the augmentation policy is learned.

    Args:
        rule: "validation" (pairs whose images help the validation loss) or "adversarial" (pairs with high training
            loss).
        structure: "slots" (one softmax for each of the two operations) or "pairs" (a free matrix over all ordered
            pairs).
        identity: probability of leaving the image alone, in each of the two slots, at the start.
        learning_rate: of Adam on the logits.
    """

    rule: Literal["validation", "adversarial"] = "validation"
    structure: Literal["slots", "pairs"] = "slots"
    identity: float = 0.5
    learning_rate: float = 0.02


@dataclass
class HyperparametersConfig(Section):
    """Optimiser settings of the network weights: where they start, and how fast those that are learned may move.

    Args:
        learning_rate: peak of the schedule at the start.
        weight_decay: L2 coefficient at the start.
        momentum: of SGD.
        warmup: share of the run in which the learning rate rises linearly.
        rate: how far the logarithm of a learned value moves per update at full agreement of the gradients; follows the
            schedule.
        resting_cosine: cosine between validation gradient and update at which the learning rate stays where it is.
    """

    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.05
    rate: float = 2.0
    resting_cosine: float = -0.04


@dataclass(eq=False)
class Config:
    """The settings of a run.

    Args:
        budget: wall-clock time for everything, "90s", "10m", "1.5h" or seconds. When neither this nor epochs is given,
            40 ms per training image, at least half a minute and at most 20 minutes.
        epochs: passes over the training images instead of a budget.
        space: the search space.
        learn: which parts are learned beside the weights, separated by commas: architecture, augmentation,
            hyperparameters; or none.
        image_size: side in pixels that images are brought to; when not given, their own, at most 64.
        batch_size: images per step.
        every: policy and hyper-parameters learn from one validation batch every this many steps.
        validation_fraction: share of the training images held out to learn policy and hyper-parameters, where the
            source has none.
        test_fraction: share of the images held out for the final test, where the source has no test images.
        seed: of weights, dictionaries, order of images and draws.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto", "32" or "bf16".
        on_bad_image: "error", or "skip" files that are not images.
        architecture, augmentation, hyperparameters: the settings of each part.
    """

    budget: str | float | None = None
    epochs: int | None = None
    space: Literal["cells"] = "cells"
    learn: str | Sequence[str] = "architecture,augmentation,hyperparameters"
    image_size: int | None = None
    batch_size: int = 64
    every: int = 8
    validation_fraction: float = 0.1
    test_fraction: float = 0.15
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32", "bf16"] = "auto"
    on_bad_image: Literal["error", "skip"] = "error"
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    hyperparameters: HyperparametersConfig = field(default_factory=HyperparametersConfig)


def config_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested plain values, ready for YAML or JSON."""
    values = {f.name: getattr(config, f.name) for f in fields(Config)}
    values["learn"] = ",".join(learned_parts(config.learn)) or "none"
    return {k: asdict(v) if isinstance(v, Section) else v for k, v in values.items()}


def learned_parts(learn: str | Sequence[str]) -> tuple[str, ...]:
    """Return the parts to learn in their canonical order.

    Raises:
        DhaError: if a name is not one of the three parts or "none".
    """
    names = [n.strip() for n in (learn.split(",") if isinstance(learn, str) else learn)]
    names = [n for n in names if n and n != "none"]
    for name in names:
        if name not in PARTS:
            raise DhaError(f"learn={name!r}: choose from {', '.join(PARTS)}, separated by commas, or none")
    return tuple(p for p in PARTS if p in names)


def parse_budget(budget: str | float) -> float:
    """Return a budget in seconds from "90s", "10m", "1.5h" or a number of seconds.

    Raises:
        DhaError: if it is not a positive, finite length of time.
    """
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h)?\s*", budget)
        seconds = float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2], 1) if match else math.nan
    else:
        seconds = float(budget)
    if not (math.isfinite(seconds) and seconds > 0):
        raise DhaError(f'budget={budget!r} is not a length of time: write "90s", "10m", "1.5h" or seconds')
    return seconds


def check(config: Config) -> None:
    """Raise a ``DhaError`` that names the first setting that is out of range and its range."""
    learned_parts(config.learn)
    if config.budget is not None:
        if config.epochs is not None:
            raise DhaError(f"budget={config.budget!r} and epochs={config.epochs}: give one of the two")
        parse_budget(config.budget)
    for name, low, high in _RANGES:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if value is None:
            continue
        kind = int if isinstance(low, int) else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            wanted = "a whole number" if isinstance(low, int) else "a number"
            raise DhaError(f"{name}={value!r}: expected {wanted} between {low} and {high}")
    for prefix, kind in (("", Config), ("augmentation.", AugmentationConfig)):
        section = config if kind is Config else config.augmentation
        for name, hint in get_type_hints(kind).items():
            value = getattr(section, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise DhaError(f"{prefix}{name}={value!r}: choose from {', '.join(get_args(hint))}")


_RANGES: list[tuple[str, float, float]] = [
    ("epochs", 1, 1_000_000),
    ("image_size", 4, 2048),
    ("batch_size", 2, 65536),
    ("every", 1, 10_000),
    ("validation_fraction", 0.01, 0.5),
    ("test_fraction", 0.01, 0.5),
    ("seed", 0, 2**31),
    ("architecture.cells", 1, 100),
    ("architecture.channels", 2, 4096),
    ("architecture.resolution", 4, 2048),
    ("architecture.nodes", 1, 16),
    ("architecture.code_size", 1, 64),
    ("architecture.penalty", 1e-4, 10.0),
    ("architecture.learning_rate", 0.0, 1.0),
    ("architecture.deadline", 0.0, 1.0),
    ("architecture.tolerance", 0.0, 100.0),
    ("augmentation.identity", 0.001, 0.999),
    ("augmentation.learning_rate", 0.0, 10.0),
    ("hyperparameters.learning_rate", 1e-8, 100.0),
    ("hyperparameters.weight_decay", 0.0, 1.0),
    ("hyperparameters.momentum", 0.0, 0.999),
    ("hyperparameters.warmup", 0.0, 0.9),
    ("hyperparameters.rate", 0.0, 10.0),
    ("hyperparameters.resting_cosine", -1.0, 1.0),
]
