"""Images and labels from tables of paths and labels, and from lists of them."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dha.data.files import LeftOut, image_files, listed
from dha.data.folders import subfolders
from dha.data.labels import Labels, check_labels, is_missing
from dha.data.layouts import holds_images, role_of
from dha.data.parts import ItemPart, OnBadImage, Parts, Sliced
from dha.data.table_files import SUFFIXES, Columns, Table, is_table, read_table
from dha.errors import DhaError

_COMPLETED = ("", ".jpg", ".png", ".jpeg", ".tif")
"""What is added to paths that are names without a suffix."""

_NAMED = 3
"""How many rows or files an error names."""


def open_table(table: Table, on_bad_image: OnBadImage = "error") -> Parts:
    """List the images of a table.

    Args:
        table: as it was read.
        on_bad_image: whether missing files are an "error", or left for the reader to "skip".

    Raises:
        DhaError: if files are missing, rows lack a path, label or split, the same image has two labels, or a split has
            no usual name.
    """
    left_out: LeftOut = {}
    parts: dict[str, ItemPart] = {}
    labels, note = _labels(table)
    paths, where = _resolved(table)
    roles = _roles(table)
    keep = _without_repeated(table, paths, labels, roles, left_out)
    _check_files(table, [paths[i] for i in keep], on_bad_image)
    for role in ("train", "validation", "test"):
        chosen = [i for i in keep if roles is None or roles[i] == role]
        if chosen and (roles is not None or role == "train"):
            items = [paths[i] for i in chosen]
            place = table.name if roles is None else f"{table.name} {role}"
            parts[role] = ItemPart(Sliced(items, len(items)), Labels.of(labels[chosen]), place)
    if "train" not in parts:
        raise DhaError(f"{table.name} has no row of the train part (column {table.columns.split!r}); add some")
    columns = f"paths in column {table.columns.path!r}, labels in {table.columns.label!r}"
    if roles is not None:
        columns += f", parts in {table.columns.split!r}"
    layout = f"table {Path(table.name).name} ({columns}){where}{note}"
    return Parts(
        table.name, parts["train"], parts.get("validation"), parts.get("test"), layout=layout, left_out=left_out
    )


def open_table_folder(
    folder: Path, columns: Columns, on_bad_image: OnBadImage = "error", own: Path | None = None
) -> Parts | None:
    """List the images of the table that a folder holds beside images.

    Args:
        folder: holds one table; or one for each part, by their names (`train.csv`, `test.csv`), or in folders of these.
        columns: of the table.
        on_bad_image: as in `open_table`.
        own: the folder of this run.

    Returns:
        None if no table has columns of paths and labels, or class folders say the same as the table.

    Raises:
        DhaError: if it is not clear which table is meant, or a table and class folders say different things.
    """
    ignored: LeftOut = {}
    inner = subfolders(folder, ignored, own)
    files = sorted(Path(path) for path in ignored if Path(path).suffix.lower() in SUFFIXES)
    usable = [path for path in files if is_table(path, columns)]
    classes = [path for path in inner if role_of(path.name) is None and holds_images(path)]
    parted = [path for path in inner if role_of(path.name) and any(map(holds_images, subfolders(path, {})))]
    has_classes = len(classes) > 1 or bool(parted)
    if not usable and not has_classes:
        if len(files) == 1:
            read_table(files[0], columns)  # says what it lacks
        usable = [table for path in inner if role_of(path.name) for table in tables_in(path, columns)]
    if not usable:
        return None
    if len(usable) == 1:
        table = read_table(usable[0], columns)
        if has_classes:
            if _says_folders(table):
                return None
            raise DhaError(
                f"{folder} holds the table {usable[0].name} and class folders, which say different things: "
                f"pass {usable[0]} to use the table, or move it away to use the folders"
            )
        parts = open_table(table, on_bad_image)
    else:
        roles = [role_of(path.stem) or role_of(path.parent.name) for path in usable]
        if has_classes or None in roles or len(set(roles)) < len(roles) or "train" not in roles:
            raise DhaError(f"{folder} holds the tables {_some(usable)}; pass the one to use")
        unsplit = [replace(read_table(path, columns), splits=None) for path in usable]
        each = {role: open_table(table, on_bad_image) for role, table in zip(roles, unsplit, strict=True)}
        parts = Parts(
            str(folder),
            **{str(role): one.train for role, one in each.items()},  # pyright: ignore[reportArgumentType]
            layout="tables: " + "; ".join(f"{role} {one.layout.removeprefix('table ')}" for role, one in each.items()),
            left_out={path: reason for one in each.values() for path, reason in one.left_out.items()},
        )
    _note_unnamed(folder, parts)
    return replace(parts, name=str(folder))


def tables_in(folder: Path, columns: Columns) -> list[Path]:
    """Return the tables of paths and labels in a folder."""
    ignored: LeftOut = {}
    subfolders(folder, ignored)
    return sorted(Path(path) for path in ignored if is_table(Path(path), columns))


def _says_folders(table: Table) -> bool:
    names = (Path(str(path)).parent.name for path in table.paths)
    return all(str(label) == name for label, name in zip(table.labels, names, strict=True))


def open_paths(paths: Sequence[str | Path], labels: Any, on_bad_image: OnBadImage = "error") -> Parts:
    """List images given as paths and labels from Python.

    Args:
        paths: of image files.
        labels: one for each path.
        on_bad_image: as in `open_table`.

    Raises:
        DhaError: if files are missing, or there is not one label for each.
    """
    if labels is None:
        raise DhaError("labels are missing; pass one label for each path along with the paths")
    given = check_labels(labels, len(paths), "labels")
    table = Table("paths", Path(), Columns(), [str(p) for p in paths], list(given), None, range(len(paths)))
    files = [os.path.expanduser(path) for path in table.paths]
    _check_files(table, files, on_bad_image)
    return Parts("paths", ItemPart(Sliced(files, len(files)), Labels.of(given), "paths"), layout="paths and labels")


def _note_unnamed(folder: Path, parts: Parts) -> None:
    """Note the images in the folder of a table that it does not name, and all other files, as left out."""
    named = {
        os.path.realpath(path)
        for part in (parts.train, parts.validation, parts.test)
        if isinstance(part, ItemPart)
        for chunk in part.items.chunks(1024)
        for path in chunk
    }
    for path in image_files(folder, parts.left_out):
        if os.path.realpath(path) not in named:
            parts.left_out[path] = "not in the table"


def _labels(table: Table) -> tuple[np.ndarray, str]:
    """Return the labels, and what the report says of a conversion."""
    empty = [row for row, label in zip(table.rows, table.labels, strict=True) if is_missing(label) or label == ""]
    if empty:
        raise DhaError(
            f"{table.name}: {len(empty)} rows have no label ({_some(empty, 'row ')}); label these images or remove the "
            "rows"
        )
    labels: Any = table.labels
    note = ""
    if isinstance(labels[0], str):
        # As pandas reads them; "007" and "1e5" stay strings.
        if all(isinstance(label, str) and re.fullmatch(r"(-?[1-9]\d{0,17}|0)(\.0+)?", label) for label in labels):
            whole = any("." in label for label in labels)
            labels = [int(label.partition(".")[0]) for label in labels]
            note = "; labels are whole numbers" + (", written as 1.0" if whole else "")
    elif all(isinstance(label, float) for label in labels):
        note = "; labels are whole numbers, given as floats"
    return check_labels(labels, len(labels), f"{table.name}: {table.columns.label}"), note


def _roles(table: Table) -> list[str] | None:
    if table.splits is None:
        return None
    roles = [None if is_missing(split) else role_of(str(split)) for split in table.splits]
    wrong = [i for i, role in enumerate(roles) if role is None]
    if wrong:
        values = sorted({str(table.splits[i]) for i in wrong})
        raise DhaError(
            f"{table.name}: {len(wrong)} rows have {_some(values)} in column {table.columns.split!r}, which are no "
            "usual names of parts; write train, validation or test"
        )
    return [role for role in roles if role is not None]


def _resolved(table: Table) -> tuple[list[str], str]:
    """Return the paths below the folder in which the first of them are, and what the report says of it."""
    empty = [row for row, path in zip(table.rows, table.paths, strict=True) if is_missing(path) or str(path) == ""]
    if empty:
        raise DhaError(f"{table.name}: {len(empty)} rows have no path ({_some(empty, 'row ')}); add or remove them")
    zeros = [row for row, path in zip(table.rows, table.paths, strict=True) if "\0" in str(path)]
    if zeros:
        raise DhaError(
            f"{table.name}: {len(zeros)} rows have a path with a zero byte ({_some(zeros, 'row ')}); correct them"
        )
    paths = [os.path.expanduser(str(path)) for path in table.paths]
    if os.sep == "/" and not any("/" in path for path in paths):
        paths = [path.replace("\\", "/") for path in paths]
    first = paths[:5]
    beside = sorted(entry.path for entry in listed(table.folder, {}) if entry.is_dir())
    for suffix in _COMPLETED:
        found = [
            base
            for base in (str(table.folder), *beside)
            if any(os.path.exists(os.path.join(base, path + suffix)) for path in first)
        ]
        if not found:
            continue
        if str(table.folder) not in found and len(found) > 1:
            raise DhaError(
                f"{table.name}: {paths[0]!r} is in {_some([Path(base).name for base in found])}; write paths with "
                "these folders"
            )
        base = str(table.folder) if str(table.folder) in found else found[0]
        where = "" if base == str(table.folder) else f", files in {Path(base).name}/"
        where += f", names completed by {suffix}" if suffix else ""
        return [os.path.join(base, path + suffix) for path in paths], where
    return [os.path.join(table.folder, path) for path in paths], ""


def _without_repeated(
    table: Table, paths: Sequence[str], labels: np.ndarray, roles: Sequence[str] | None, left_out: LeftOut
) -> list[int]:
    """Return the places of the rows, of those that are equal the first."""
    seen: dict[str, int] = {}
    keep = []
    for i, path in enumerate(paths):
        first = seen.setdefault(os.path.normpath(path), i)
        if first == i:
            keep.append(i)
            continue
        for what, values in (("label", labels), ("part", roles)):
            if values is not None and values[first] != values[i]:
                said = [str(values[place])[:40] for place in (first, i)]
                raise DhaError(
                    f"{table.name}: {path} has the {what} {said[0]!r} in row {table.rows[first]} and "
                    f"{said[1]!r} in row {table.rows[i]}; every image has one {what}"
                )
        left_out[f"{table.name}: row {table.rows[i]}"] = f"repeats row {table.rows[first]}"
    return keep


def _check_files(table: Table, paths: Sequence[str], on_bad_image: OnBadImage) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing and (on_bad_image == "error" or len(missing) == len(paths)):
        remedy = "correct the paths" + ("" if table.name == "paths" else ", which are relative to the table")
        if any(re.match(r"[a-z]+://", str(path)) for path in table.paths[:5]):
            remedy = "files are not fetched: download them first"
        raise DhaError(
            f"{table.name}: {len(missing)} of {len(paths)} files are missing or no regular files ({_some(missing)}); "
            f"{remedy}" + ("" if len(missing) == len(paths) else ", or leave them out with --on-bad-image skip")
        )


def _some(values: Sequence[object], before: str = "") -> str:
    more = ", ..." if len(values) > _NAMED else ""
    return ", ".join(before + str(value)[:200] for value in values[:_NAMED]) + more
