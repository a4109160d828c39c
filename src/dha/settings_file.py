"""Settings in a YAML file, such as ``config.yaml`` of a run."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dha.config import PARTS, Config
from dha.errors import DhaError, did_you_mean, one_line
from dha.paths import check_file

LARGEST = 2**20
"""The most bytes that a file of settings may have."""


def read_settings(file: str | Path, what: str = "config") -> Config:
    """Return the settings in a YAML file; those that it lacks have their defaults.

    Args:
        file: to be read.
        what: errors call it so.

    Raises:
        DhaError: if it cannot be read, is no YAML, or holds anything that is no setting. Whether the values are in
            their ranges is left to ``dha.checking.check``.
    """
    place = f"{what}={str(file)!r}"
    path = check_file(file, what, "name a YAML file with settings, such as config.yaml of a run")
    with open(path, "rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DhaError(f"{place} has more than {LARGEST} bytes: expected a YAML file with settings")
    try:
        values = parsed(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DhaError(f"{place} is not written in UTF-8: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise DhaError(f"{place} is not YAML ({one_line(error)[:200]}): correct it") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)[:200]
        raise DhaError(f"{place} cannot be read ({reason}): correct it") from error
    config = Config()
    apply(config, values, place)
    return config


def parsed(text: str) -> Any:
    """Return the values in plain YAML.

    Raises:
        yaml.YAMLError: if it is none, or has aliases, or a key twice.
        ValueError, RecursionError: for numbers of thousands of digits, and brackets in brackets.
    """
    return yaml.load(text, _Loader)


def apply(config: Config, values: Any, place: str) -> None:
    """Set settings from nested values as a YAML file has them; an empty section says nothing.

    Raises:
        DhaError: for a name that is no setting, and a section that is none.
    """
    for prefix, section, given in _sections(config, values, place):
        hints = get_type_hints(type(section))
        names = [name for name in hints if prefix or name not in PARTS]
        for name, value in given.items():
            if not prefix and name in PARTS:
                continue
            if name not in names:
                raise DhaError(
                    f"{place} has a setting {prefix}{name!s:.80} that does not exist{did_you_mean(str(name), names)}"
                )
            setattr(section, name, converted(value, hints[name]))


def _sections(config: Config, values: Any, place: str) -> list[tuple[str, Any, Mapping[Any, Any]]]:
    found = [("", config, _mapping(values, place))]
    for part in PARTS:
        found.append((f"{part}.", getattr(config, part), _mapping(found[0][2].get(part), f"{place}, {part}")))
    return found


def _mapping(values: Any, place: str) -> Mapping[Any, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise DhaError(f"{place}: expected lines of the form `name: value`, got {one_line(repr(values)[:80])}")
    return values


def converted(value: Any, hint: Any) -> Any:
    """Return a value of the command line or of YAML as the type of its setting; as it is where it cannot be one, for
    ``dha.checking.check`` to refuse.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if get_origin(hint) is Literal:
        return str(value) if type(value) is int else value  # precision: 32
    if not isinstance(value, str):
        return value
    if NoneType in kinds and value.lower() in ("none", "null"):
        return None
    if bool in kinds and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return _whole(value) if kind is int else float(value)
            except (ValueError, OverflowError):
                pass
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 5e7
        if not number.is_integer():
            raise
        return int(number)


class _Loader(yaml.SafeLoader):
    """Reads plain YAML. Settings need no aliases, and a few lines of them stand for any amount of memory and time."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in (key for key, times in Counter(keys).items() if times > 1):
            raise yaml.MarkedYAMLError(None, None, f"{key} is set twice", node.start_mark)
        return super().construct_mapping(node, deep)
