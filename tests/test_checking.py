import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dha import ArchitectureConfig, Config, DhaError, HyperparametersConfig
from dha.checking import check
from dha.config import PARTS, config_dict


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
        (Config(hyperparameters=HyperparametersConfig(learn="drop_path")), "drop_path=0.*start above 0"),
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learn": None}, r"learn=None: expected a string or a list of strings"),
        ({"learn": [1, 2]}, r"learn=\[1, 2\]: expected a string or"),
        ({"budget": [10]}, r"budget=\[10\]: expected a string or a number or nothing"),
        ({"budget": True}, r"budget=True"),
        ({"every": None}, r"every=None: expected a whole number between 1"),
        ({"progressive_resizing": 1}, r"progressive_resizing=1: expected true or false"),
        ({"architecture": {"width": 8}}, r"architecture=.*: expected ArchitectureConfig"),
        ({"space": ["residual"]}, r"space=\['residual'\]: choose from"),
    ],
)
def test_values_of_another_type_are_named(settings, message):
    with pytest.raises(DhaError, match=message):
        check(Config(**settings))


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
PLACES = [(None, f.name) for f in fields(Config)]
PLACES += [(part, f.name) for part in PARTS for f in fields(getattr(Config(), part))]


@given(st.sampled_from(PLACES), ANYTHING)
def test_any_value_in_any_place_is_taken_or_named(place, value):
    part, name = place
    config = Config()
    setattr(config if part is None else getattr(config, part), name, value)
    said = ""
    try:
        check(config)
    except DhaError as error:
        said = str(error)
    assert name in said if said else config_dict(config)


def test_a_weight_decay_of_zero_is_not_learned_where_it_is_asked_for():
    for learn in ("weight_decay", ["learning_rate", "weight_decay"]):
        with pytest.raises(DhaError, match=r"weight_decay=0: to be learned it has to start above 0"):
            check(Config(hyperparameters=HyperparametersConfig(weight_decay=0.0, learn=learn)))
    check(Config(hyperparameters=HyperparametersConfig(weight_decay=0.0)))
    check(Config(hyperparameters=HyperparametersConfig(weight_decay=0.0, learn="learning_rate")))
