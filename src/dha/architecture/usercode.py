"""Code of a person that is run by dha: a function in a file, called for a network."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from dha.errors import DhaError

FORM = "path/to/file.py:function"

T = TypeVar("T")


def called(given: str, arguments: Mapping[str, int]) -> nn.Module:
    """Return the network that a function in a file makes. Nowhere else is a file of a user run.

    Args:
        given: "path/to/file.py:function".
        arguments: what the function is called with, as far as it asks for it by name.

    Raises:
        DhaError: if there is no such function, it asks for anything else, it raises, or it returns no module.
    """
    path, _, name = given.rpartition(":")
    if not path or not name.isidentifier():
        raise DhaError(f"network={given!r} names no function in a file: write {FORM}")
    file = Path(path)
    if not file.is_file():
        raise DhaError(f"network={given!r}: there is no file {path}: write {FORM}")
    module = ModuleType(f"dha_network_{file.stem}")
    module.__file__ = str(file)
    # As for any script: its module can be found by name, and it may import its neighbours.
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        code = attempt(lambda: compile(file.read_bytes(), path, "exec"), f"network={given!r}: {path} cannot be read")
        attempt(lambda: exec(code, vars(module)), f"network={given!r}: running {path} failed")
        function = getattr(module, name, None)
        if not callable(function):
            raise DhaError(f"network={given!r}: {path} has no function {name!r}")
        wanted = _wanted(function, arguments, given)
        network = attempt(lambda: function(**wanted), f"network={given!r}: the function failed")
    finally:
        with suppress(ValueError):
            sys.path.remove(str(file.resolve().parent))
    if not isinstance(network, nn.Module):
        raise DhaError(f"network={given!r} returned {type(network).__name__}: it must return a torch.nn.Module")
    return network


def _wanted(function: Callable[..., Any], arguments: Mapping[str, int], given: str) -> dict[str, int]:
    wanted = {}
    for name, parameter in inspect.signature(function).parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and name in arguments:
            wanted[name] = arguments[name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise DhaError(
                f"network={given!r} asks for {name!r}: it can be given {', '.join(arguments)}; give others a default"
            )
    return wanted


def attempt(action: Callable[[], T], message: str) -> T:
    """Return what ``action`` does; what it raises is the cause of a ``DhaError`` that begins with ``message``."""
    try:
        return action()
    except DhaError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:300]
        raise DhaError(f"{message} ({type(error).__name__}: {said})") from error
