import errno
import os
from typing import Any

import pytest
import torch
import yaml

from dha import ArchitectureConfig, DhaError, ImageClassifier, run_folder
from dha.config import config_dict
from dha.engine import Checkpoints
from dha.fit import run
from dha.run_folder import settings_of, write_settings


def narrow(small, **settings):
    return small(architecture=ArchitectureConfig(depth=1, width=4, nodes=2), **settings)


def test_without_a_checkpoint_a_run_begins_again_by_the_settings_in_its_folder(tmp_path, small):
    config = narrow(small, seed=7, epochs=2, learn="none")
    expected = run("digits", config=config, out=tmp_path / "whole")
    write_settings(tmp_path, config, "digits")
    others: list[dict[str, Any]] = [{"epochs": 3}, {"seed": 1}, {"learn": "augmentation"}]
    for given in others:
        with pytest.raises(DhaError, match=r"the run was begun with .* leave it out"):
            run("digits", config=ImageClassifier(**given), out=tmp_path, resume=True)
    os.rename(tmp_path / "whole", tmp_path.parent / f"{tmp_path.name}-whole")
    result = run("digits", config=ImageClassifier(), out=tmp_path, resume=True)
    assert (result.config.seed, result.config.epochs, result.config.learn) == (7, 2, "none")
    found, wanted = (r.model.network.state_dict() for r in (result, expected))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 7\nepochs: 6\n", r"settings of the run differ from those of this version of dha in '.*: go on"),
        ("", "has no settings: begin again"),
        ("- 1\n- 2\n", "has no settings: begin again"),
        ("seed: 7\narchit: [", r"config.yaml' is damaged \(.*\) and there is no checkpoint: begin again"),
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n", r"is damaged \(.*aliases"),
        ("[" * 100_000, "is damaged"),
        ("seed: " + "9" * 10_000 + "\n", "is damaged"),
        ("#" + " " * 2**20, "bytes: expected what dha wrote, at most 1048576"),
    ],
)
def test_settings_that_are_damaged_are_named_in_one_line(content, message, tmp_path, small):
    (tmp_path / "config.yaml").write_text("# dha fit 'digits'\n" + content)
    with pytest.raises(DhaError, match=message) as caught:
        run("digits", config=small(), out=tmp_path, resume=True)
    assert len(str(caught.value)) < 500
    assert (tmp_path / "config.yaml").read_text().endswith(content)


@pytest.mark.parametrize(("name", "value"), [("seed", "x"), ("epochs", -1), ("space", "moon"), ("architecture", 3)])
def test_settings_of_a_folder_are_checked_like_all_others(name, value, tmp_path, small):
    write_settings(tmp_path, small(), "digits")
    file = tmp_path / "config.yaml"
    header, *rest = file.read_text().splitlines(keepends=True)
    settings = yaml.safe_load("".join(rest))
    file.write_text(header + yaml.safe_dump({**settings, name: value}))
    with pytest.raises(DhaError, match=rf"{name}[=.]|differ from those of this version of dha in '{name}"):
        settings_of(tmp_path, None, ImageClassifier())


@pytest.mark.parametrize(("name", "value"), [("epochs", torch.zeros(3)), ("learn", 5), ("learn", [1]), ("seed", {})])
def test_settings_of_a_checkpoint_are_checked_before_they_are_compared(name, value, tmp_path, small):
    saved = {"config": {**config_dict(small()), name: value}}
    with pytest.raises(DhaError, match=rf"settings of the run are damaged \({name}="):
        settings_of(tmp_path, saved, ImageClassifier())


@pytest.mark.parametrize("name", ["photos\nseed: 3", "\x1b[2Jphotos", "photos\udcff", "фото"])
def test_the_name_of_the_source_stays_in_one_line(name, tmp_path, small):
    write_settings(tmp_path, small(seed=5), name)
    first, *rest = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# dha fit '")
    assert first.isprintable()
    assert yaml.safe_load("\n".join(rest))["seed"] == 5
    assert settings_of(tmp_path, None, ImageClassifier()).seed == 5


def test_numbers_of_numpy_are_written_as_numbers(tmp_path, small):
    import numpy as np

    write_settings(tmp_path, small(settle=np.float64(0.5), budget=None, cache=np.str_("disk")), "digits")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (settings["settle"], settings["cache"]) == (0.5, "disk")


def failing(error):
    def load(*_, **__):
        raise error

    return load


