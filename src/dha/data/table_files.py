"""Reading tables of paths and labels: files (CSV, TSV, JSON Lines, Parquet) and pandas DataFrames."""

import csv
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dha.data.files import has_image_suffix
from dha.data.layouts import role_of
from dha.errors import DhaError

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
"""Names of files that may hold a table."""

_PATHS = ("path", "filepath", "filepaths", "file", "filename", "imagepath", "image", "imagefile", "imagefilename")
_PATHS += ("imagename", "img", "imgpath", "imgfile", "imgname", "fname", "relativepath", "picture", "photo", "imageid")
_PATHS += ("idcode", "id")
_LABELS = ("label", "labels", "class", "classname", "classes", "target", "category", "finelabel", "cls", "y", "species")
_LABELS += ("labelname", "classlabel", "classid", "labelid", "diagnosis", "breed", "tag")
_SPLITS = ("split", "subset", "partition", "dataset", "set", "part", "phase", "usage")

_LONGEST_LINE = 2**20


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; None for a usual name (`path`, `file_name`, `image`; `label`, `class`,
    `target`; `split`, `subset`).
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Table:
    """The columns of a table that are needed.

    Attributes:
        name: what errors call it.
        folder: that paths are relative to.
        columns: the names of the columns that were read.
        paths, labels, splits: the cells of each; None for no splits.
        rows: what errors call the rows.
    """

    name: str
    folder: Path
    columns: Columns
    paths: Sequence[Any]
    labels: Sequence[Any]
    splits: Sequence[Any] | None
    rows: Sequence[int]


def is_table(file: Path, columns: Columns) -> bool:
    """Tell whether a file is a table that has a column of paths and one of labels."""
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    try:
        _choose(_names(file), columns, str(file))
    except DhaError:
        return False
    return True


def read_table(file: Path, columns: Columns) -> Table:
    """Read the columns of paths, labels and maybe splits of a file.

    Raises:
        DhaError: if it cannot be read as a table of its kind, or lacks a column.
    """
    name = str(file)
    kind = file.suffix.lower()
    names = _names(file)
    chosen = _choose(names, columns, name)
    wanted = [column for column in (chosen.path, chosen.label, chosen.split) if column is not None]
    if kind == ".parquet":
        import pyarrow.parquet

        with _parquet_errors(name):
            read = pyarrow.parquet.read_table(file, columns=wanted).to_pydict()
        cells = [read[column] for column in wanted]
        rows: Sequence[int] = range(len(cells[0]))
    elif kind in (".jsonl", ".ndjson"):
        pairs = list(_json_rows(file))
        cells = [[row.get(column) for _, row in pairs] for column in wanted]
        rows = [number for number, _ in pairs]
    else:
        places = [names.index(column) for column in wanted]
        cells, rows = [[] for _ in wanted], []
        for number, fields in itertools.islice(_csv_rows(file), 1, None):
            if len(fields) != len(names):
                raise DhaError(
                    f"{name}: row {number} has {len(fields)} fields, but there are {len(names)} columns; put fields "
                    "that hold the separator into quotes"
                )
            rows.append(number)
            for column, place in zip(cells, places, strict=True):
                column.append(fields[place].strip())
    return _table(name, file.parent, chosen, cells, rows, columns)


def read_frame(frame: Any, columns: Columns) -> Table:
    """Take the columns of paths, labels and maybe splits from a pandas DataFrame.

    Raises:
        DhaError: if it lacks a column.
    """
    chosen = _choose([str(name) for name in frame.columns], columns, "the DataFrame")
    by_name = {str(name): name for name in frame.columns}
    wanted = [column for column in (chosen.path, chosen.label, chosen.split) if column is not None]
    cells = [frame[by_name[column]].tolist() for column in wanted]
    return _table("DataFrame", Path(), chosen, cells, range(len(frame)), columns)


