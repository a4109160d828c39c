import csv

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


def test_codes_are_kept_with_their_dictionaries(tmp_path, small):
    run("digits", config=small(), out=tmp_path / "run")
    state = safetensors.torch.load_file(tmp_path / "run" / "codes.safetensors")
    assert {"0.compressed", "0.dictionary", "0.code", "0.frozen", "0.chosen"} <= set(state)
    assert state["0.dictionary"].shape[0] == state["0.compressed"].shape[0] == 4
    assert Config().architecture.code_size == state["0.compressed"].shape[1]
