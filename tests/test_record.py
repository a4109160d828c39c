import csv
import itertools
import resource

import pytest
import safetensors.torch

from dha import Config, DhaError, record
from dha.fit import run


def test_a_folder_that_cannot_be_made_is_named(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(DhaError, match=r"file/run.*cannot be written to"):
        run("digits", config=small(), out=tmp_path / "file" / "run")


def test_metrics_have_one_header(tmp_path):
    history, metrics = [], record.Metrics(tmp_path)
    for epoch in (1, 2, 3):
        history.append({"epoch": epoch, "pairs": "a>b, c"})
        metrics.write(history)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["pairs"] == "a>b, c"


def rows(folder):
    return [row["epoch"] for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())]


def history(count):
    return [{"epoch": epoch, "loss": epoch / 7} for epoch in range(1, count + 1)]


def test_rows_are_added_to_the_file_and_those_before_are_not_written_again(tmp_path):
    metrics = record.Metrics(tmp_path)
    metrics.write(history(1))
    file = (tmp_path / "metrics.csv").stat().st_ino
    for count in range(2, 5):
        metrics.write(history(count))
        assert rows(tmp_path) == [str(epoch) for epoch in range(1, count + 1)]
    assert (tmp_path / "metrics.csv").stat().st_ino == file


def test_after_a_resume_or_a_step_back_the_file_is_what_the_history_is(tmp_path):
    metrics = record.Metrics(tmp_path)
    for count in (1, 2, 3, 4, 5):
        metrics.write(history(count))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("6,0.8")  # As a process that was killed leaves it.
    resumed = record.Metrics(tmp_path)
    resumed.write(history(3))
    assert rows(tmp_path) == ["1", "2", "3"]
    resumed.write(history(4))
    resumed.write(history(2))
    assert rows(tmp_path) == ["1", "2"]


def test_a_row_that_was_written_in_part_is_written_again(tmp_path):
    metrics = record.Metrics(tmp_path)
    metrics.write(history(1))
    size = (tmp_path / "metrics.csv").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.warns(RuntimeWarning, match=r"metrics.csv' cannot be written \(File too large\): the run goes on"):
            metrics.write(history(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    metrics.write(history(3))
    assert rows(tmp_path) == ["1", "2", "3"]


def test_a_link_that_is_put_in_the_place_of_the_file_is_not_written_to(tmp_path):
    metrics = record.Metrics(tmp_path)
    metrics.write(history(1))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to(victim)
    metrics.write(history(2))
    assert victim.read_text() == "precious"
    assert rows(tmp_path) == ["1", "2"]


def test_the_schedule_in_a_model_has_no_more_than_some_thousand_entries():
    assert record._thinned(history(record.SCHEDULE)) == history(record.SCHEDULE)
    thinned = record._thinned(history(300_000))
    assert len(thinned) == record.SCHEDULE
    assert (thinned[0]["epoch"], thinned[-1]["epoch"]) == (1, 300_000)
    apart = {b["epoch"] - a["epoch"] for a, b in itertools.pairwise(thinned)}
    assert apart == {150, 151}


def test_codes_are_kept_with_their_dictionaries(tmp_path, small):
    run("digits", config=small(), out=tmp_path / "run")
    state = safetensors.torch.load_file(tmp_path / "run" / "codes.safetensors")
    assert {"0.compressed", "0.dictionary", "0.code", "0.frozen", "0.chosen"} <= set(state)
    assert state["0.dictionary"].shape[0] == state["0.compressed"].shape[0] == 4
    assert Config().architecture.code_size == state["0.compressed"].shape[1]
