"""Weights of classes and images: what they are, and that all losses of a run follow them."""

import itertools
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import log_loss, recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from dha import AugmentationConfig, Config, DhaError, HyperparametersConfig, ImageClassifier
from dha.class_weights import read_class_weight, weighted, with_sample_weights
from dha.config import LEARNED
from dha.data import LabelledImages, Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.errors import DataWarning
from dha.evaluation import evaluate
from dha.fit import run
from dha.options import parse
from dha.prepare import prepare, resolve

TWOS = {number: 2.0 if number == 3 else 1.0 for number in range(10)}


def arrays():
    data = load_source("digits").train
    return data.images[:, 0].numpy(), data.labels.numpy()


def digits(class_weight=None, sample_weight=None):
    source = with_sample_weights(load_source(*arrays()), sample_weight)
    return weighted(split(source, validation_fraction=0.2, test_fraction=0.0, seed=0), class_weight)


def linear(**settings):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Config(**{"network": network, "epochs": 1, "device": "cpu", "batch_size": 64, **settings})


def joint_training(splits, config):
    fabric, preprocessing = make_fabric("cpu", "32", 8), Preprocessing(8, 1, *measure(splits.train))
    batches, _, _, joint = prepare(splits, preprocessing, resolve(config, splits, preprocessing, fabric), fabric)
    joint.network.train()
    return batches, joint


def test_balanced_weights_are_those_of_scikit_learn():
    parts = digits("balanced")
    labels = parts.train.labels.numpy()
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(10), y=labels)).float()
    torch.testing.assert_close(parts.train.weights, expected[parts.train.labels])
    assert parts.validation.weights is not None
    torch.testing.assert_close(parts.validation.weights, expected[parts.validation.labels])


def test_weights_have_a_mean_of_one_over_the_training_images_and_multiply():
    own = np.random.default_rng(0).random(1438)
    parts = digits({number: 1.0 + number for number in range(10)}, own)
    assert parts.train.weights is not None
    assert parts.train.weights.mean().item() == pytest.approx(1)
    source = with_sample_weights(load_source(*arrays()), own)
    plain = split(source, validation_fraction=0.2, test_fraction=0.0, seed=0).train
    assert plain.weights is not None
    ratio = parts.train.weights / (plain.weights * (1.0 + plain.labels))
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


def test_without_weights_images_stay_as_they_are():
    parts = split(load_source("digits"), validation_fraction=0.2, test_fraction=0.0, seed=0)
    assert weighted(parts, None) is parts
    assert len(parts.train.at(torch.tensor([0]))) == 2


