import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from dha.data import Columns, Source, load_source
from dha.errors import DhaError

ROWS = [("a.png", "cat"), ("b.png", "dog"), ("c.png", "cat"), ("d.png", "dog")]


def paint(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level, level, level)).save(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "set" / "images", "a.png", "b.png", "c.png", "d.png")
    return tmp_path / "set"


def write(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def table(rows: list[tuple[str, str]] = ROWS, head: str = "path,label", before: str = "images/") -> str:
    return "\n".join([head, *(f"{before}{path},{label}" for path, label in rows)]) + "\n"


def check(source: Source, classes: tuple[Any, ...] = ("cat", "dog")) -> None:
    assert source.classes == classes
    assert source.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert source.train.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("labels.csv", table(), "utf-8"),
        ("labels.csv", table(head="File Name,Class"), "utf-8-sig"),
        ("labels.csv", table(head="image_path,target").replace(",", ";"), "utf-8"),
        ("labels.csv", table().replace("\n", "\r\n\r\n"), "utf-8"),
        ("labels.csv", table().replace(",", " , "), "utf-16"),
        ("labels.tsv", table().replace(",", "\t"), "utf-8"),
        ("labels.csv", '"path","label"\n' + "\n".join(f'"images/{p}","{c}"' for p, c in ROWS), "utf-8"),
        ("labels.jsonl", "\n".join(f'{{"img": "images/{p}", "label": "{c}"}}' for p, c in ROWS), "utf-8"),
    ],
)
def test_a_table_gives_images_their_labels(folder: Path, name: str, text: str, encoding: str):
    path = write(folder, text, name, encoding)
    check(load_source(path))
    check(load_source(folder))


def test_a_parquet_table_and_a_dataframe_give_images_their_labels(folder: Path):
    frame = pandas.DataFrame([(str(folder / "images" / path), label) for path, label in ROWS], columns=["file", "y"])
    check(load_source(frame))
    frame.to_parquet(folder / "labels.parquet")
    check(load_source(folder / "labels.parquet"))
    check(load_source(frame["file"], frame["y"]))
    check(load_source(list(frame["file"]), list(frame["y"])))
    check(load_source(frame["file"].to_numpy(), frame["y"].to_numpy()))


def test_columns_can_be_named_and_others_mean_nothing(folder: Path):
    rows = [f"images/{path},x,images/{path},{label},{number}" for number, (path, label) in enumerate(ROWS)]
    path = write(folder, "\n".join(["path,label,where,what,part", *rows]))
    check(load_source(path, columns=Columns("where", "what")))
    with pytest.raises(DhaError, match=r"no column 'kind'; its columns are 'path', 'label', .* --label-column"):
        load_source(path, columns=Columns(label="kind"))
    with pytest.raises(DhaError, match=r"4 rows have 0, 1, 2, \.\.\. in column 'part', which are no usual names"):
        load_source(path, columns=Columns("where", "what", "part"))


def test_a_column_gives_the_parts(folder: Path):
    parts = ["train", "Training", "VAL", "test"]
    text = "path,label,split\n" + "".join(
        f"images/{path},{label},{part}\n" for (path, label), part in zip(ROWS, parts, strict=True)
    )
    source = load_source(write(folder, text))
    assert source.validation is not None
    assert source.test is not None
    assert [part.images[:, 0, 0, 0].tolist() for part in (source.train, source.validation, source.test)] == [
        [0, 1],
        [2],
        [3],
    ]
    with pytest.raises(DhaError, match=r"1 rows have PublicTest in column 'split', .*write train, validation or test"):
        load_source(write(folder, text.replace("VAL", "PublicTest")))
    with pytest.raises(DhaError, match=r"has no row of the train part \(column 'split'\)"):
        load_source(write(folder, text.replace("Training", "test").replace("train", "test")))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["3", "1", "3", "1"], (1, 3)),
        (["1.0", "0.0", "1.0", "0.0"], (0, 1)),
        (["007", "1", "007", "1"], ("007", "1")),
        (["yes", "no", "yes", "no"], ("no", "yes")),
    ],
)
def test_labels_that_are_whole_numbers_in_text_are_numbers(folder: Path, labels: list[str], classes: tuple[Any, ...]):
    source = load_source(write(folder, table([(path, label) for (path, _), label in zip(ROWS, labels, strict=True)])))
    assert source.classes == classes
    assert [type(name) for name in source.classes] == [type(name) for name in classes]


