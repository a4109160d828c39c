import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import dha.evaluation
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.evaluation import RESERVE, STATISTICS_IMAGES, best_by_validation, closing_seconds, evaluate, refresh_statistics
from dha.prepare import prepare, resolve


def begin(config):
    """Return batches and joint training on digits before the first step, splits and settings."""
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.15, seed=0)
    fabric = make_fabric("cpu", "32", 8)
    preprocessing = Preprocessing(8, 1, *measure(splits.train.images))
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    joint.network.train()
    return batches, joint, splits, config


@pytest.fixture
def run(small):
    """What ``begin`` returns for a plain network, after a few steps."""
    batches, joint, splits, config = begin(small(learn="none"))
    for index, (images, labels) in enumerate(batches):
        joint.step(images, labels, 0.05 * index)
    return batches, joint, splits, config


def test_loss_and_accuracy_are_those_of_all_images_at_once(run):
    _, joint, splits, _ = run
    loss, accuracy = evaluate(joint.plain, splits.test, joint.preprocessing, 50, torch.device("cpu"))
    with torch.no_grad():
        logits = joint.plain.eval()(joint.inputs(splits.test.images))
    assert loss == pytest.approx(F.cross_entropy(logits, splits.test.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == splits.test.labels).float().mean().item())


def test_mirror_images_are_averaged_where_they_are_asked_for(run):
    _, joint, splits, _ = run
    loss, accuracy = evaluate(joint.plain, splits.test, joint.preprocessing, 50, torch.device("cpu"), mirrored=True)
    inputs = joint.inputs(splits.test.images)
    with torch.no_grad():
        logits = (joint.plain(inputs) + joint.plain(inputs.flip(3))) / 2
    assert loss == pytest.approx(F.cross_entropy(logits, splits.test.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == splits.test.labels).float().mean().item())


def test_the_weights_with_the_lowest_validation_loss_are_delivered(run):
    batches, joint, splits, config = run
    # Averaged weights that know nothing are not taken, and neither are the last ones when these are the worse.
    for values in joint.average.values:
        values.zero_()
    delivered = best_by_validation(joint, batches, splits, config)
    assert torch.equal(delivered.get_parameter("head.weight"), joint.plain.get_parameter("head.weight"))
    joint.average.values = [weight.detach().clone() for weight in joint.plain.parameters()]
    good = joint.plain.get_parameter("head.weight").detach().clone()
    with torch.no_grad():
        joint.plain.get_parameter("head.weight").neg_()
    assert torch.equal(best_by_validation(joint, batches, splits, config).get_parameter("head.weight"), good)


def test_statistics_that_lag_are_replaced(run):
    batches, joint, splits, config = run
    joint.average = None
    for norm in joint.passes.norms:
        norm.running_var.mul_(100)
    arguments = splits.validation, joint.preprocessing, 64, torch.device("cpu")
    lagging = evaluate(joint.plain, *arguments)[0]
    assert evaluate(best_by_validation(joint, batches, splits, config), *arguments)[0] < lagging


def test_statistics_are_of_a_few_batches_however_many_come_at_once(small):
    batches, joint, _, config = begin(small(learn="augmentation"))
    assert len(next(iter(batches))[1]) > config.images_per_step()
    seen = []
    joint.plain.register_forward_pre_hook(lambda network, inputs: seen.append(len(inputs[0])))
    refresh_statistics(joint.plain, joint, batches, config)
    assert seen == [64] * (STATISTICS_IMAGES // 64)


def test_time_for_the_end_is_set_aside_with_a_reserve(run, monkeypatch):
    _, joint, splits, config = run
    clock = SimpleNamespace(now=0.0, passed=[])

    def timed(network, data, *arguments):
        # An image takes a hundredth of a second, and what is new to the device twice as long.
        clock.now += 0.01 * len(data) * (1 if clock.passed else 2)
        clock.passed.append(len(data))

    monkeypatch.setattr(dha.evaluation, "evaluate", timed)
    monkeypatch.setattr(dha.evaluation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for mirrored, tests in ((None, 2), (False, 1)):
        seconds = closing_seconds(joint, splits, dataclasses.replace(config, mirrored=mirrored))
        images = 3 * len(splits.validation) + 2 * STATISTICS_IMAGES + tests * len(splits.test)
        assert seconds == pytest.approx(1 + 0.01 * RESERVE * images)
