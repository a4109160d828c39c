import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from dha import ArchitectureConfig, Config
from dha.architecture import SIZES, ResidualNetwork, Size, search_network
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.evaluation import evaluate, interim
from dha.fit import run
from dha.model import TrainedModel
from dha.prepare import prepare, resolve
from dha.resizing import mean_seconds, pixels, training_side


@pytest.mark.parametrize(
    ("image_size", "sides"),
    [
        (8, {8}),
        (20, {20}),
        (28, {20, 24, 28}),
        (32, {20, 24, 28, 32}),
        (33, {20, 24, 28, 33}),
        (224, {140, 168, 196, 224}),
    ],
)
def test_sides_grow_to_the_full_size(image_size, sides):
    seen = [training_side(image_size, progress) for progress in np.linspace(0, 1, 101)]
    assert set(seen) == sides
    assert seen == sorted(seen)
    assert set(seen[75:]) == {image_size}


def test_the_mean_over_a_run_is_that_of_its_images():
    sides = np.array([training_side(32, progress) for progress in np.arange(0.0005, 1, 0.001)])
    for fixed in (0.0, 0.7):  # whatever a step takes beside what its pixels take
        seconds = fixed + (sides / 32) ** 2
        found = mean_seconds(32, fixed + 1.0, fixed + (20 / 32) ** 2)
        assert found == pytest.approx(1 / np.mean(1 / seconds), rel=1e-3)
    assert mean_seconds(8, 0.3, 0.3) == pytest.approx(0.3), "these are small enough"
    assert mean_seconds(32, 1.0, 3.0) == pytest.approx(1.0)


def test_smaller_images_are_those_of_pillow():
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(pixels(images, 32), images.float() / 255)
    small = pixels(images, 20)
    for image, ours in zip(images, small, strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((20, 20), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float() / 255
        assert (ours - expected).abs().max() < 1.5 / 255


@pytest.mark.parametrize("space", SIZES)
@pytest.mark.parametrize("image_size", [21, 28, 32, 33, 50, 97])
def test_networks_of_all_spaces_take_every_side(space, image_size):
    network = search_network(space, 3, 4, image_size, Size(4, 2 if space == "cells" else 1, SIZES[space].resolution))
    for progress in (0.0, 0.4, 0.6, 1.0):
        side = training_side(image_size, progress)
        assert network(torch.randn(2, 3, side, side)).shape == (2, 4)


@pytest.fixture
def digits(tmp_path):
    """A file of digits that are 32 pixels wide."""
    source = load_source("digits").train
    large = torch.nn.functional.interpolate(source.images[:400].float(), scale_factor=4).byte()
    np.savez(tmp_path / "digits.npz", x=large.permute(0, 2, 3, 1).numpy(), y=source.labels[:400].numpy())
    return str(tmp_path / "digits.npz")


@pytest.mark.parametrize("progressive", [True, False])
def test_everything_that_is_learned_from_grows_and_the_model_takes_the_full_size(progressive, digits, tmp_path):
    network = ArchitectureConfig(width=4)
    config = Config(
        space="residual", epochs=8, device="cpu", architecture=network, every=4, progressive_resizing=progressive
    )
    seen: dict[int, list[float]] = {}
    progress = 0.0

    def note(module, inputs):
        seen.setdefault(inputs[0].shape[-1], []).append(progress)

    def watch(over, row):
        nonlocal progress
        progress = over

    hook = register_module_forward_pre_hook(lambda m, i: note(m, i) if isinstance(m, ResidualNetwork) else None)
    try:
        result = run(digits, config=config, out=tmp_path / "run", watch=watch)
    finally:
        hook.remove()
    if progressive:
        assert list(seen) == [32, 20, 24, 28], "the time of an evaluation is measured before training"
        assert max(seen[20]) <= 0.35
        assert min(seen[24]) >= 0.25
        assert min(seen[28]) >= 0.5
    else:
        assert list(seen) == [32]
    assert TrainedModel.load(tmp_path / "run" / "model").preprocessing.image_size == 32
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.3


def test_the_model_so_far_takes_the_full_size(digits):
    config = Config(space="residual", epochs=8, device="cpu", architecture=ArchitectureConfig(width=4))
    splits = split(load_source(digits), validation_fraction=0.1, test_fraction=0.0, seed=0)
    fabric = make_fabric("cpu", "32", 32)
    preprocessing = Preprocessing(32, 1, *measure(splits.train.images))
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    joint.finish_search()
    for _ in range(8):
        for images, labels in batches:
            joint.step(images, labels, progress=0.1)
    arguments = splits.validation, preprocessing, 64, torch.device("cpu")
    at_20 = evaluate(joint.plain, *arguments, side=20)[0]
    as_it_is = evaluate(joint.plain, *arguments)[0]
    statistics = joint.plain.state_dict()["body.1.running_mean"].clone()
    so_far = evaluate(interim(joint, splits, config, side=20), *arguments)[0]
    assert at_20 < as_it_is, "the statistics are those of smaller images"
    assert so_far < as_it_is
    assert torch.equal(joint.plain.state_dict()["body.1.running_mean"], statistics), "training goes on as it was"
