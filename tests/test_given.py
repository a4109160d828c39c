"""Runs with a network that a person brings."""

import copy
import json
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from dha import ArchitectureConfig, Config, DhaError, ImageClassifier
from dha.architecture import SparseChoice, Sum
from dha.cli import main
from dha.fit import run
from dha.model import TrainedModel

FILE = """
from torch import nn

def make(channels, classes):
    body = nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(72, classes))
"""


class Brought(nn.Module):
    """A small convolutional network, with what the tests ask for in the middle."""

    def __init__(self, *middle: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), *middle)
        self.dropout = dropout
        self.head = nn.Linear(72, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.body(images).flatten(1)
        return self.head(F.dropout(x, self.dropout, training=self.training))


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.body(images)
        return self.head(x.view(len(x), -1))


class Tied(Brought):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.body[0]


def searched() -> nn.Module:
    candidates = {"conv": nn.Conv2d(8, 8, 3, padding=1), "pool": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity()}
    return Brought(nn.BatchNorm2d(8), SparseChoice(candidates, start=["pool"]))


def frozen() -> nn.Module:
    network = Brought(nn.BatchNorm2d(8))
    network.body.requires_grad_(False)
    return network


NETWORKS = {
    "normalised": lambda: Brought(nn.BatchNorm2d(8)),
    "unnormalised": Brought,
    "dropout": lambda: Brought(nn.Dropout(0.2), dropout=0.2),
    "searched": searched,
    "frozen": frozen,
    "viewing": Viewing,
    "tied": Tied,
    "double": lambda: Brought().double(),
    "transformer": lambda: Brought(
        nn.Flatten(2), nn.TransformerEncoderLayer(9, 3, 16, batch_first=True), nn.Unflatten(2, (3, 3))
    ),
}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32)[:700], labels[:700]


def brought(network, **settings):
    return ImageClassifier(
        **{"network": network, "epochs": 3, "batch_size": 32, "every": 2, "device": "cpu", **settings}
    )


