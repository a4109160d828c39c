"""A foreign file under every name that dha writes or removes is found afterwards as it was."""

import os
from pathlib import Path

import pytest
import torch

from dha import DhaError, ImageClassifier
from dha.architecture import plain_network
from dha.data import Preprocessing
from dha.engine import Checkpoints
from dha.fit import run
from dha.model import TrainedModel
from dha.ownership import check_out
from dha.run_folder import write_settings

FOREIGN = "the only copy of somebody's work"
NAMES = [
    "config.yaml",
    "metrics.csv",
    "codes.safetensors",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "model",
    "model/model.json",
    "model/policy.json",
    "model/weights.safetensors",
    "model/thesis.txt",
    "data.json",
    "left-out.csv",
    "images/photo.png",
    ".config.yaml.partial",
    ".checkpoint.pt.partial",
    ".model.partial/thesis.txt",
    ".dha-images/photo.png",
    ".dha-0123456789abcdef.partial/thesis.txt",
    "notes.txt",
]


def put(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FOREIGN)
    return file


def kept(folder: Path) -> list[str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return [str(file.relative_to(folder)) for file in files if file.read_bytes() == FOREIGN.encode()]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(".dha-")])
def test_a_folder_with_a_foreign_file_is_no_place_for_a_run(name, resume, tmp_path, small):
    put(tmp_path, name)
    with pytest.raises(DhaError, match=r"holds '.*' and no run of dha: name a folder that is new or empty"):
        run("digits", config=small(), out=tmp_path, resume=resume)
    assert kept(tmp_path) == [name]
    assert len(list(tmp_path.iterdir())) == 1


def test_foreign_files_beside_a_run_outlive_it(tmp_path, small):
    own = "config.yaml", "metrics.csv", "data.json", "left-out.csv", "model"
    names = [name for name in NAMES if name.split("/")[0] not in own]
    names.remove("codes.safetensors")
    names.remove("checkpoint.pt")
    stopped = False

    def stop(progress, row):
        nonlocal stopped
        if row:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("digits", config=small(epochs=2, architecture=narrow()), out=tmp_path, watch=stop)
    assert stopped
    (tmp_path / "checkpoint.previous.pt").unlink(missing_ok=True)
    for name in names:
        put(tmp_path, name)
    with pytest.warns(RuntimeWarning, match=r"checkpoint.previous.pt' is damaged \(dha has not written it\)"):
        result = run("digits", config=small(epochs=2, architecture=narrow()), out=tmp_path, resume=True)
    assert len(result.history) == 2
    expected = ["checkpoint.previous.pt.damaged" if name == "checkpoint.previous.pt" else name for name in names]
    assert kept(tmp_path) == sorted(expected)


def narrow():
    from dha import ArchitectureConfig

    return ArchitectureConfig(depth=1, width=4, nodes=2)


@pytest.mark.parametrize("name", ["metrics.csv", "codes.safetensors", "data.json", "left-out.csv", *NAMES[5:10]])
def test_a_run_does_not_go_on_over_a_foreign_file(name, tmp_path, small):
    write_settings(tmp_path, small(), "digits")
    put(tmp_path, name)
    with pytest.raises(DhaError, match=r"was not written by dha|no part of a model|no model of dha|is a file"):
        run("digits", config=small(), out=tmp_path, resume=True)
    assert kept(tmp_path) == [name]


def test_a_checkpoint_of_somebody_else_is_not_replaced(tmp_path, small):
    write_settings(tmp_path, small(), "digits")
    put(tmp_path, "checkpoint.pt")
    with pytest.raises(DhaError, match=r"checkpoint.pt' is damaged \(its checksum is wrong\). No checkpoint is left"):
        run("digits", config=small(), out=tmp_path, resume=True)
    assert kept(tmp_path) == ["checkpoint.pt"]


def test_links_in_the_folder_of_a_run_are_not_followed(tmp_path, small):
    out, victim = tmp_path / "run", put(tmp_path, "victim")
    out.mkdir()
    write_settings(out, small(), "digits")
    for name in ("config.yaml", "metrics.csv", "checkpoint.pt", "dha-0123456789abcdef"):
        (out / f".{name}.partial").symlink_to(victim)
    run("digits", config=small(), out=out, resume=True)
    assert victim.read_text() == FOREIGN
    (out / "linked").mkdir()
    write_settings(out / "linked", small(), "digits")
    (out / "linked" / "metrics.csv").symlink_to(victim)
    with pytest.raises(DhaError, match="was not written by dha"):
        check_out(out / "linked", resume=True)


