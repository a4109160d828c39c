"""Whether the files and folders that a command is given are there and can be read, before anything else is loaded."""

import itertools
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dha.config import Config
from dha.errors import DhaError, did_you_mean

NETWORK = "path/to/file.py:function"
"""How a network in a file is named."""

HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
"""What data sets on the Hugging Face Hub are called."""

HUB = "hf://datasets/"
"""What may stand before the name of a data set on the Hub, to tell it from a path."""

DATA_FILE = r"\.(npz|npy|csv|tsv|ndjson|parquet|tar|tgz|gz|zip|json|jsonl|txt|xlsx?|h5|hdf5)$"
"""What names of files end in, which nobody looks for on the Hub."""


def expanded(path: str | Path, what: str) -> Path:
    """Return a path with a leading ~ resolved.

    Raises:
        DhaError: if there is no such user, or no file can have such a name.
    """
    try:
        found = Path(path).expanduser()
        name = os.fspath(found).encode(errors="surrogateescape")
    except RuntimeError as error:
        raise DhaError(
            f"{what}={str(path)!r:.300}: there is no such user: write ./~... for a file of that name"
        ) from error
    except UnicodeError as error:
        raise DhaError(f"{what}={str(path)!r:.300} is no name that a file can have") from error
    if 0 in name:
        raise DhaError(f"{what}={str(path)!r:.300} is no name that a file can have")
    return found


def check_source(source: Any, what: str = "source") -> None:
    """Check that a source which is named is there and can be read; what is not named, or is on a hub, passes.

    Raises:
        DhaError: if it is not.
    """
    if not isinstance(source, str | Path) or source == "digits" or re.fullmatch(HUB + HUB_NAME, str(source)):
        return
    path = expanded(source, what)
    if not str(source):
        raise DhaError(f"{what}='': name a folder or file with images, or digits")
    mode = _mode(path, source, what)
    if mode is None:
        similar = _similar(path)
        if similar and _named_like_on_the_hub(source):
            similar += f" (of the Hugging Face Hub: {HUB}{source})"
        if similar or not _named_like_on_the_hub(source):
            raise DhaError(f"{what}={str(source)!r:.300}: there is no such file or folder{similar}")
        return
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DhaError(f"{what}={str(source)!r} is neither a folder nor a file: name one with images")
    _check_readable(path, source, what, stat.S_ISDIR(mode))


def check_file(file: str | Path, what: str, remedy: str = "name a file that is there") -> Path:
    """Return the path of a file that is there and can be read.

    Raises:
        DhaError: if it is not, which says ``remedy``.
    """
    path = expanded(file, what)
    mode = _mode(path, file, what)
    if mode is None:
        raise DhaError(f"{what}={str(file)!r:.300}: there is no such file{_similar(path) or ': ' + remedy}")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise DhaError(f"{what}={str(file)!r} is {kind}: {remedy}")
    _check_readable(path, file, what, False)
    return path


def check_network(network: str) -> None:
    """Check that a network in a file is named as one, and the file is there.

    Raises:
        DhaError: if not.
    """
    file, _, name = network.rpartition(":")
    if not file or not name.isidentifier():
        raise DhaError(f"network={network!r:.300} names no function in a file: write {NETWORK}")
    path = expanded(file, "network")
    if _mode(path, network, "network") is None:
        raise DhaError(f"network={network!r:.300}: there is no file {file}{_similar(path) or f': write {NETWORK}'}")
    check_file(file, "network", f"write {NETWORK}")


def check_model(folder: str | Path) -> None:
    """Check that there is a folder of a model with its files.

    Raises:
        DhaError: if there is not.
    """
    path = expanded(folder, "model")
    mode = _mode(path, folder, "model")
    if mode is None:
        raise DhaError(f"model={str(folder)!r:.300}: there is no such folder{_similar(path)}")
    if stat.S_ISDIR(mode) and _mode(path / "model.json", folder, "model") is None:
        inner = path / "model"
        hint = f"give {str(inner)!r}" if _is_folder(inner) else "give the folder `model` of a run"
        raise DhaError(f"model={str(folder)!r} is not a dha model (no model.json in it): {hint}")
    if not stat.S_ISDIR(mode):
        raise DhaError(f"model={str(folder)!r} is not a folder: give the folder `model` of a run")
    for name in ("model.json", "weights.safetensors"):
        check_file(path / name, "model", "copy the model again")