@pytest.fixture
def file(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    return f"{tmp_path}/net.py:make"


@pytest.mark.parametrize("kind", NETWORKS)
def test_any_network_trains_saves_and_loads(kind, digits, tmp_path):
    torch.manual_seed(1)
    network = NETWORKS[kind]()
    before = copy.deepcopy(network.state_dict())
    classifier = brought(network, epochs=6).fit(*digits, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "the module stays"
    assert classifier.score(*digits) > 0.4
    rows = classifier.history_
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["policy_entropy"] != rows[0]["policy_entropy"]
    assert len({row["learning_rate"] for row in rows}) > 1

    classifier.save(tmp_path / "model")
    loaded = ImageClassifier.load(tmp_path / "model", network=NETWORKS[kind]())
    np.testing.assert_array_equal(loaded.predict_proba(digits[0][:50]), classifier.predict_proba(digits[0][:50]))
    assert loaded.genotype_ == classifier.genotype_
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["genotype"]["space"] == "given"
    assert description["genotype"]["network"] == type(network).__name__


def test_a_choice_in_it_is_searched_and_written_down(digits, tmp_path):
    classifier = brought(searched(), learn="architecture", architecture=ArchitectureConfig(tolerance=0.0)).fit(
        *digits, out=tmp_path / "run", progress=False
    )
    assert [row["searching"] for row in classifier.history_] == [1, 0, 0]
    assert classifier.history_[0]["change_0"] > 0
    block = classifier.model_.network.get_submodule("body.3")
    assert isinstance(block, Sum)
    genotype = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["genotype"]
    assert genotype["blocks"] == {"body.3": block.chosen()}
    assert (tmp_path / "run" / "codes.safetensors").exists()


def test_a_choice_that_is_not_to_be_learned_stays_as_it_starts(digits):
    classifier = brought(searched(), learn="none", epochs=1).fit(*digits, progress=False)
    assert classifier.genotype_.to_dict()["blocks"] == {"body.3": ["pool"]}
    assert classifier.history_[0]["searching"] == 0


def test_without_a_choice_there_is_no_architecture_to_learn(digits):
    architecture = brought(Brought(), learn="architecture", epochs=1).fit(*digits, progress=False)
    none = brought(architecture.network, learn="none", epochs=1).fit(*digits, progress=False)
    assert architecture.history_[0]["train_loss"] == none.history_[0]["train_loss"]
    assert architecture.history_[0]["searching"] == 0


def test_weights_without_gradient_stay(digits):
    network = frozen()
    classifier = brought(network).fit(*digits, progress=False)
    assert torch.equal(classifier.model_.network.get_parameter("body.0.weight"), network.get_parameter("body.0.weight"))
    assert classifier.history_[-1]["head_learning_rate"] == "", "all that is trained is the head: it has the one rate"


def test_loaded_weights_are_what_training_starts_from(digits):
    first = brought(Brought(nn.BatchNorm2d(8)), learn="none", epochs=12).fit(*digits, progress=False)
    losses = []
    for network in (first.model_.network, Brought(nn.BatchNorm2d(8))):
        classifier = brought(network, learn="none", epochs=1).set_params(hyperparameters__learning_rate=0.01)
        losses.append(classifier.fit(*digits, progress=False).history_[0]["train_loss"])
    assert losses[0] < 1.0 < 1.8 < losses[1]


def test_fitting_twice_starts_from_the_same_weights_and_draws(digits):
    network = NETWORKS["dropout"]()
    classifier = brought(network, epochs=1)
    states = [classifier.fit(*digits, progress=False).model_.network.state_dict() for _ in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["head.bias"], network.state_dict()["head.bias"])


def test_limits_hold_for_its_choices_too(digits):
    classifier = brought(searched(), max_parameters=1200, learn="none", epochs=1).fit(*digits, progress=False)
    assert classifier.genotype_.to_dict()["blocks"] == {"body.3": ["pool"]}, "pool costs next to nothing"
    with pytest.raises(DhaError, match=r"max_parameters=100: the smallest network"):
        brought(Brought(), max_parameters=100).fit(*digits, progress=False)
    for network in (Tied(), Valued()):
        brought(network, max_parameters=10**6, epochs=1, learn="none").fit(*digits, progress=False)


class Valued(Brought):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float(images.isfinite().all())


def test_scikit_learn_clones_it(digits):
    classifier = brought(Brought(), epochs=1)
    assert classifier.get_params()["network"] is classifier.network
    copied = cast(ImageClassifier, clone(classifier))
    assert copied.network is not classifier.network
    assert "Brought" in repr(copied)
    rows = [c.fit(*digits, progress=False).history_[0]["train_loss"] for c in (classifier, copied)]
    assert rows[0] == rows[1]


def test_the_command_line_takes_a_file(file, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["fit", "digits", "--out", str(out), "--network", file, "--epochs=2", "--device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"architecture: given, {file}" in shown
    assert "learning rate: 0.03 -> " in shown
    assert "learning rate of the head: 0.2 -> " in shown
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["network"], settings["space"]) == (file, "auto")
    header = (out / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"learning_rate", "head_learning_rate", "weight_decay", "head_weight_decay"} <= set(header)
    reported = json.loads((out / "model" / "model.json").read_text())["results"]["test_accuracy"]

    model = str(out / "model")
    assert main(["evaluate", model, "digits", "--json", "--network", file]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(reported, abs=1e-6)
    assert main(["evaluate", model, "digits"]) == 2
    assert f"--network {file}" in capsys.readouterr().err
    again = ["fit", "digits", "--out", str(tmp_path / "again"), "--config", str(out / "config.yaml"), "--epochs=1"]
    assert main(again) == 0


def test_python_and_a_file_give_the_same_model(file, digits):
    first = brought(file, epochs=1).fit(*digits, progress=False)
    second = brought(file, epochs=1).fit(*digits, progress=False)
    np.testing.assert_array_equal(first.predict_proba(digits[0][:9]), second.predict_proba(digits[0][:9]))


def test_a_module_cannot_come_from_a_settings_file(digits, tmp_path, capsys):
    brought(Brought(), epochs=1).fit(*digits, out=tmp_path / "run", progress=False)
    settings = str(tmp_path / "run" / "config.yaml")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["network"] == "<Brought>"
    assert main(["fit", "digits", "--out", str(tmp_path / "again"), "--config", settings]) == 2
    assert "network='<Brought>' stands for a module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "cells", "network": "net.py:make"}, r"space='cells' and network='net.py:make': give one of the two"),
        ({"space": "residual", "network": Brought()}, r"space='residual' and network='<Brought>'"),
        ({"network": "nowhere.py:make"}, r"there is no file nowhere.py"),
        ({"network": nn.Conv2d(1, 10, 3)}, r"expected logits of shape \(2, 10\)"),
        ({"network": 3}, r"network=3: give a torch.nn.Module"),
    ],
)
def test_errors_leave_no_folder(settings, message, tmp_path):
    with pytest.raises(DhaError, match=message):
        run("digits", config=Config(epochs=1, device="cpu", **settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loading_runs_no_code_that_the_folder_names(tmp_path):
    (tmp_path / "net.py").write_text(FILE + "open(__file__ + '.proof', 'a').close()\n")
    file = f"{tmp_path}/net.py:make"
    run("digits", config=Config(epochs=1, device="cpu", network=file, learn="none"), out=tmp_path / "run")
    (tmp_path / "net.py.proof").unlink()
    with pytest.raises(
        DhaError, match=r"runs no code that it names.*network='.*net.py:make' in Python or --network .*/net"
    ):
        TrainedModel.load(tmp_path / "run" / "model")
    assert not (tmp_path / "net.py.proof").exists()
    TrainedModel.load(tmp_path / "run" / "model", network=file)
    assert (tmp_path / "net.py.proof").exists()


def test_a_network_that_does_not_fit_the_folder_is_named(digits, tmp_path, small):
    brought(Brought(), epochs=1, learn="none").fit(*digits, progress=False).save(tmp_path / "given")
    with pytest.raises(DhaError, match=r"weights of Brought.*network=a module Brought in Python"):
        ImageClassifier.load(tmp_path / "given")
    with pytest.raises(DhaError, match=r"given does not fit the network given.*body.2.weight"):
        ImageClassifier.load(tmp_path / "given", network=Brought(nn.BatchNorm2d(8)))
    with pytest.raises(DhaError, match=r"expected logits of shape \(2, 10\)"):
        ImageClassifier.load(tmp_path / "given", network=nn.Flatten())
    run("digits", config=small(learn="none"), out=tmp_path / "own")
    with pytest.raises(DhaError, match=r"holds its network, of the space 'cells': leave network= out"):
        ImageClassifier.load(tmp_path / "own" / "model", network=Brought())
