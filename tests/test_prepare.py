import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from dha import AugmentationConfig, DhaError, HyperparametersConfig
from dha.architecture import BRANCHES, genotype_of
from dha.architecture import OPERATIONS as CELL_OPERATIONS
from dha.architecture.mobile import LAYERS
from dha.augmentation import AugmentationPolicy
from dha.data import LabelledImages, Preprocessing, Splits, load_source, split
from dha.engine import make_fabric
from dha.fit import run
from dha.pace import Pace
from dha.prepare import CENTRE, WHITENED, build, centres, prepare, resolve, together


def test_nothing_set_means_a_budget_by_the_number_of_images(small):
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    fabric = make_fabric("cpu", "32", 8)
    preprocessing = Preprocessing(8, 1, (0.3,), (0.4,))
    assert len(splits.train) == 1295
    assert resolve(small(epochs=None), splits, preprocessing, fabric).budget == pytest.approx(0.04 * 1295)
    assert resolve(small(epochs=3), splits, preprocessing, fabric).budget is None
    few = dataclasses.replace(splits, train=splits.train.select(torch.arange(100)))
    assert resolve(small(epochs=None), few, preprocessing, fabric).budget == 30


@pytest.mark.parametrize(
    ("settings", "start", "expected", "built"),
    [
        ({"space": "mobile", "budget": 20.0}, "reference", "heavy", {"k3_e6", "k5_e6"}),
        ({"space": "mobile", "budget": 19.0}, "reference", "light", {"k3_e3"}),
        ({"space": "mobile", "budget": 19.0}, "heavy", "heavy", {"k3_e6", "k5_e6"}),
        ({"space": "mobile", "epochs": 100}, "reference", "light", {"k3_e3"}),
        ({"space": "cells", "budget": 20.0}, "reference", "heavy", {"separable_3x3", "avg_pool_3x3"}),
        ({"space": "cells", "budget": 19.0}, "reference", "light", {"skip", "separable_3x3", "max_pool_3x3"}),
        ({"space": "cells", "budget": 20.0}, "random", "random", None),
        ({"space": "residual", "budget": 20.0}, "reference", "light", {"skip", "pair_3x3", "single_5x5"}),
    ],
)
def test_a_search_begins_with_what_there_is_time_for(small, monkeypatch, settings, start, expected, built):
    monkeypatch.setattr("dha.automatic.seconds_of_size", lambda *args: {"32": Pace(1 / 1300, resizing=False)})
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    preprocessing, fabric = Preprocessing(8, 1, (0.3,), (0.4,)), make_fabric("cpu", "32", 8)
    config = small(**{"epochs": None, "learn": "none", "precision": "32", **settings})
    config.architecture.set_params(start=start)
    config = resolve(config, splits, preprocessing, fabric)
    assert config.architecture.start == expected
    genotype = json.dumps(genotype_of(build(config, preprocessing, 10, fabric.device), None).to_dict())
    names = {name for name in (*CELL_OPERATIONS, *BRANCHES, *LAYERS) if f'"{name}"' in genotype}
    assert built is None or names == built


@pytest.mark.parametrize(
    ("settings", "timed", "progressive"),
    [
        ({"epochs": 3}, None, True),  # on a CPU
        ({"epochs": 3, "progressive_resizing": False}, None, False),
        ({"budget": 20.0}, True, True),
        ({"budget": 20.0}, False, False),
        ({"budget": 20.0, "progressive_resizing": True}, None, True),
        ({"epochs": 3, "network": torch.nn.Flatten()}, None, False),
    ],
)
def test_whether_images_begin_small_is_decided_by_timing(small, monkeypatch, settings, timed, progressive):
    asked = []

    def paced(*_):
        asked.append(True)
        return {"32": Pace(1e-6, resizing=timed)}

    monkeypatch.setattr("dha.prepare.seconds_per_image", paced)
    images = LabelledImages(torch.zeros(80, 3, 32, 32, dtype=torch.uint8), torch.arange(80) % 2)
    splits = Splits(images, images, None, ("a", "b"), held_out=True)
    preprocessing, fabric = Preprocessing(32, 3, (0.5,) * 3, (0.2,) * 3), make_fabric("cpu", "32", 32)
    config = resolve(
        small(**{"epochs": None, "precision": "32", "space": "residual", **settings}), splits, preprocessing, fabric
    )
    assert config.progressive_resizing == progressive
    assert bool(asked) == (timed is not None), "nothing is timed that is not open"