def check_images(files: Sequence[str], all_of_them: bool) -> None:
    """Check that image files are there.

    Args:
        files: their names.
        all_of_them: whether all have to be; else one is enough, and what becomes of the others is told later.

    Raises:
        DhaError: if not, which names the first.
    """
    missing = next((file for file in files if not os.path.lexists(file)), None)
    if missing is not None and (all_of_them or not any(os.path.lexists(file) for file in files)):
        check_file(missing, "image")


def check_device(name: str) -> None:
    """Check that a device is named as torch does it; whether it is there is left to ``dha.engine.present_device``.

    Raises:
        DhaError: if not.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise DhaError(f"device={name!r:.80}: choose from auto, cpu, cuda, cuda:1, ... and mps")


def check_files(config: Config) -> None:
    """Check that the files which the settings name are there.

    Raises:
        DhaError: if one is not.
    """
    if isinstance(config.network, str):
        check_network(config.network)
    if isinstance(config.class_weight, str) and config.class_weight != "balanced":
        check_file(config.class_weight, "class_weight", "write none, balanced, or the name of a file")
    if config.augmentation.start is not None:
        check_file(config.augmentation.start, "augmentation.start", "name the policy.json of a run")


def check_place(out: str | Path) -> None:
    """Check that a folder for a run can be made, and files in it, by making them; they are removed again.

    Raises:
        DhaError: if they cannot.
    """
    path = expanded(out, "out")
    made: list[Path] = []
    try:
        for place in (*reversed(path.parents), path):
            with suppress(FileExistsError):
                place.mkdir()
                made.append(place)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DhaError(
            f"out={str(out)!r} cannot be written to ({reason}): choose another folder, or make room"
        ) from error
    finally:
        for place in reversed(made):
            with suppress(OSError):
                place.rmdir()


def numbered_folder(source: str) -> str:
    """Make a folder runs/NAME-N for a run with a source: N is the first number that no other folder has.

    Raises:
        DhaError: if it cannot be made.
    """
    name = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(source)).stem if source != "digits" else source)[:100]
    try:
        os.makedirs("runs", exist_ok=True)
        for number in itertools.count(1):
            folder = os.path.join("runs", f"{name or 'run'}-{number}")
            with suppress(FileExistsError):
                os.mkdir(folder)
                return folder
    except OSError as error:
        raise DhaError(f"out: no folder can be made in 'runs' ({error.strerror}): name one, --out FOLDER") from error
    raise AssertionError


def _mode(path: Path, given: str | Path, what: str) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DhaError(f"{what}={str(given)!r:.300} cannot be read ({reason}): choose another, or allow it") from error


def _check_readable(path: Path, given: str | Path, what: str, folder: bool) -> None:
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise DhaError(f"{what}={str(given)!r} cannot be read (Permission denied): allow it, or choose another")


def _named_like_on_the_hub(source: str | Path) -> bool:
    if not isinstance(source, str) or not re.fullmatch(HUB_NAME, source) or re.search(DATA_FILE, source, re.I):
        return False
    owner, slash, _ = source.rpartition("/")
    return not (slash and os.path.lexists(owner))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _similar(path: Path) -> str:
    """Return a hint to the file whose name is nearest, if one is near, in the nearest folder that is there."""
    while path.parent != path and not _is_folder(path.parent):
        path = path.parent
    try:
        names: Iterable[str] = sorted(os.listdir(path.parent))[:10_000]
    except OSError:
        return ""
    hint = did_you_mean(path.name, names)
    near = hint.removeprefix(": did you mean ").removesuffix("?")
    return f": did you mean {str(path.parent / near)!r}?" if hint else ""
