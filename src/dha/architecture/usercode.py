"""Code of a person that is run by dha: a function in a file, called for a network."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from dha.errors import DhaError
from dha.paths import check_network

T = TypeVar("T")


def called(given: str, arguments: Mapping[str, int]) -> nn.Module:
    """Return the network that a function in a file makes. Nowhere else is a file of a user run.

    Args:
        given: "path/to/file.py:function".
        arguments: what the function is called with, as far as it asks for it by name.

    Raises:
        DhaError: if there is no such function, it asks for anything else, it raises, or it returns no module.
    """
    function = _functions.pop(given, None) or function_in(given)
    wanted = _wanted(function, arguments, given)
    with _surroundings(given):
        network = attempt(lambda: function(**wanted), f"network={given!r}: the function failed")
    if not isinstance(network, nn.Module):
        raise DhaError(f"network={given!r} returned {type(network).__name__}: it must return a torch.nn.Module")
    return network


_functions: dict[str, Callable[..., Any]] = {}
"""Those that were asked for before they are called."""


def prepare_call(given: str) -> None:
    """Run a file for the function in it that ``called`` will call next, to find out early whether it can be run.

    Raises:
        DhaError: if there is no such function, or the file cannot be run.
    """
    _functions.clear()
    _functions[given] = function_in(given)


def function_in(given: str) -> Callable[..., Any]:
    """Return a function in a file, which is run for it.

    Args:
        given: "path/to/file.py:function".

    Raises:
        DhaError: if there is no such function, or the file cannot be run.
    """
    check_network(given)
    path, _, name = given.rpartition(":")
    file = Path(path).expanduser()
    module = ModuleType(f"dha_network_{file.stem}")
    module.__file__ = str(file)
    # As for any script: its module can be found by name.
    sys.modules[module.__name__] = module
    with _surroundings(given):
        code = attempt(lambda: compile(file.read_bytes(), path, "exec"), f"network={given!r}: {path} cannot be read")
        attempt(lambda: exec(code, vars(module)), f"network={given!r}: running {path} failed")
    function = getattr(module, name, None)
    if not callable(function):
        raise DhaError(f"network={given!r}: {path} has no function {name!r}")
    return function


@contextmanager
def _surroundings(given: str) -> Iterator[None]:
    """Let code import its neighbours, as any script may, and stay in the working directory."""
    folder, place = str(Path(given.rpartition(":")[0]).expanduser().resolve().parent), os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        os.chdir(place)
        with suppress(ValueError):
            sys.path.remove(folder)


def _wanted(function: Callable[..., Any], arguments: Mapping[str, int], given: str) -> dict[str, int]:
    wanted = {}
    parameters = attempt(lambda: inspect.signature(function).parameters, f"network={given!r}: what it takes is unknown")
    for name, parameter in parameters.items():
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