def test_what_is_left_of_the_budget_decides(small, monkeypatch):
    monkeypatch.setattr("dha.automatic.seconds_of_size", lambda *_: {"32": Pace(1 / 1300, resizing=False)})
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    preprocessing, fabric = Preprocessing(8, 1, (0.3,), (0.4,)), make_fabric("cpu", "32", 8)
    config = small(epochs=None, learn="none", precision="32", space="mobile", budget=30.0)
    starts = [resolve(config, splits, preprocessing, fabric, spent).architecture.start for spent in (0.0, 10.0, 11.0)]
    assert starts == ["heavy", "heavy", "light"]


def test_a_run_can_start_from_the_policy_of_another(small, tmp_path):
    policy = AugmentationPolicy(["identity", "rotate", "invert"], "pairs", 0.9)
    policy.save(tmp_path / "policy.json")
    config = small(learn="augmentation")
    config.augmentation.set_params(start=str(tmp_path / "policy.json"), rule="validation", learning_rate=0.0)
    assert run("digits", config=config).model.learned["policy"] == policy.to_dict()
    config.augmentation.set_params(start=str(tmp_path / "nothing.json"))
    with pytest.raises(DhaError, match=r"nothing.json': there is no such file"):
        run("digits", config=config)


@pytest.mark.parametrize(("width", "whitened"), [(8, False), (12, True)])
def test_training_begins_with_filters_that_whiten_where_there_are_enough_of_them(small, width, whitened):
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    preprocessing, fabric = Preprocessing(8, 1, (0.3,), (0.4,)), make_fabric("cpu", "32", 8)
    config = small(space="residual")
    config.architecture.set_params(width=width, depth=1)
    config = resolve(config, splits, preprocessing, fabric)
    *_, joint = prepare(splits, preprocessing, config, fabric)
    filters = next(joint.plain.parameters())
    outputs = F.conv2d(joint.inputs(splits.train.images), filters)[:, :9].transpose(0, 1).flatten(1)
    off_diagonal = outputs.corrcoef() - torch.eye(outputs.shape[0])
    assert filters.shape == (width, 1, 3, 3)
    assert (off_diagonal.abs().max() < 0.1) == whitened


@pytest.mark.parametrize(("count", "step"), [(3, 1), (WHITENED, 1), (WHITENED + 1, 2)])
def test_centres_are_of_images_from_first_to_last(count, step):
    images = torch.randint(256, (count, 1, CENTRE + 8, CENTRE + 8), dtype=torch.uint8)
    found = centres(LabelledImages(images, torch.zeros(count, dtype=torch.int64)))
    torch.testing.assert_close(found, images[::step, :, 4:-4, 4:-4] / 255)


def test_small_images_are_their_own_centres():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(centres(LabelledImages(images, torch.zeros(2, dtype=torch.int64))), images / 255)


@pytest.mark.parametrize(
    ("side", "settings", "expected"),
    [
        (32, {}, 4),
        (64, {}, 2),  # 128 images of 64 pixels are 1.6 million numbers
        (224, {}, 1),
        (32, {"every": 6}, 3),
        (32, {"every": 1}, 1),
        (32, {"batch_size": 300}, 1),  # fewer images than that
        (32, {"learn": "hyperparameters"}, 1),
        (32, {"learn": "none", "augmentation": AugmentationConfig(rule="fixed")}, 4),
    ],
)
def test_batches_are_augmented_at_once_where_the_policy_waits_and_images_are_small(small, side, settings, expected):
    images = LabelledImages(
        torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(200, 3, side, side), torch.arange(200) % 2
    )
    assert together(small(**{"batch_size": 64, "every": 24, **settings}), images) == expected


def test_a_weight_decay_of_zero_stays_zero_and_is_said_not_to_be_learned(small):
    settings = HyperparametersConfig(weight_decay=0.0, warmup=0.0)
    result = run("digits", config=small(every=2, space="residual", hyperparameters=settings))
    assert result.config.hyperparameters.learn == "learning_rate"
    assert [row["weight_decay"] for row in result.history] == [0.0]
    assert result.history[0]["learning_rate"] != 0.2
