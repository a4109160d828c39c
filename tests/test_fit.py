import csv
import json
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dha import ArchitectureConfig, Config, DhaError, HyperparametersConfig
from dha.augmentation import AugmentationPolicy
from dha.data import load_source
from dha.display import summary
from dha.engine import Checkpoints
from dha.fit import run
from dha.joint import LOOKS, JointTraining
from dha.model import TrainedModel, labelled_images


def test_a_run_learns_digits_and_leaves_everything_behind(tmp_path, small):
    out = tmp_path / "run"
    # With this tolerance no code is frozen before the search is over.
    architecture = ArchitectureConfig(depth=2, width=4, nodes=2, tolerance=1e-9)
    result = run("digits", config=small(epochs=6, batch_size=32, architecture=architecture), out=out)
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.7

    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["image_size"] == 8
    assert settings["device"] == "cpu"
    assert settings["architecture"]["width"] == 4
    assert settings["hyperparameters"]["optimizer"] == "muon"
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("train_loss", "learning_rate", "weight_decay", "seconds"):
        assert all(float(row[name]) > 0 for row in rows)
    for name in ("validation_loss", "validation_accuracy"):
        assert all(float(row[name]) > 0 for row in rows[:5])
        assert rows[5][name] == "", "validation images are trained on by then"
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[-1]["policy_entropy"]) != float(rows[0]["policy_entropy"])
    assert "identity>identity" in rows[0]["policy_top_pairs"]
    searching = [row["searching"] for row in rows]
    assert searching == ["1", "1", "0", "0", "0", "0"], "the search keeps to its share of the run"
    changes = [sum(float(v) for k, v in row.items() if k.startswith("change_")) for row in rows]
    assert changes[0] > 0
    assert changes[-1] == 0

    description = json.loads((out / "model" / "model.json").read_text())
    assert description["classes"] == list(range(10))
    assert len(description["schedule"]) == 6
    assert description["results"]["test_accuracy"] == result.test_accuracy
    assert description["results"]["validation_accuracy"] == float(rows[4]["validation_accuracy"])
    policy = AugmentationPolicy.load(out / "model" / "policy.json")
    assert policy.to_dict() == result.model.learned["policy"]
    assert float(rows[-1]["policy_untouched"]) == pytest.approx(policy.untouched(), abs=1e-5)
    loaded = TrainedModel.load(out / "model")
    assert loaded.learned["policy"] == policy.to_dict()
    assert loaded.genotype == result.model.genotype
    assert not list(out.glob(".*")), "no partial files are left"


def test_adamw_starts_where_suits_it_and_learns_digits(tmp_path, small):
    out = tmp_path / "run"
    settings = HyperparametersConfig(optimizer="adamw")
    result = run("digits", config=small(learn="hyperparameters", epochs=4, hyperparameters=settings), out=out)
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.7
    written = yaml.safe_load((out / "config.yaml").read_text())["hyperparameters"]
    assert written["optimizer"] == "adamw"
    assert (written["learning_rate"], written["weight_decay"]) == HyperparametersConfig(optimizer="adamw").starts()
    assert settings.learning_rate is None, "the settings that were given stay as they are"
    for name in ("learning_rate", "weight_decay"):
        assert len({row[name] for row in result.history}) > 1, "learned"
    assert "learning rate: 0.002 -> " in summary(result)


@pytest.mark.parametrize("space", ["auto", "residual", "mobile", "cells"])
def test_networks_of_every_space_are_trained_saved_and_loaded(space, small, tmp_path):
    architecture = ArchitectureConfig(width=4, depth=1, nodes=2)
    result = run("digits", config=small(space=space, architecture=architecture), out=tmp_path / "run")
    assert result.config.space == ("residual" if space == "auto" else space)
    assert result.history[0]["head_learning_rate"] == "", "one rate for all weights"
    loaded = TrainedModel.load(tmp_path / "run" / "model")
    assert loaded.genotype == result.model.genotype
    images = load_source("digits").train.images[:20]
    assert torch.equal(loaded.probabilities(images), result.model.probabilities(images))


def test_equal_seeds_give_equal_models_and_other_seeds_others(small):
    def weights(seed):
        return run("digits", config=small(seed=seed, learn="architecture,augmentation,hyperparameters")).model

    first, second, other = weights(1), weights(1), weights(2)
    assert first.genotype == second.genotype
    state = second.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.network.state_dict().items())
    assert not torch.equal(state["head.bias"], other.network.state_dict()["head.bias"])


def test_validation_images_are_trained_on_at_the_end_only_if_they_were_training_images(small, tmp_path):
    images = load_source("digits").train.images[:200].permute(0, 2, 3, 1).numpy()
    labels = load_source("digits").train.labels[:200].numpy()
    apart, together = tmp_path / "apart", tmp_path / "together"
    for folder, parts in ((apart, {"train": 150, "val": 200}), (together, {"train": 200})):
        folder.mkdir()
        start = 0
        for part, end in parts.items():
            np.savez(folder / f"{part}.npz", x=images[start:end], y=labels[start:end])
            start = end

    def rows_with_validation(source, **settings):
        history = run(source, config=small(epochs=4, batch_size=16, **settings)).history
        return [row["validation_loss"] != "" for row in history]

    assert rows_with_validation(together, settle=0.5) == [True, True, False, False]
    assert rows_with_validation(together, settle=1.0) == [True] * 4
    assert rows_with_validation(apart, settle=0.5) == [True] * 4


