import math

import pytest

from dha import ArchitectureConfig, Config, DhaError, HyperparametersConfig
from dha.checking import check
from dha.config import config_dict, learned_parts, optimizer_of, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 min", 120), ("45", 45), (7, 7), (0.5, 0.5)]
)
def test_budgets_as_people_write_them(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "-5", "10 days", 0, -1, math.nan, math.inf, "0m"])
def test_what_is_no_length_of_time_is_named(text):
    with pytest.raises(DhaError, match=r"budget=.*10m"):
        parse_budget(text)


def test_learned_parts_in_canonical_order():
    assert learned_parts("hyperparameters, architecture") == ("architecture", "hyperparameters")
    assert learned_parts(["augmentation"]) == ("augmentation",)
    assert learned_parts("none") == learned_parts("") == learned_parts(()) == ()
    with pytest.raises(DhaError, match=r"learn='colour'.*architecture"):
        learned_parts("architecture,colour")


def test_defaults_are_valid_and_plain_values():
    check(Config())
    values = config_dict(Config(learn="none"))
    assert values["learn"] == "none"
    assert values["architecture"]["nodes"] == ArchitectureConfig().nodes
    assert set(values) == set(Config.__dataclass_fields__)


def test_networks_that_are_brought_are_trained_by_sgd_unless_another_optimizer_is_named():
    assert optimizer_of(Config()) == "muon"
    assert optimizer_of(Config(network="net.py:build")) == "sgd"
    for name in ("sgd", "muon", "adamw"):
        for network in (None, "net.py:build"):
            named = Config(network=network, hyperparameters=HyperparametersConfig(optimizer=name))
            assert optimizer_of(named) == name