def test_paths_are_relative_to_the_table_or_to_the_one_folder_that_has_them(folder: Path, tmp_path: Path):
    check(load_source(write(folder, table(before=""))))
    check(load_source(write(folder, table(before=str(folder / "images") + "/"))))
    check(load_source(write(folder, table(before="images\\"))))
    check(load_source(write(folder, table([(path[0], label) for path, label in ROWS], "id,label", ""))))
    paint(folder / "more", "a.png")
    with pytest.raises(DhaError, match=r"'a\.png' is in images, more; write paths with these folders"):
        load_source(write(folder, table(before="")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(head="what,label"), r"no column of paths .*; its columns are 'what', 'label': rename one to 'path'"),
        (
            table()[11:],
            r"no column of paths .*, or, as the first line holds an image, add a line before it: path,label",
        ),
        (table(head="path,what"), r"no column of labels .*rename one to 'label' or name it by --label-column"),
        (table(head="path,path"), r"has two columns 'path'; rename one of them"),
        (table() + "images/a.png\n", r"row 6 has 1 fields, but there are 2 columns"),
        (table([*ROWS, ("d.png", "cat")]), r"d\.png has the label 'dog' in row 5 and 'cat' in row 6; every image has"),
        (table([*ROWS, ("e.png", ""), ("f.png", " ")]), r"2 rows have no label \(row 6, row 7\); label these"),
        (table([*ROWS, ("e.png", "cat"), ("f.png", "cat")]), r"2 of 6 files are missing .*e\.png, .*f\.png\)"),
        ("path,label\n", r"has no rows"),
        ("", r"is empty; write a line with the names of columns"),
        (table() + '"images/a', r"row 6 cannot be read \(unexpected end of data\)"),
        (table() + "x" * 200_000 + ",cat\n", r"row 6 cannot be read \(field larger than field limit"),
        (table() + "x" * 2_000_000, r"line 6 is longer than 1048576 characters"),
        (
            table([("http://a.b/c.png", "cat"), ("http://a.b/d.png", "dog")], before=""),
            r"files are not fetched: download",
        ),
    ],
)
def test_faulty_tables_are_refused_with_the_row(folder: Path, text: str, message: str):
    path = write(folder, text)
    with pytest.raises(DhaError, match=message) as caught:
        load_source(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_table_in_another_encoding_is_refused(folder: Path):
    path = write(folder, table([("a.png", "Hündin"), ("b.png", "dog")]), encoding="latin-1")
    with pytest.raises(DhaError, match=r"labels\.csv is not UTF-8 near line 1 .*; save it as UTF-8"):
        load_source(path)


@pytest.mark.parametrize("line", ["[1]", "{", "[" * 100_000, '"text"'])
def test_faulty_json_lines_are_refused(folder: Path, line: str):
    with pytest.raises(DhaError, match=r"line 1 (is not JSON|holds no JSON object)"):
        load_source(write(folder, line, "labels.jsonl"))


def test_a_path_with_a_zero_byte_is_refused_with_its_row(folder: Path):
    rows = [{"path": path, "label": label} for path, label in (("a.png", "cat"), ("~\0b", "dog"))]
    path = write(folder, "\n".join(map(json.dumps, rows)), "labels.jsonl")
    with pytest.raises(DhaError, match=r"1 rows have a path with a zero byte \(row 2\)"):
        load_source(path)


def test_rows_that_repeat_another_are_read_once(folder: Path):
    check(load_source(write(folder, table([*ROWS, ROWS[0]]))))


def test_missing_files_are_an_error_before_any_is_read_or_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(folder, table([*ROWS, ("e.png", "cat")]))
    source = load_source(path, on_bad_image="skip")
    check(source)
    assert source.skipped == 1
    monkeypatch.setattr("dha.data.parts.read_image", None)
    with pytest.raises(
        DhaError, match=r"1 of 5 files are missing .*e\.png\); .* or leave them out with --on-bad-image"
    ):
        load_source(path)


def test_missing_labels_of_a_dataframe_are_told_by_row(folder: Path):
    frame = pandas.DataFrame({"path": [str(folder / "images" / path) for path, _ in ROWS], "label": [1, None, 0, 1]})
    with pytest.raises(DhaError, match=r"DataFrame: 1 rows have no label \(row 1\)"):
        load_source(frame)
    frame["label"] = frame["label"].fillna(0)
    assert load_source(frame).classes == (0, 1)


def test_lists_of_paths_need_labels_and_files(folder: Path):
    paths = [folder / "images" / path for path, _ in ROWS]
    assert load_source(paths * 2, [0, 1] * 4).train.labels.tolist() == [0, 1] * 4
    with pytest.raises(DhaError, match="labels are missing; pass one label for each path"):
        load_source(paths)
    with pytest.raises(DhaError, match="labels are 3, but there are 4 images"):
        load_source(paths, [0, 1, 0])
    with pytest.raises(DhaError, match=r"1 of 4 files are missing .*x\.png\)"):
        load_source([*paths[:3], folder / "x.png"], [0, 1, 0, 1])


@pytest.mark.parametrize(("train", "test"), [("train.csv", "test.csv"), ("train/metadata.csv", "test/metadata.csv")])
def test_a_table_for_each_part(tmp_path: Path, train: str, test: str):
    paint(tmp_path / "train", "a.png", "b.png")
    paint(tmp_path / "test", "c.png", "d.png")
    write(tmp_path, table(ROWS[:2], "file_name,label", ""), train)
    write(tmp_path, table(ROWS[2:], "file_name,label", ""), test)
    source = load_source(tmp_path)
    assert source.test is not None
    assert (len(source.train), len(source.test), source.classes) == (2, 2, ("cat", "dog"))


def test_a_table_beside_class_folders_is_used_only_when_it_is_named(tmp_path: Path):
    paint(tmp_path, "cat/a.png", "dog/b.png", "cat/c.png", "dog/d.png")
    same = [(f"{label}/{path}", label) for path, label in ROWS]
    write(tmp_path, table(same, before=""))
    assert load_source(tmp_path).classes == ("cat", "dog")
    write(tmp_path, table([(path, label.upper()) for path, label in same], before=""))
    with pytest.raises(DhaError, match=r"holds the table labels\.csv and class folders, which say different things"):
        load_source(tmp_path)
    assert load_source(tmp_path / "labels.csv").classes == ("CAT", "DOG")
    write(tmp_path, "who,when\nx,y\n")
    assert load_source(tmp_path).classes == ("cat", "dog")


def test_several_tables_are_refused(folder: Path):
    write(folder, table())
    write(folder, table(), "more.csv")
    with pytest.raises(DhaError, match=r"holds the tables .*labels\.csv, .*more\.csv; pass the one to use"):
        load_source(folder)


def test_changed_images_of_a_table_are_decoded_anew(folder: Path, tmp_path: Path):
    path = write(folder, table())
    before = load_source(path, cache="disk", folder=tmp_path / "run").train.images[0].clone()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "images" / "a.png")
    after = load_source(path, cache="disk", folder=tmp_path / "run").train.images[0]
    assert not np.array_equal(before, after)


def test_a_dataframe_may_hold_images():
    pictures = [Image.new("RGB", (8, 8), (level, level, level)) for level in range(4)]
    frame = pandas.DataFrame({"image": pictures, "label": ["cat", "dog", "cat", "dog"]})
    check(load_source(frame))
    check(load_source(frame.assign(image=[np.asarray(picture) for picture in pictures])))
    with pytest.raises(DhaError, match="holds images and a column of parts; pass paths"):
        load_source(frame.assign(split="train"))


def test_a_parquet_table_may_have_columns_of_lists(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    for place, level in ((tmp_path / "set", 10), (tmp_path / "elsewhere", 200)):
        place.mkdir()
        for name in ("0.png", "1.png"):
            Image.new("L", (8, 8), level).save(place / name)
    columns = {"path": ["0.png", "1.png"], "label": ["a", "b"], "bbox": [[1.0, 2.0], [3.0]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "set" / "t.parquet")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_source(tmp_path / "set" / "t.parquet").train.images.unique().tolist() == [10]
