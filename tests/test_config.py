import math

import pytest

from dha import ArchitectureConfig, Config, DhaError, HyperparametersConfig
from dha.config import check, config_dict, learned_parts, parse_budget


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(budget="10m", epochs=3), "give one of the two"),
        (Config(epochs=0), "epochs=0.*between 1"),
        (Config(image_size=3), "image_size=3"),
        (Config(batch_size=1.5), "batch_size=1.5.*whole number"),  # pyright: ignore[reportArgumentType]
        (Config(validation_fraction=math.nan), "validation_fraction=nan"),
        (Config(seed=True), "seed=True"),
        (Config(device="tpu"), "device='tpu'.*cuda"),  # pyright: ignore[reportArgumentType]
        (Config(architecture=ArchitectureConfig(squeeze_excite=True)), "squeeze_excite=True and space='auto'.*mobile"),
        (Config(settle=1.5), "settle=1.5.*between 0.0 and 1.0"),
        (
            Config(hyperparameters=HyperparametersConfig(learn="momentum,colour")),
            "hyperparameters.learn='colour'.*decay",
        ),
        (Config(hyperparameters=HyperparametersConfig(learn="label_smoothing", label_smoothing=0.0)), "start above 0"),
        (Config(hyperparameters=HyperparametersConfig(optimizer="lion")), "hyperparameters.optimizer='lion'.*adamw"),  # pyright: ignore[reportArgumentType]
        (Config(architecture=ArchitectureConfig(depth=0)), "architecture.depth=0.*between 1 and 100"),
    ],
)
def test_the_first_bad_setting_is_named_with_its_range(config, message):
    with pytest.raises(DhaError, match=message):
        check(config)


def test_bad_choice_in_a_section_is_named():
    config = Config()
    config.augmentation.set_params(rule="greedy")
    with pytest.raises(DhaError, match=r"augmentation.rule='greedy'.*validation, adversarial"):
        check(config)
    with pytest.raises(DhaError, match=r"no 'colour'.*rule"):
        config.augmentation.set_params(colour=1)


def test_defaults_are_valid_and_plain_values():
    check(Config())
    values = config_dict(Config(learn="none"))
    assert values["learn"] == "none"
    assert values["architecture"]["nodes"] == ArchitectureConfig().nodes
    assert set(values) == set(Config.__dataclass_fields__)