def _table(
    name: str, folder: Path, chosen: Columns, cells: Sequence[Sequence[Any]], rows: Sequence[int], given: Columns
) -> Table:
    if not rows:
        raise DhaError(f"{name} has no rows; add one for each image")
    paths, labels, *rest = cells
    if rest and given.split is None and not any(role_of(str(split)) for split in set(rest[0])):
        rest, chosen = [], replace(chosen, split=None)  # A column of that name that holds something else.
    return Table(name, folder, chosen, paths, labels, rest[0] if rest else None, rows)


def _choose(names: Sequence[str], columns: Columns, place: str) -> Columns:
    found = {}
    for kind, given, usual in (
        ("path", columns.path, _PATHS),
        ("label", columns.label, _LABELS),
        ("split", columns.split, _SPLITS),
    ):
        if given is not None:
            matching = [name for name in names if name == given]
        else:
            order = {name: number for number, name in enumerate(usual)}
            plain = {name: re.sub(r"[\W_]+", "", name.lower()) for name in names}
            matching = sorted((name for name in names if plain[name] in order), key=lambda name: order[plain[name]])
        if given is None and kind == "split" and not matching:
            continue
        if not matching:
            wanted = (
                f"no column {given!r}" if given is not None else f"no column of {kind}s that can be told by its name"
            )
            listed_names = ", ".join(repr(name)[:40] for name in names[:20])
            raise DhaError(
                f"{place} has {wanted}; its columns are {listed_names}: rename one to {kind!r} or name it by "
                f"--{kind}-column ({kind}_column in Python){_headless(names)}"
            )
        if list(names).count(matching[0]) > 1:
            raise DhaError(f"{place} has two columns {matching[0]!r}; rename one of them")
        found[kind] = matching[0]
    return Columns(**found)


def _headless(names: Sequence[str]) -> str:
    no_head = any(has_image_suffix(name) for name in names)
    return ", or, as the first line holds an image, add a line before it: path,label" if no_head else ""


def _names(file: Path) -> list[str]:
    name = str(file)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with _parquet_errors(name):
            schema = pyarrow.parquet.read_schema(file)
        images = [field.name for field in schema if _holds_bytes(field.type)]
        if images:
            raise DhaError(f"{name} holds images in its column {images[0]!r} and is no table of paths")
        return schema.names
    rows = _json_rows(file) if file.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(file)
    first = next(iter(rows), None)
    if first is None:
        raise DhaError(f"{name} is empty; write a line with the names of columns and one for each image")
    return [str(column).strip() for column in first[1]]


def _holds_bytes(kind: Any) -> bool:
    """Tell whether a column may hold encoded images: bytes, alone or in structs and lists."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind)


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DhaError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        said = " ".join(str(error).split())
        raise DhaError(f"{name} cannot be read as Parquet ({said:.200}); write it again") from error


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file: UTF-8, maybe with a byte order mark, or UTF-16 with one."""
    name = str(file)
    number = 0
    try:
        with open(file, "rb") as opened:
            encoding = "utf-16" if opened.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(file, encoding=encoding, newline="") as opened:
            while line := opened.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DhaError(f"{name}: line {number} is longer than {_LONGEST_LINE} characters; is it a table?")
                yield line
    except UnicodeError as error:
        raise DhaError(f"{name} is not UTF-8 near line {number + 1} ({error.reason}); save it as UTF-8") from error  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        raise DhaError(f"{name} cannot be read ({error.strerror}); make it readable") from error


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row that is not blank."""
    lines = _lines(file)
    first = next(lines, None)
    if first is None:
        return
    separator = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DhaError(f"{file}: row {reader.line_num} cannot be read ({error}); correct it") from error
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield reader.line_num, fields


def _json_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DhaError(f"{file}: line {number} is not JSON ({error}); correct it") from error
        if not isinstance(row, dict):
            raise DhaError(f"{file}: line {number} holds no JSON object; write {{...}} with path and label")
        yield number, row