@pytest.mark.parametrize("learned", ["none", "augmentation,hyperparameters"])
def test_weights_of_one_change_nothing(learned):
    config = linear(learn=learned)
    runs = [run("digits", config=config)]
    config.class_weight = dict.fromkeys(range(10), 3.0)
    runs.append(run("digits", config=config))
    rows = [{**result.history[-1], "seconds": 0} for result in runs]
    assert rows[0] == rows[1]
    first, second = (result.model.network.state_dict() for result in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_class_of_weight_two_has_the_gradients_of_its_images_twice():
    images, labels = (part[:60] for part in (load_source("digits").train.images, load_source("digits").train.labels))
    weights = torch.tensor([TWOS[number] for number in labels.tolist()])
    twice = torch.cat([torch.arange(60), (labels == 3).nonzero()[:, 0]])
    assert len(twice) > 60
    _, joint = joint_training(digits(), linear())
    smoothing = torch.tensor(0.1)

    def gradients(images, labels, weights):
        inputs = joint.preprocessing.normalise(images / 255)
        joint.passes.train(inputs, labels, smoothing, None, weights)
        trained = [parameter.grad.clone() for parameter in joint.plain.parameters()]
        joint.optimizer.zero_grad()
        held_out, _ = joint.passes.held_out(images / 255, labels, smoothing, joint.weights, weights)
        return [*trained, *held_out]

    expected = gradients(images[twice], labels[twice], None)
    found = gradients(images, labels, weights / weights.mean())
    unweighted = gradients(images, labels, None)
    for ours, theirs, other in zip(found, expected, unweighted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ours, other, rtol=1e-2)


def test_the_step_of_a_run_is_that_of_the_weighted_loss(monkeypatch):
    settings = HyperparametersConfig(label_smoothing=0.0, warmup=0.0, optimizer="sgd", weight_decay=0.0, learn="none")
    batches, joint = joint_training(digits("balanced"), linear(learn="none", hyperparameters=settings))
    images, labels, weights = next(iter(batches))
    inputs = joint.preprocessing.normalise(images / 255)
    loss = (F.cross_entropy(joint.plain(inputs), labels, reduction="none") * weights).mean()
    expected = torch.autograd.grad(loss, list(joint.plain.parameters()))
    seen, step = [], joint.optimizer.step

    def noted(*given):
        seen.extend(parameter.grad.clone() for parameter in joint.plain.parameters())
        step(*given)

    monkeypatch.setattr(joint.optimizer, "step", noted)
    (batch,) = joint.batching.batches(images, labels, 0.0, weights)
    joint.train(batch, 0.0)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_validation_loss_follows_the_weights_and_accuracy_does_not():
    parts = digits({number: 1.0 + number**2 for number in range(10)})
    _, joint = joint_training(parts, linear())
    arguments = joint.preprocessing, 64, torch.device("cpu")
    loss, accuracy = evaluate(joint.plain, parts.validation, *arguments)
    probabilities = joint.plain(joint.inputs(parts.validation.images)).detach().double().softmax(1).numpy()
    labels, weights = parts.validation.labels.numpy(), parts.validation.weights
    assert weights is not None
    assert loss == pytest.approx(log_loss(labels, probabilities, sample_weight=weights.numpy()), rel=1e-5)
    assert accuracy == pytest.approx((probabilities.argmax(1) == labels).mean())


@pytest.mark.parametrize("rule", ["generalisation", "adversarial", "validation"])
def test_the_policy_learns_from_weighted_losses(rule, monkeypatch):
    settings = AugmentationConfig(rule=rule, identity=0.999)
    batches, joint = joint_training(digits("balanced"), linear(learn="augmentation", every=1, augmentation=settings))
    images, labels, weights = next(iter(batches))
    learner, noted = joint.batching.learner, []
    assert learner is not None
    plain = joint.passes.losses(images / 255, labels)
    monkeypatch.setattr(learner, "learn", lambda seen, unseen, progress: noted.append(seen[1]))
    monkeypatch.setattr(learner, "note", lambda draws, signal: noted.append(signal))
    if rule == "validation":
        monkeypatch.setattr(joint.passes, "alignments", lambda *given: plain)
    (batch,) = joint.batching.batches(images, labels, 0.0, weights)
    joint.train(batch._replace(augmented=batch.images), 0.0)
    if rule == "adversarial":
        plain = F.cross_entropy(joint.plain(joint.inputs(images)), labels, reduction="none", label_smoothing=0.1)
        assert torch.corrcoef(torch.stack([noted[0], plain.detach() * weights]))[0, 1] > 0.99
    else:
        torch.testing.assert_close(noted[0], plain * weights)


def test_all_hyperparameters_learn_with_weights(small):
    settings = HyperparametersConfig(learn=",".join(LEARNED), drop_path=0.1, warmup=0.0)
    config = small(space="residual", class_weight="balanced", every=2, hyperparameters=settings)
    result = run("digits", config=config)
    assert result.history[-1]["label_smoothing"] != 0.1
    assert result.history[-1]["drop_path"] != 0.1


@pytest.mark.parametrize("on_disk", [False, True])
def test_weights_travel_with_their_images(tmp_path, on_disk):
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    if on_disk:
        (tmp_path / "images").write_bytes(images.numpy().tobytes())
        images = torch.from_file(str(tmp_path / "images"), size=images.numel(), dtype=torch.uint8).view(images.shape)
    whole = LabelledImages(images, torch.zeros(30, dtype=torch.long)).weighted(torch.arange(30.0))
    odd, even = whole.select(torch.arange(1, 30, 2)), whole.select(torch.arange(30) % 2 == 0)
    joined = odd.select([3, 1]).join(even)
    for part in (whole, odd, even, joined):
        for several in (part.at(torch.tensor([1, 0])), part.read(torch.tensor([1, 0])), *part.chunks(4)):
            assert torch.equal(several[0][:, 0, 0, 0].float(), several[2])
        assert part.weights is not None
        assert len(part.weights) == len(part)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.json", json.dumps({str(number): 1.5 + number for number in range(10)})),
        ("weights.yaml", yaml.safe_dump({number: 1.5 + number for number in range(10)})),
        ("weights.csv", "".join(f"{number},{1.5 + number}\n" for number in range(10))),
        ("weights.csv", "class,weight\n" + "".join(f"{number},{1.5 + number}\n" for number in range(10))),
    ],
)
def test_weights_of_a_file_are_those_of_a_mapping(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    config = read_class_weight(parse("fit", ["digits", f"--class-weights={tmp_path / name}"])["config"])
    expected = digits({number: 1.5 + number for number in range(10)})
    found = digits(config.class_weight)
    assert expected.train.weights is not None
    assert found.train.weights is not None
    assert torch.equal(found.train.weights, expected.train.weights)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("--class-weights=balanced", "balanced"), ("--class-weight=none", None), ("--class_weights=none", None)],
)
def test_the_command_line_takes_class_weights(written, expected):
    assert parse("fit", ["digits", written])["config"].class_weight == expected
    assert parse("fit", ["digits", *written.split("=")])["config"].class_weight == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({**TWOS, "cat": 1.0}, r"class_weight has 'cat', which is no class: the classes are 0, 1, 2, "),
        (dict.fromkeys(range(9), 1.0), "no weight for class '9'"),
        ({**TWOS, "4": 7.0}, "class_weight names a class twice, as a number and as a string"),
        ({**TWOS, "False": 1.0}, "names the class true or false: write yes, no, true and false in quotes"),
        ({**TWOS, 4: 0.0}, "class_weight of 4 is 0.0: give every class a positive, finite number"),
        ({**TWOS, 4: -1}, "class_weight of 4 is -1"),
        ({**TWOS, 4: float("nan")}, "class_weight of 4 is nan"),
        ({**TWOS, 4: float("inf")}, "class_weight of 4 is inf"),
        ({**TWOS, 4: "much"}, "class_weight of 4 is 'much'"),
        ("balancd", r"class_weight='balancd'"),
        (7, "class_weight=7: expected"),
    ],
)
def test_class_weights_that_cannot_be_used_are_named_before_training(weights, message, monkeypatch):
    monkeypatch.setattr("dha.fit.TrainingLoop", lambda *given: pytest.fail("training has begun"))
    with pytest.raises(DhaError, match=message) as error:
        run("digits", config=linear(class_weight=weights))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "0,1\n0,2\n", "0,1\n1\n"])