@pytest.mark.parametrize("error", [DhaError("no image"), KeyboardInterrupt(), RuntimeError("unforeseen")])
def test_what_ends_before_training_leaves_nothing_behind(error, tmp_path, small, monkeypatch):
    monkeypatch.setattr("dha.fit.load_source", failing(error))
    with pytest.raises(type(error)):
        run("digits", config=small(), out=tmp_path / "runs" / "one")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(type(error)):
        run("digits", config=small(), out=tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir()), "a folder that was there stays"
    write_settings(tmp_path, small(), "digits")
    (tmp_path / "empty").rmdir()
    with pytest.raises(type(error)):
        run("digits", config=small(), out=tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"], "what was there before stays"


def test_a_budget_that_was_over_at_once_does_not_block_the_folder(tmp_path, small):
    for _ in range(2):
        with pytest.raises(DhaError, match=r"budget=0.001 was over"):
            run("digits", config=small(epochs=None, budget=0.001), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to_is_named_before_images_are_read(tmp_path, small, monkeypatch):
    monkeypatch.setattr("dha.fit.load_source", failing(AssertionError("images were read")))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_text", full)
    with pytest.raises(DhaError, match=r"run' cannot be written to \(No space left on device\)"):
        run("digits", config=small(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


NETWORK = (
    "open(__file__ + '.proof', 'a').close()\nfrom torch import nn\ndef make(): return nn.Linear(3, 3)\nother = make"
)


def test_resuming_runs_no_code_that_the_folder_names(tmp_path, small):
    code, out = tmp_path / "net.py", tmp_path / "run"
    code.write_text(NETWORK)
    out.mkdir()
    write_settings(out, small(network=f"{code}:make", space="auto"), "digits")
    with pytest.raises(
        DhaError, match=r"no code runs because a folder names it: give it once more, .* --network \S*/net.py:make"
    ):
        run("digits", config=ImageClassifier(), out=out, resume=True)
    with pytest.raises(DhaError, match=r"network='.*net.py:other': the run was begun with '.*net.py:make'"):
        run("digits", config=ImageClassifier(network=f"{code}:other"), out=out, resume=True)
    assert not (tmp_path / "net.py.proof").exists()
    (tmp_path / "moved").mkdir()
    moved = f"{code.rename(tmp_path / 'moved' / 'net.py')}:make"
    assert settings_of(out, None, ImageClassifier(network=moved)).network == moved
    write_settings(out, small(), "digits")
    with pytest.raises(DhaError, match=r"network='.*: the run was begun without; leave it out"):
        settings_of(out, None, ImageClassifier(network=moved))


def damaged(state, *path, value=None):
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after its first epoch, and its checkpoint."""
    from dha import Config

    folder = tmp_path_factory.mktemp("stopped")

    def stop(progress, row):
        if row:
            raise KeyboardInterrupt

    architecture = ArchitectureConfig(depth=1, width=4)
    with pytest.raises(KeyboardInterrupt):
        run("digits", config=Config(epochs=2, device="cpu", architecture=architecture), out=folder, watch=stop)
    return folder, Checkpoints(folder).load()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("run", "joint", "settled"), None, r"checkpoint does not fit this run \(KeyError: 'settled'\)"),
        (("run", "position", "totals"), "x", "checkpoint does not fit this run"),
        (("run", "joint", "network"), [1], "checkpoint does not fit this run"),
        (("run", "random", "cpu"), None, "checkpoint does not fit this run"),
        (("run",), None, "checkpoint does not fit this run"),
        (("run", "joint", "steps"), "x", r"checkpoint does not fit this run \(TypeError: joint.steps is a str\)"),
        (("run", "budget", "taken"), [], r"TypeError: budget.taken is a list"),
        (("images",), None, "begun with other images"),
        (("config",), None, "has no settings"),
        (("config", "settle"), None, "differ from those of this version of dha in 'settle'"),
        (("config", "unheard_of"), 3, "differ from those of this version of dha in 'unheard_of'"),
    ],
)
def test_a_checkpoint_of_another_form_is_one_clear_error(path, value, message, stopped, tmp_path):
    import copy
    import shutil

    folder, state = stopped
    out = shutil.copytree(folder, tmp_path / "run")
    state = copy.deepcopy(state)
    damaged(state, *path, value=value)
    Checkpoints(out).save(state)
    with pytest.raises(DhaError, match=message):
        run("digits", config=ImageClassifier(), out=out, resume=True)