def model():
    genotype = {"space": "residual", "blocks": [["skip"]] * 3, "width": 4, "depth": 1, "resolution": 8}
    network = plain_network(genotype, 1, 2, 8)
    return TrainedModel(network, ("a", "b"), Preprocessing(8, 1, (0.3,), (0.4,)), network.genotype)


@pytest.mark.parametrize(
    "name", ["thesis.txt", "data/thesis.txt", "model.json", "policy.json", "weights.safetensors", "config.yaml"]
)
def test_a_model_is_not_saved_over_a_foreign_file(name, tmp_path):
    put(tmp_path / "folder", name)
    with pytest.raises(DhaError, match=r"was not written by dha|no part of a model|no model of dha"):
        model().save(tmp_path / "folder")
    assert kept(tmp_path) == [f"folder/{name}"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_model_is_not_saved_over_a_file_or_a_link(tmp_path):
    put(tmp_path, "file")
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    with pytest.raises(DhaError, match="file' is a file: name a folder"):
        model().save(tmp_path / "file")
    with pytest.raises(DhaError, match="link' is a link: name a folder"):
        model().save(tmp_path / "link")
    assert kept(tmp_path) == ["file"]
    assert (tmp_path / "link").is_symlink()


def test_files_that_file_managers_leave_are_no_obstacle(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / ".DS_Store").write_text("view")
    assert check_out(tmp_path / "m") is check_out(tmp_path / "new") is False
    for _ in range(2):
        (tmp_path / "m" / ".DS_Store").write_text("view")
        model().save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == [".DS_Store", "m"]


def test_a_model_is_saved_to_a_new_an_empty_and_its_own_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "new", "deep/new"):
        model().save(tmp_path / name)
        assert TrainedModel.load(tmp_path / name).classes == ("a", "b")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "empty", "new"]


@pytest.mark.parametrize("out", ["", " ", "a\0b"])
def test_a_name_that_is_none_is_refused(out, small):
    with pytest.raises(DhaError, match=r"out='.*names no folder"):
        run("digits", config=small(), out=out)


def test_a_run_is_over_when_its_final_model_is_there(tmp_path, small):
    config = small(epochs=2, architecture=narrow())
    write_settings(tmp_path, config, "digits")
    interim = model()
    interim.learned = {"final": False}
    interim.save(tmp_path / "model")
    assert check_out(tmp_path, resume=True), "the model of an earlier epoch does not end a run"
    result = run("digits", config=ImageClassifier(), out=tmp_path, resume=True)
    assert (result.config.epochs, len(result.history)) == (2, 2)
    with pytest.raises(DhaError, match=r"is over: its model is in"):
        run("digits", config=ImageClassifier(), out=tmp_path, resume=True)
    Checkpoints(tmp_path).save({"weight": torch.ones(1)})  # As if the process was killed before it removed it.
    with pytest.raises(DhaError, match=r"is over: its model is in"):
        check_out(tmp_path, resume=True)


def test_a_run_of_before_is_over_without_checkpoints(tmp_path, small):
    write_settings(tmp_path, small(), "digits")
    model().save(tmp_path / "model")
    with pytest.raises(DhaError, match=r"is over: its model is in"):
        check_out(tmp_path, resume=True)
    Checkpoints(tmp_path).save({"weight": torch.ones(1)})
    assert check_out(tmp_path, resume=True)


def test_what_a_killed_run_has_left_is_no_obstacle(tmp_path, small):
    partial = tmp_path / ".dha-0123456789abcdef.partial"
    model().save(partial)
    (tmp_path / ".dha-fedcba9876543210.partial").write_text("half a checkpoint")
    (tmp_path / ".dha-images").mkdir()
    (tmp_path / ".dha-images" / "0123456789abcdef.u8").write_bytes(b"pixels")
    run("digits", config=small(architecture=narrow()), out=tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "codes.safetensors",
        "config.yaml",
        "data.json",
        "left-out.csv",
        "metrics.csv",
        "model",
    ]
