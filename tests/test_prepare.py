import dataclasses

import pytest
import torch

from dha import DhaError
from dha.augmentation import AugmentationPolicy
from dha.data import Preprocessing, load_source, split
from dha.engine import make_fabric
from dha.fit import run
from dha.prepare import resolve


def test_nothing_set_means_a_budget_by_the_number_of_images(small):
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    fabric = make_fabric("cpu", "32", 8)
    preprocessing = Preprocessing(8, 1, (0.3,), (0.4,))
    assert len(splits.train) == 1295
    assert resolve(small(epochs=None), splits, preprocessing, fabric).budget == pytest.approx(0.04 * 1295)
    assert resolve(small(epochs=3), splits, preprocessing, fabric).budget is None
    few = dataclasses.replace(splits, train=splits.train.select(torch.arange(100)))
    assert resolve(small(epochs=None), few, preprocessing, fabric).budget == 30


def test_a_run_can_start_from_the_policy_of_another(small, tmp_path):
    policy = AugmentationPolicy(["identity", "rotate", "invert"], "pairs", 0.9)
    policy.save(tmp_path / "policy.json")
    config = small(learn="augmentation")
    config.augmentation.set_params(start=str(tmp_path / "policy.json"), rule="validation", learning_rate=0.0)
    assert run("digits", config=config).model.learned["policy"] == policy.to_dict()
    config.augmentation.set_params(start=str(tmp_path / "nothing.json"))
    with pytest.raises(DhaError, match=r"nothing.json' cannot be read"):
        run("digits", config=config)
