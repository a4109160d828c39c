"""What the folders in a folder are: the parts of a data set (train, validation, test) or its classes."""

import re
from collections.abc import Sequence
from pathlib import Path

from dha.data.files import image_files, is_image, kind_of, listed
from dha.errors import DhaError

_NAMES: dict[str, str] = {
    "train": "train(?:ing)?|trn",
    "validation": "val|valid|validat(?:e|ion)|dev|develop(?:ment)?|eval|evaluat(?:e|ion)",
    "test": "test(?:ing)?|tst|hold_?out",
}
_ADDED = r"images?|imgs?|data|(?:data|sub)?sets?|splits?|part|photos?|pictures?|pics?|folder|files?|samples?|\d"
"""One digit, because the time that a match takes would double with every further one of a number."""
_ROLES = {role: re.compile(rf"(?:{_ADDED})*(?:{names})(?:{_ADDED})*") for role, names in _NAMES.items()}
_LONGEST = 60
"""Characters of the longest name of a part; of any number of words a match would take any time."""
_FOLD = re.compile(r"(?:k?fold|cv|split|part|partition)\d+|\d+(?:st|nd|rd|th)?fold")
_RESEMBLES = re.compile(r"train|valid|test|holdout")


def role_of(name: str) -> str | None:
    """Return the part ("train", "validation", "test") that a folder, file or value of that name stands for, in any case
    and with usual additions: `Training`, `val2017`, `test_set`, `images-train`.
    """
    plain = _plain(name)
    if len(plain) > _LONGEST:
        return None
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(plain)), None)


def split_folders(folder: Path, inner: Sequence[Path]) -> dict[str, Path] | None:
    """Tell parts from classes.

    Args:
        folder: what errors call the whole.
        inner: the folders in it.

    Returns:
        The folders of the parts, with "train" among them; None if the folders are classes.

    Raises:
        DhaError: if the folders may be parts and may be classes, or two may be the same part.
    """
    roles = {path: role_of(path.name) for path in inner}
    named = [path for path, role in roles.items() if role]
    if not named:
        _refuse_parts_of_unknown_kind(folder, inner)
        return None
    others = [path for path, role in roles.items() if not role and next(image_files(path, {}), None) is not None]
    if [path.name.lower() for path in named] == ["train"] and others and holds_images(named[0]):
        return None  # A class of vehicles: a part would hold class folders.
    parts: dict[str, Path] = {}
    for path in named:
        role = roles[path]
        assert role is not None
        if role in parts:
            raise DhaError(
                f"{folder} holds {_names([parts[role], path])}; keep one of them, or put both into one folder: "
                f"each may be the {role} part"
            )
        parts[role] = path
    if others:
        raise DhaError(
            f"{folder} holds {_names(named)}, which may be parts of a data set, beside {_names(others)}: are "
            "these classes or parts? Keep class folders inside folders train, val and test, or rename "
            f"{_names(named)} if they are classes"
        )
    if "train" not in parts:
        raise DhaError(
            f"{folder} holds {', '.join(sorted(path.name.lower() for path in named))} but no train; add it, or "
            "pass the inner folder"
        )
    return parts


def holds_images(folder: Path) -> bool:
    """Tell whether images lie in a folder itself."""
    return any(kind_of(entry) == "file" and is_image(entry.path) for entry in listed(folder, {}))


def _refuse_parts_of_unknown_kind(folder: Path, inner: Sequence[Path]) -> None:
    if len(inner) == 1 and not holds_images(inner[0]) and sum(map(_is_folder, listed(inner[0], {}))) > 1:
        raise DhaError(f"{folder} holds only the folder {inner[0].name}; pass {inner[0]}")
    if len(inner) < 2:
        return
    names = [_plain(path.name) for path in inner]
    if all(map(_FOLD.fullmatch, names)):
        what = "parts for cross-validation"
    elif all(map(_RESEMBLES.search, names)) and not any(map(holds_images, inner)):
        what = "parts of a data set"
    else:
        return
    raise DhaError(
        f"{folder} holds {_names(inner)}, which look like {what} and not like classes: rename them to train, "
        "val and test, or pass a folder whose folders are classes"
    )


def _is_folder(entry: object) -> bool:
    return kind_of(entry) == "folder"  # pyright: ignore[reportArgumentType]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _names(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:5]] + (["..."] if len(paths) > 5 else [])
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
