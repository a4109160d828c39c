"""Writing the final model of a run, also where the disk is full: it is what the whole run was for."""

import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from dha.data import Cache
from dha.engine import FULL, Checkpoints
from dha.errors import DhaError
from dha.files import remove_folder
from dha.model import TrainedModel
from dha.ownership import MODEL_FILES, check_model

Failure = OSError | DhaError | None
"""Why a model was not written; None if it was."""


def deliver(folder: Path | None, model: TrainedModel, checkpoints: Checkpoints) -> Path | None:
    """Write the final model and remove what the run needs no more.

    Where there is no room, the run's own older files make it: first those that the end of the run does not need; what
    it can be resumed from only once the model is safe among the temporary files, or is sure to fit.

    Args:
        folder: of the run; None writes nothing.
        model: to be written.
        checkpoints: of the run.

    Returns:
        The folder of the model: ``model`` in that of the run, or another one, of which a ``RuntimeWarning`` tells.

    Raises:
        DhaError: if it cannot be written anywhere.
    """
    if folder is None:
        return None
    place, elsewhere = folder / "model", None
    failure = _attempt(model, place)
    if _is_full(failure):
        checkpoints.remove_previous()
        Cache(folder=folder).remove()
        failure = _attempt(model, place)
    if failure is not None:
        elsewhere = _elsewhere(model)
        if elsewhere is None and not (_is_full(failure) and _fits(model, folder, checkpoints)):
            raise DhaError(f"{str(place)!r} cannot be written ({_reason(failure)}): make room and resume the run")
    # The model of an earlier epoch first, because the run can be resumed from its checkpoint.
    for make_room in (lambda: _remove_model(place), checkpoints.remove):
        if _is_full(failure):
            make_room()
            failure = _attempt(model, place)
    if failure is None:
        if elsewhere is not None:
            remove_folder(elsewhere, MODEL_FILES)
        checkpoints.remove()
        Cache(folder=folder).remove()
        return place
    if elsewhere is None:
        raise DhaError(f"{str(place)!r} cannot be written ({_reason(failure)}): make room and train again")
    warnings.warn(
        f"{str(place)!r} cannot be written ({_reason(failure)}): the model is in {str(elsewhere)!r}",
        RuntimeWarning,
        stacklevel=2,
    )
    return elsewhere


def _attempt(model: TrainedModel, place: Path) -> Failure:
    try:
        model.save(place)
    except (OSError, DhaError) as error:  # The latter if somebody has put another file there.
        return error
    return None


def _is_full(failure: Failure) -> bool:
    return isinstance(failure, OSError) and failure.errno in FULL


def _reason(failure: Failure) -> str:
    return str((isinstance(failure, OSError) and failure.strerror) or failure)


def _elsewhere(model: TrainedModel) -> Path | None:
    """Write a model to a new folder among the temporary ones; return that, or None if it cannot be written."""
    with suppress(OSError):
        place = Path(tempfile.mkdtemp(prefix="dha-model-"))
        if _attempt(model, place) is None:
            return place
        remove_folder(place, MODEL_FILES)
    return None


def _fits(model: TrainedModel, folder: Path, checkpoints: Checkpoints) -> bool:
    """Return whether a model has room on the disk once the other files of the run are gone."""
    own = [*checkpoints.files, *(folder / "model" / name for name in MODEL_FILES)]
    room = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in own if file.is_file())
    blocks = 2**14  # Files take whole blocks, and a folder takes one, too.
    return sum(map(len, model.contents().values())) + blocks <= room


def _remove_model(place: Path) -> None:
    with suppress(OSError, DhaError):
        check_model(place)
        remove_folder(place, MODEL_FILES)