@pytest.fixture
def turned(tmp_path):
    """Digits of which those to validate and to test with are turned: the network knows what is in the mirror."""
    digits = load_source("digits").train
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    backwards = images[:, :, ::-1].copy()
    for part, pixels, begin, end in (
        ("train", images, 0, 600),
        ("val", backwards, 600, 800),
        ("test", backwards, 800, 1797),
    ):
        np.savez(tmp_path / f"{part}.npz", x=pixels[begin:end], y=labels[begin:end])
    return tmp_path


@pytest.mark.parametrize("settle", [0.5, 1.0])
def test_a_model_predicts_from_mirror_images_where_validation_images_say_so(small, turned, settle):
    settings = {"epochs": 4, "space": "residual", "learn": "none", "settle": settle}
    result = run(turned, config=small(**settings))
    assert result.model.mirrored
    test = labelled_images(result.model, turned)
    predicted = result.model.probabilities(test).argmax(1)
    assert result.test_accuracy == pytest.approx((predicted == test.labels).float().mean().item(), abs=1e-6)
    plain = run(turned, config=small(**settings, mirrored=False))
    assert not plain.model.mirrored
    assert plain.test_accuracy is not None
    assert result.test_accuracy is not None
    assert plain.test_accuracy < result.test_accuracy - 0.1


@pytest.mark.parametrize(("mirrored", "expected"), [(None, False), (True, True)])
def test_digits_are_not_their_mirror_images(small, mirrored, expected):
    settings = {"epochs": 2, "space": "residual", "learn": "none"}
    assert run("digits", config=small(**settings, mirrored=mirrored)).model.mirrored == expected


def test_a_budget_holds(small, tmp_path):
    budget = 10
    began = time.monotonic()
    result = run("digits", config=small(epochs=None, budget=budget), out=tmp_path / "run")
    assert budget - 5 < time.monotonic() - began < budget + 5
    assert len(result.history) > 1
    schedule = [row["scheduled_learning_rate"] for row in result.history]
    assert schedule[-1] < 0.05 * max(schedule), "the schedule reaches its end within the budget"


def test_a_budget_too_short_to_train_in_is_named(small):
    with pytest.raises(DhaError, match=r"budget=0.001.*before training began.*more time"):
        run("digits", config=small(epochs=None, budget=0.001))


def test_a_training_that_diverged_is_named(small):
    config = small(learn="none")
    config.hyperparameters.set_params(learning_rate=100.0, weight_decay=1.0, warmup=0.0)
    with pytest.raises(DhaError, match=r"diverged.*hyperparameters.learning_rate than 100"):
        run("digits", config=config)


def test_gray_images_have_no_colour_operation(small):
    policy = run("digits", config=small()).model.learned["policy"]
    assert len(policy["operations"]) == 17
    assert "color" not in policy["operations"]


def test_skipped_files_are_counted(small, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(2, 12, 10, 10, 3), dtype=np.uint8)
    for name, images in zip("ab", pixels, strict=True):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    (tmp_path / "a" / "notes.jpg").write_text("not an image")
    with pytest.raises(DhaError, match=r"notes.jpg.*--on-bad-image skip"):
        run(tmp_path, config=small(batch_size=4))
    result = run(tmp_path, config=small(batch_size=4, on_bad_image="skip"))
    assert result.skipped == 1
    assert "skipped: 1 file" in summary(result)


@pytest.mark.parametrize(("rule", "structure"), [("adversarial", "slots"), ("validation", "pairs")])
def test_other_rule_and_the_pair_matrix_of_the_paper(small, rule, structure):
    config = small(learn="augmentation")
    config.augmentation.set_params(rule=rule, structure=structure)
    result = run("digits", config=config)
    assert result.model.learned["policy"]["structure"] == structure
    assert result.history[-1]["policy_entropy"] > 0


def test_bfloat16_trains_too(small):
    result = run("digits", config=small(precision="bf16", epochs=2))
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.model.network.get_parameter("head.weight").dtype == torch.float32


def test_a_folder_that_holds_a_run_is_refused_before_any_work(tmp_path, small):
    (tmp_path / "config.yaml").write_text("# dha fit 'digits'\nseed: 1\n")
    with pytest.raises(DhaError, match="already holds a run"):
        run("digits", config=small(), out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DhaError, match="is a file"):
        run("digits", config=small(), out=tmp_path / "file")


