from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from dha import ArchitectureConfig, DhaError, ImageClassifier
from dha.data import ImageFormat, image_chunks, load_source
from dha.model import labelled_images


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels


@pytest.fixture
def classifier():
    architecture = ArchitectureConfig(depth=2, width=4, nodes=2)
    return ImageClassifier(epochs=3, batch_size=32, device="cpu", space="cells", architecture=architecture)


@pytest.fixture(scope="module")
def fitted(digits):
    classifier = ImageClassifier(
        epochs=4, batch_size=32, device="cpu", space="cells", architecture=ArchitectureConfig(depth=2, width=4, nodes=2)
    )
    return classifier.fit(digits[0][:1500], digits[1][:1500])


def test_the_estimator_contract(classifier):
    assert is_classifier(classifier)
    copy = cast(ImageClassifier, clone(classifier))
    assert copy is not classifier
    assert copy.architecture is not classifier.architecture
    assert copy.get_params()["architecture__width"] == 4
    copy.set_params(seed=7, architecture__width=8)
    assert (copy.seed, copy.architecture.width) == (7, 8)
    assert (classifier.seed, classifier.architecture.width) == (0, 4)
    assert "epochs=3" in repr(classifier)
    with pytest.raises(ValueError, match="colour"):
        copy.set_params(colour=1)
    with pytest.raises(NotFittedError, match="call fit"):
        classifier.predict(np.zeros((1, 8, 8)))


def test_fit_does_not_change_parameters(classifier, digits):
    before = repr(classifier.get_params())
    classifier.set_params(epochs=1).fit(digits[0][:200], digits[1][:200])
    assert repr(classifier.set_params(epochs=3).get_params()) == before
    assert classifier.config_.image_size == 8


def test_one_image_gets_one_label(fitted, digits, tmp_path):
    image = digits[0][1600]
    as_bytes = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    as_bytes.save(tmp_path / "a.png")
    expected = fitted.predict(digits[0][1600:1601])
    for one in (image, torch.from_numpy(image), torch.from_numpy(image)[None], as_bytes, tmp_path / "a.png", [image]):
        assert fitted.predict(one).tolist() == expected.tolist()


def test_images_are_converted_as_in_training_wherever_the_model_is_used(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 3000, (20, 8), dtype=np.uint16)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            alpha = Image.fromarray(rng.integers(0, 256, (8, 20), dtype=np.uint8))
            Image.merge("LA", (alpha, alpha)).save(tmp_path / "photos" / name / f"{i}.png")
            Image.fromarray(rng.permuted(deep)).save(tmp_path / "photos" / name / f"deep{i}.png")
    settings: dict[str, Any] = {"resize": "pad", "background": "black"}
    classifier = ImageClassifier(
        epochs=1, device="cpu", space="cells", architecture=ArchitectureConfig(depth=1, width=2, nodes=2), **settings
    )
    classifier.fit(tmp_path / "photos", out=tmp_path / "run", progress=False)
    loaded = ImageClassifier.load(tmp_path / "run" / "model")
    image_format = loaded.model_.preprocessing.image_format
    assert image_format == ImageFormat(20, 1, "pad", "black", 4095, 1)
    expected = load_source(tmp_path / "photos", **settings).train
    evaluated = labelled_images(loaded.model_, tmp_path / "photos")
    assert torch.equal(evaluated.images, expected.images)
    paths = sorted((tmp_path / "photos" / "a").iterdir()) + sorted((tmp_path / "photos" / "b").iterdir())
    assert torch.equal(torch.cat(list(image_chunks(paths, image_format))), expected.images)
    np.testing.assert_array_equal(loaded.predict_proba(paths), loaded.model_.probabilities(expected.images).numpy())
    np.testing.assert_array_equal(loaded.predict_proba(deep), loaded.predict_proba([Image.fromarray(deep)]))


def test_predictions_from_arrays(fitted, digits):
    images, labels = digits[0][1500:], digits[1][1500:]
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (297, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    predictions = fitted.predict(images)
    assert np.array_equal(predictions, fitted.classes_[probabilities.argmax(1)])
    assert fitted.score(images, labels) == pytest.approx((predictions == labels).mean())
    assert fitted.score(images, labels) > 0.6
    assert fitted.score(images, labels, sample_weight=(predictions == labels) + 1e-9) == pytest.approx(1)
    assert fitted.test_accuracy_ is None
    assert len(fitted.history_) == 4


def test_uint8_floats_pil_images_and_paths_are_the_same_images(fitted, digits, tmp_path):
    floats = digits[0][:12]
    bytes_ = np.rint(floats * 255).astype(np.uint8)
    pictures = [Image.fromarray(image) for image in bytes_]
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    expected = fitted.predict_proba(floats)
    for images in (bytes_, bytes_[..., None], pictures, paths):
        np.testing.assert_array_equal(fitted.predict_proba(images), expected)
    np.testing.assert_allclose(fitted.predict_proba(paths[0]), expected[:1], rtol=1e-4)


def test_string_labels_come_back(digits):
    names = np.array(["zero", "one"])
    chosen = digits[1] < 2
    classifier = ImageClassifier(
        epochs=2,
        batch_size=32,
        device="cpu",
        space="cells",
        learn="none",
        architecture=ArchitectureConfig(depth=1, width=4, nodes=1),
    )
    classifier.fit(
        list(map(Image.fromarray, np.rint(digits[0][chosen] * 255).astype(np.uint8))), names[digits[1][chosen]]
    )
    assert list(classifier.classes_) == ["one", "zero"]
    assert set(classifier.predict(digits[0][chosen])) <= {"one", "zero"}


def test_save_and_load(fitted, digits, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = ImageClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(digits[0][:50]), fitted.predict_proba(digits[0][:50]))
    assert loaded.genotype_ == fitted.genotype_


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((20, 8, 8), np.nan), [0, 1] * 10, "NaN|nan"),
        (np.zeros((20, 8)), [0, 1] * 10, r"shape \(20, 8\)"),
        (np.zeros((20, 8, 8)), [0, 1] * 9, "18"),
        (np.zeros((20, 8, 8)), [0] * 20, "at least 2"),
        (np.zeros((20, 8, 8)), [0] * 19 + [1], "class 1"),
        (np.zeros((20, 8, 8)), None, "labels"),
        (np.zeros((0, 8, 8)), [], "no images"),
        (np.array([[[None]]]), [0], "object"),
    ],
)
def test_bad_input_is_named_before_training(classifier, images, labels, message):
    with pytest.raises(DhaError, match=message):
        classifier.fit(images, labels)


def test_folders_of_photographs(classifier, tmp_path):
    generator = np.random.default_rng(0)
    for name, colour, count in (("cat", 40, 30), ("dog", 200, 12)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(colour, 20, (20 + index, 30, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.jpg")
    classifier.set_params(epochs=12, batch_size=8, image_size=16, architecture__depth=1)
    classifier.fit(tmp_path / "photos", out=tmp_path / "run")
    assert list(classifier.classes_) == ["cat", "dog"]
    assert classifier.score(tmp_path / "photos") > 0.9
    assert classifier.predict(tmp_path / "photos" / "dog" / "3.jpg") == ["dog"]
    assert (tmp_path / "run" / "model" / "model.json").exists()
    assert classifier.test_accuracy_ is not None, "a folder is split as on the command line"