@pytest.mark.parametrize("name", ["weights.yaml", "weights.csv"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DhaError, match=r"class_weight(=.*weights\.| of )") as error:
        read_class_weight(Config(class_weight=str(tmp_path / name)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(1437), "sample_weight has the shape"),
        (np.ones((1438, 1)), "sample_weight has the shape"),
        (np.full(1438, -1.0), r"sample_weight\[0\] is -1.0"),
        (np.where(np.arange(1438) == 5, np.nan, 1.0), r"sample_weight\[5\] is nan"),
        (np.zeros(1438), "sample_weight is 0 for all"),
        (["a"] * 1438, "sample_weight is"),
    ],
)
def test_sample_weights_that_cannot_be_used_are_named(weights, message):
    data = load_source("digits").train
    with pytest.raises(DhaError, match=message):
        ImageClassifier(epochs=1).fit(data.images[:, 0].numpy(), data.labels.numpy(), sample_weight=weights)


def test_images_of_weight_zero_are_not_learned():
    data = load_source("digits").train
    x, y = data.images[:1000, 0].numpy(), data.labels[:1000].numpy()
    wrong = np.arange(1000) % 2 == 0
    y = np.where(wrong, (y + 1) % 10, y)
    classifier = ImageClassifier(**{**vars(linear(epochs=8, learn="none")), "class_weight": None})
    classifier.fit(x, y, sample_weight=~wrong, progress=False)
    test = slice(1000, None)
    assert classifier.score(data.images[test, 0].numpy(), data.labels[test].numpy()) > 0.8


def test_a_run_keeps_its_weights_and_is_resumed_with_them(tmp_path):
    config = linear(epochs=2, learn="none", checkpoint_every=0.0, class_weight=TWOS)
    whole = run("digits", config=config)

    def halt(progress, row):
        if progress > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("digits", config=config, out=tmp_path / "run", watch=halt)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["class_weight"] == TWOS
    given = linear(epochs=2, learn="none")
    resumed = run("digits", config=given, out=tmp_path / "run", resume=True)
    first, second = (result.model.network.state_dict() for result in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_balanced_weights_find_more_of_rare_classes():
    data = load_source("digits").train
    rare = (data.labels[:1100] >= 5).numpy()
    keep = np.flatnonzero(~rare | (rare & (np.cumsum(rare) % 20 == 0)))
    x, y = data.images[keep, 0].numpy(), data.labels[keep].numpy()
    recalls = []
    for weights in (None, "balanced"):
        model = ImageClassifier(**{**vars(linear(epochs=6, learn="none")), "class_weight": weights})
        expected = nullcontext() if weights else pytest.warns(DataWarning, match="rare classes are learned badly")
        with expected:
            model.fit(x, y, progress=False)
        predicted = model.predict(data.images[1100:, 0].numpy())
        recalls.append(recall_score(data.labels[1100:].numpy(), predicted, labels=range(5, 10), average="macro"))
    assert recalls[1] > recalls[0] + 0.1


def test_every_epoch_draws_the_weights_of_its_images():
    batches, _ = joint_training(digits(TWOS), linear(learn="none"))
    for images, labels, weights in itertools.islice(batches, 3):
        assert len(images) == len(labels) == len(weights)
        assert len(weights[labels == 3].unique()) == len(weights[labels != 3].unique()) == 1
        assert (weights[labels == 3][0] / weights[labels != 3][0]).item() == pytest.approx(2)