def test_errors_leave_no_folder(tmp_path, small):
    with pytest.raises(DhaError, match="no such file or folder"):
        run("./nowhere", config=small(), out=tmp_path / "run")
    with pytest.raises(DhaError, match="batch_size=1"):
        run("digits", config=small(batch_size=1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Faulty(torch.nn.Module):
    """A network whose training passes give no numbers, from one to another."""

    def __init__(self, first, last):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.passes, self.first, self.last = 0, first, last

    def forward(self, images):
        logits = self.layers(images)
        if self.training and torch.is_grad_enabled():
            self.passes += 1
            if self.first <= self.passes <= self.last:
                return logits * torch.nan
        return logits


def faulty(first, last):
    return Config(
        network=Faulty(first, last), learn="none", epochs=6, batch_size=32, device="cpu", validation_fraction=0.3
    )


def test_a_step_without_a_finite_loss_is_left_out(tmp_path):
    sound, one = (run("digits", config=faulty(*range_)) for range_ in ((0, 0), (20, 20)))
    assert one.test_accuracy is not None
    assert one.test_accuracy > 0.9
    assert one.history[-1]["learning_rate"] == pytest.approx(sound.history[-1]["learning_rate"] / 2, rel=1e-3)
    assert one.history[-1]["skipped_steps"] == 1
    assert sound.history[-1]["skipped_steps"] == 0


def test_repeated_trouble_goes_back_to_the_last_good_state(tmp_path):
    result = run("digits", config=faulty(60, 100), out=tmp_path / "run")
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9
    # Half for going back once, and for each look at those of the steps after that which were skipped, too.
    assert result.history[-1]["learning_rate"] in (0.1, 0.05, 0.025)


def test_trouble_without_end_is_named():
    with pytest.raises(DhaError, match=r"diverged"):
        run("digits", config=faulty(60, 10**9))


def test_images_on_disk_train_the_same_weights_and_are_decoded_once_for_all_attempts(tmp_path, small, monkeypatch):
    digits = load_source("digits").train
    for index in range(120):
        image, label = digits[index]
        file = tmp_path / "photos" / str(label) / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(file)

    class Stopped(Exception):
        pass

    def stop(progress, row):
        if progress > 0.6:
            raise Stopped

    settings = {"epochs": 2, "batch_size": 16, "every": 3}
    expected = run(tmp_path / "photos", config=small(cache="memory", **settings)).model
    disk, out = small(cache="disk", **settings), tmp_path / "run"
    with pytest.raises(Stopped):
        run(tmp_path / "photos", config=disk, out=out, watch=stop)
    monkeypatch.setattr("dha.data.parts.read_image", None)
    found = run(tmp_path / "photos", config=disk, out=out, resume=True).model
    weights, others = expected.network.state_dict(), found.network.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert found.preprocessing == expected.preprocessing
    assert found.learned["policy"] == expected.learned["policy"]
    kept = ["codes.safetensors", "config.yaml", "data.json", "left-out.csv", "metrics.csv", "model"]
    assert sorted(path.name for path in out.iterdir()) == kept


@pytest.mark.parametrize("seconds", [0.0, 0.6])
def test_a_state_that_takes_long_to_keep_is_written_when_it_is_due(tmp_path, small, monkeypatch, seconds):
    written, save = [], Checkpoints.save

    def slow(self, state, write=True):
        time.sleep(seconds)
        if write:
            written.append(len(state["run"]["position"]["history"]["rows"]))
        save(self, state, write)

    monkeypatch.setattr(Checkpoints, "save", slow)
    run("digits", config=small(epochs=3), out=tmp_path / "run")
    assert written[:1] == ([] if seconds else [1]), "nothing was due so soon"
    assert written[-1:] == ([] if seconds else [3])


def test_looks_become_rarer_in_a_run(small, monkeypatch):
    looks, learn = [], JointTraining._learn
    monkeypatch.setattr(
        JointTraining, "_learn", lambda joint, *given: looks.append(joint.steps) or learn(joint, *given)
    )
    run("digits", config=small(epochs=5, batch_size=32, every=2, space="residual", learn="hyperparameters"))
    apart = np.diff(looks)
    assert apart[0] == 2
    assert apart[-1] > 2
    assert apart[-1] >= looks[-1] / LOOKS / 2


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "nonsense"}, "strategy='nonsense'"),
        ({"network": "net.py:absent"}, "net.py has no function 'absent'"),
        ({"network": "net.py:make"}, "running net.py failed"),
        ({"epochs": None, "budget": 1e-9}, "was over before training began"),
        pytest.param(
            {"device": "cuda"}, "device='cuda'", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA")
        ),
    ],
)
def test_what_needs_no_image_is_checked_before_any_is_read(settings, message, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import absent\n" if "make" in str(settings) else "make = dict\n")
    monkeypatch.setattr("dha.fit.load_source", None)
    with pytest.raises(DhaError, match=message):
        run("digits", config=small(**({"space": "auto"} if "network" in settings else {}), **settings), out="run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own_process", [True, False])
def test_freed_memory_stays_only_with_a_process_of_the_run_itself(own_process, small, monkeypatch):
    kept = []
    monkeypatch.setattr("dha.fit.keep_memory", lambda: kept.append(True))
    monkeypatch.setattr("dha.fit.measure", None)
    with pytest.raises(TypeError):
        run("digits", config=small(), own_process=own_process)
    assert bool(kept) is own_process
