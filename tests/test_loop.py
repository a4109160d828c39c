"""What a run does about steps that are not finite, long epochs and the number of epochs; small runs on digits."""

import itertools
import math

import pytest
import torch
from torch import nn

from dha import Config, DhaError
from dha.data import load_source, split
from dha.fit import run
from dha.joint import JointTraining
from dha.passes import Passes


class Faulty(nn.Module):
    """A network of which some training passes have a loss, or a gradient alone, that is not finite."""

    def __init__(self, kind, faulty):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.passes, self.kind, self.faulty = itertools.count(1), kind, faulty

    def forward(self, images):
        logits = self.layers(images)
        if self.training and torch.is_grad_enabled() and self.faulty(next(self.passes)):
            if self.kind == "loss":
                return logits * torch.nan
            logits.register_hook(lambda gradient: gradient * torch.inf)
        return logits


def trained(kind, faulty, **settings):
    network = Faulty(kind, faulty)
    settings = {"epochs": 3, "batch_size": 32, "learn": "none", **settings}
    result = run("digits", config=Config(network=network, device="cpu", validation_fraction=0.3, **settings))
    values = [value for row in result.history for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, values))
    assert [row["epoch"] for row in result.history] == list(range(1, settings["epochs"] + 1))
    assert result.test_accuracy is not None
    return result


def within(*windows):
    return lambda number: any(first <= number <= last for first, last in windows)


KINDS = pytest.mark.parametrize("kind", ["loss", "gradient"])


@KINDS
@pytest.mark.parametrize(("first", "epochs", "size"), [(17, 1, 20), (5, 60, 512), (30, 3, 32), (60, 3, 32)])
def test_a_burst_of_steps_that_are_not_finite_is_survived(kind, first, epochs, size):
    result = trained(kind, within((first, first + 19)), epochs=epochs, batch_size=size)
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9
    assert result.history[-1]["learning_rate"] == pytest.approx(0.1), "half"
    assert result.history[-1]["skipped_steps"] >= 16


@KINDS
def test_a_later_burst_halves_the_rate_that_the_run_had(kind):
    result = trained(kind, within((65, 80), (225, 240)), epochs=12)
    rates = [row["learning_rate"] for row in result.history]
    assert sorted(set(rates)) == pytest.approx([0.05, 0.1, 0.2])
    assert rates == sorted(rates, reverse=True)
    assert result.history[-1]["skipped_steps"] == 32


def test_bursts_one_after_the_other_halve_the_rate_without_compounding():
    result = trained("loss", within((40, 90)), epochs=6)
    assert result.history[-1]["learning_rate"] == pytest.approx(0.05), "a quarter, after going back twice"


@KINDS
def test_single_steps_that_are_not_finite_now_and_then_cost_one_halving(kind):
    result = trained(kind, lambda number: number % 40 == 0, epochs=8)
    assert result.history[-1]["learning_rate"] == pytest.approx(0.1)
    assert result.history[-1]["skipped_steps"] == 8 * 33 // 40
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9


@pytest.mark.parametrize(
    ("kind", "message"),
    [("loss", "its loss is not a finite number, in"), ("gradient", "its loss is finite and the gradient")],
)
def test_trouble_without_end_is_named_by_its_cause(kind, message):
    with pytest.raises(DhaError, match=rf"diverged, {message}.*lower hyperparameters.learning_rate than 0.2"):
        trained(kind, within((20, 10**9)))


def test_a_run_goes_back_to_before_the_end_of_its_search(small, monkeypatch):
    calls, train, searching, begin = itertools.count(1), Passes.train, [], JointTraining.train

    def broken(self, *given):
        losses, logits = train(self, *given)
        return losses * (torch.nan if 20 <= next(calls) <= 60 else 1.0), logits

    def noted(self, *given):
        searching.append(self.searching)
        return begin(self, *given)

    monkeypatch.setattr(Passes, "train", broken)
    monkeypatch.setattr(JointTraining, "train", noted)
    result = run("digits", config=small(epochs=4, batch_size=64))
    changes = [after for before, after in itertools.pairwise(searching) if before != after]
    assert changes[:2] == [False, True], "the search ends, and is gone back to"
    assert not searching[-1]
    assert len(result.history) == 4
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


@pytest.mark.parametrize(("settle", "expected"), [(0.5, 0.5), (0.0, 0.0)])
def test_a_long_epoch_settles_in_the_middle(small, monkeypatch, settle, expected):
    parts = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.15, seed=0)
    unseen = {image.numpy().tobytes() for image in parts.validation.images}
    unseen -= {image.numpy().tobytes() for image in parts.train.images}
    steps, train = [], JointTraining.train

    def noted(self, batch, progress):
        images = (batch.images * 255).round().byte()
        steps.append((progress, self.settled, any(image.numpy().tobytes() in unseen for image in images)))
        return train(self, batch, progress)

    monkeypatch.setattr(JointTraining, "train", noted)
    result = run(
        "digits", config=small(settle=settle, batch_size=16, every=4, learn="hyperparameters", space="residual")
    )
    assert len(result.history) == 1
    first = next(progress for progress, settled, _ in steps if settled)
    assert first == pytest.approx(expected, abs=4 / len(steps))
    assert not any(drawn for progress, settled, drawn in steps if not settled)
    assert any(drawn for progress, settled, drawn in steps if settled)
    row = result.history[0]
    assert (row["validation_accuracy"] != "") == (settle > 0), "as it was before they were trained on"


def test_looks_at_validation_images_become_rarer_in_the_middle_of_a_long_epoch(monkeypatch):
    spaces, train = [], JointTraining.train
    monkeypatch.setattr(
        JointTraining, "train", lambda self, *given: (spaces.append(self.every), train(self, *given))[1]
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run(
        "digits", config=Config(network=network, epochs=1, device="cpu", learn="hyperparameters", batch_size=6, every=2)
    )
    assert spaces[0] == 2
    assert spaces[-1] == 2 * round(len(spaces) / 30)


class Halt(Exception):
    pass


@pytest.mark.parametrize("when", [0.45, 0.55, 0.9])
def test_a_long_epoch_that_settles_is_resumed_to_the_bit(tmp_path, when):
    def halt(progress, row):
        if progress > when:
            raise Halt

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {"epochs": 1, "settle": 0.5, "batch_size": 32, "every": 2, "checkpoint_every": 0.0}
    config = Config(network=network, device="cpu", **settings)
    whole = run("digits", config=config)
    with pytest.raises(Halt):
        run("digits", config=config, out=tmp_path / "run", watch=halt)
    resumed = run("digits", config=config, out=tmp_path / "run", resume=True)
    weights = whole.model.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.model.network.state_dict().items())
    for first, second in zip(whole.history, resumed.history, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.parametrize(("epochs", "size", "settle"), [(7, 64, 0.5), (12, 512, 0.3), (5, 128, 0.0)])
def test_as_many_epochs_are_made_as_were_asked_for(epochs, size, settle):
    settings = {"epochs": epochs, "batch_size": size, "settle": settle, "validation_fraction": 0.3}
    config = Config(network=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), device="cpu", **settings)
    assert [row["epoch"] for row in run("digits", config=config).history] == list(range(1, epochs + 1))
