"""The folder of a run while it goes on: made, locked, with its settings in it; removed again if nothing came of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dha.checking import check
from dha.config import Config, config_dict
from dha.data import Cache
from dha.errors import DhaError, one_line, printable
from dha.files import lock, read_bytes, remove_temporary, write_text
from dha.ownership import CHECKPOINTS, DATA, HEADER, LEFT_OUT, MODEL_FILES, SETTINGS, check_out, unwritable
from dha.settings_file import parsed
from dha.state import resumed_config
from dha.terminal import first_process

_LARGEST = 2**20


@contextmanager
def opened(out: str | Path | None, source: Any, config: Config, resume: bool = False) -> Iterator[Path | None]:
    """Make the folder of a run, write the settings to it, and keep other runs out of it while the block lasts.

    What was made is removed again if the block ends with an error before anything was trained.

    Args:
        out: its name; None writes nothing.
        source: of the images.
        config: the settings as they were given.
        resume: whether the folder may hold a run that is not over.

    Raises:
        DhaError: if the folder holds anything else, is in use by another run, or cannot be written to.
    """
    if out is None:
        if resume:
            raise DhaError("resume=True and out=None: name the folder of the run to go on with")
        yield None
        return
    if not first_process():
        yield Path(out)
        return
    check_out(out, resume)
    folder = Path(out).absolute()  # Code of a user may change the working directory.
    made, handle, begun = [], None, True
    try:
        try:
            made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle = lock(folder)
            begun = check_out(out, resume)  # Once more: another run may have been here before.
            remove_temporary(folder, MODEL_FILES)
            if not begun:
                write_settings(folder, config, source)
            elif not os.access(folder, os.W_OK):
                raise PermissionError(0, "Permission denied")
        except OSError as error:
            raise unwritable(Path(out), error) from error
        yield Path(out)
    except BaseException:
        if not begun and not any((folder / name).exists() for name in (*CHECKPOINTS, "metrics.csv", "model")):
            for name in (SETTINGS, DATA, LEFT_OUT):
                (folder / name).unlink(missing_ok=True)
            Cache(folder=folder).remove()
        raise
    finally:
        for place in made:  # Where they are empty.
            with suppress(OSError):
                place.rmdir()
        if handle is not None:
            os.close(handle)


def write_settings(folder: Path, config: Config, source: Any) -> None:
    """Write ``config.yaml``.

    Raises:
        OSError: if it cannot be written.
    """
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    settings = yaml.safe_dump(_plain(config_dict(config)), sort_keys=False)
    write_text(folder / SETTINGS, f"{HEADER.decode()}{printable(repr(name))}\n{settings}")


def settings_of(folder: Path, saved: dict[str, Any] | None, given: Config) -> Config:
    """Return the settings by which a run goes on: those of its checkpoint, or else of its ``config.yaml``.

    Args:
        folder: of the run.
        saved: its checkpoint; None where there is none.
        given: what the user says now; what is left at its default is taken from the run.

    Raises:
        DhaError: if another value is given than the run was begun with, or the settings cannot be read.
    """
    place = folder / SETTINGS
    if saved is None and not place.exists():  # The first process of a new run has yet to write it.
        return given
    settings = _read(place) if saved is None else saved.get("config")
    if not isinstance(settings, dict):
        raise DhaError(f"the run in {str(folder)!r} has no settings: begin again in another folder")
    config = resumed_config(given, settings)
    check(config)
    return config


def _read(file: Path) -> Any:
    try:
        return parsed(read_bytes(file, _LARGEST).decode("utf-8"))
    except DhaError:
        raise
    except OSError as error:
        raise DhaError(f"{str(file)!r} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error)[:200]
        raise DhaError(
            f"{str(file)!r} is damaged ({reason}) and there is no checkpoint: begin again in another folder"
        ) from error


def _plain(value: Any) -> Any:
    """Return settings as YAML can hold them: numbers and strings of NumPy are not its own."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    kinds = (kind for kind in (bool, int, float, str) if isinstance(value, kind))
    return next((kind(value) for kind in kinds), value)
