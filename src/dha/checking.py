"""Whether settings can be used: types as declared, values in their ranges, and what goes together."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dha.config import LEARNED_BY_DEFAULT, PARTS, Config, config_dict, learned_parts, parse_budget
from dha.errors import DhaError, did_you_mean


def check(config: Config) -> None:
    """Raise a ``DhaError`` that names the first setting of another type, or out of its range, and what is expected."""
    ranges = {name: (low, high) for name, low, high in _RANGES}
    for prefix in ("", *(f"{part}." for part in PARTS)):
        section: Any = getattr(config, prefix[:-1]) if prefix else config
        for name, hint in get_type_hints(type(section) if prefix else Config).items():
            _check_value(f"{prefix}{name}", getattr(section, name), hint, ranges.get(f"{prefix}{name}"))
    learned_parts(config.learn)
    for name in ("label_smoothing", "drop_path"):
        if name in config.hyperparameters.learned() and not getattr(config.hyperparameters, name):
            raise DhaError(f"hyperparameters.{name}=0: to be learned it has to start above 0, it moves by factors")
    settings = config.hyperparameters
    # Where it is learned by default, it stays 0.
    if settings.weight_decay == 0 and "weight_decay" in settings.learned() and settings.learn != LEARNED_BY_DEFAULT:
        raise DhaError("hyperparameters.weight_decay=0: to be learned it has to start above 0, it moves by factors")
    if config.budget is not None:
        if config.epochs is not None:
            raise DhaError(f"budget={config.budget!r} and epochs={config.epochs}: give one of the two")
        parse_budget(config.budget)
    if isinstance(config.network, str) and config.network.startswith("<"):
        raise DhaError(
            f"network={config.network!r} stands for a module, which a settings file cannot hold: give the module in "
            "Python, or network=path/to/file.py:function"
        )
    if config.network is not None and config.space != "auto":
        network = config_dict(config)["network"]
        raise DhaError(f"space={config.space!r} and network={network!r}: give one of the two")
    if config.architecture.squeeze_excite and config.space != "mobile":
        raise DhaError(f"architecture.squeeze_excite=True and space={config.space!r}: only space='mobile' has it")


def _check_value(name: str, value: Any, hint: Any, limits: tuple[float, float] | None) -> None:
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            choices = get_args(hint)
            near = did_you_mean(value, choices) if isinstance(value, str) else ""
            raise DhaError(f"{name}={value!r:.80}: choose from {', '.join(choices)}{near}")
    elif limits is None or (value is None and NoneType in get_args(hint)):
        if not _fits(value, hint):
            raise DhaError(f"{name}={value!r:.80}: expected {_described(hint)}")
    else:
        low, high = limits
        kind = int if isinstance(low, int) else float
        if value is None or not _fits(value, kind) or not low <= value <= high:
            raise DhaError(f"{name}={value!r:.80}: expected {_NAMES[kind]} between {low} and {high}")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    # A bool is an int to Python, and to nobody else.
    numbers = {int: int, float: (int, float)}
    return isinstance(value, numbers.get(hint, hint)) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_described, get_args(hint)))
    if get_origin(hint) is Sequence:
        return "a list of strings"
    if get_origin(hint) is dict:
        return "a weight for each class"
    return _NAMES[hint] if hint in _NAMES else str(hint.__name__)


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    NoneType: "nothing",
}

_RANGES: list[tuple[str, float, float]] = [
    ("epochs", 1, 1_000_000),
    ("image_size", 4, 2048),
    ("batch_size", 2, 65536),
    ("every", 1, 10_000),
    ("validation_fraction", 0.01, 0.5),
    ("settle", 0.0, 1.0),
    ("test_fraction", 0.01, 0.5),
    ("seed", 0, 2**31),
    ("devices", 1, 1024),
    ("num_nodes", 1, 65536),
    ("checkpoint_every", 0.0, 1e9),
    ("max_parameters", 1, 10**12),
    ("max_flops", 1, 10**15),
    ("architecture.width", 2, 4096),
    ("architecture.depth", 1, 100),
    ("architecture.resolution", 4, 2048),
    ("architecture.nodes", 1, 16),
    ("architecture.choose", 1, 7),
    ("architecture.code_size", 1, 64),
    ("architecture.penalty", 1e-4, 10.0),
    ("architecture.learning_rate", 0.0, 1.0),
    ("architecture.recover_every", 1, 1_000_000),
    ("architecture.deadline", 0.0, 1.0),
    ("architecture.tolerance", 0.0, 100.0),
    ("augmentation.memory", 0.001, 100.0),
    ("augmentation.temperature", 1e-4, 100.0),
    ("augmentation.harm", 0.0, 100.0),
    ("augmentation.full_gap", 0.001, 1.0),
    ("augmentation.until", 0.0, 1.0),
    ("augmentation.identity", 0.001, 0.999),
    ("augmentation.learning_rate", 0.0, 10.0),
    ("hyperparameters.learning_rate", 1e-8, 100.0),
    ("hyperparameters.weight_decay", 0.0, 1.0),
    ("hyperparameters.momentum", 0.0, 0.999),
    ("hyperparameters.label_smoothing", 0.0, 0.9),
    ("hyperparameters.drop_path", 0.0, 0.9),
    ("hyperparameters.warmup", 0.0, 0.9),
    ("hyperparameters.horizon", 0.0, 1.0),
    ("hyperparameters.rate", 0.0, 100.0),
    ("hyperparameters.resting_cosine", -1.0, 1.0),
]
