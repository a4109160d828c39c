import json
import pickle

import pytest
import safetensors.torch
import torch
from PIL import Image

from dha import DhaError
from dha.architecture import CellSearchNetwork
from dha.data import Preprocessing
from dha.errors import DataWarning
from dha.model import TrainedModel, labelled_images


@pytest.fixture
def model():
    network = CellSearchNetwork(1, 10, 8, cells=2, channels=4, nodes=2).derive().eval()
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    preprocessing = Preprocessing(8, 1, (0.3,), (0.4,))
    return TrainedModel(network, tuple(range(10)), preprocessing, network.genotype, {"results": {"epochs": 1}})


def test_saved_and_loaded_models_agree_to_the_bit(model, tmp_path):
    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    model.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    assert torch.equal(loaded.probabilities(images), model.probabilities(images))
    assert loaded.classes == model.classes
    assert loaded.learned == model.learned
    assert {f.name for f in (tmp_path / "model").iterdir()} == {"model.json", "weights.safetensors"}


def test_probabilities_are_those_of_the_normalised_image(model):
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        oracle = model.network((images / 255 - 0.3) / 0.4).softmax(1)
    torch.testing.assert_close(model.probabilities(images), oracle)
    assert model.probabilities(images[:0]).shape == (0, 10)
    with pytest.raises(DhaError, match="1 channels at 8 pixels"):
        model.probabilities(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_mirror_images_are_predicted_from_too_before_and_after_loading(model, tmp_path):
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    inputs = (images / 255 - 0.3) / 0.4
    with torch.no_grad():
        oracle = ((model.network(inputs) + model.network(inputs.flip(3))) / 2).softmax(1)
    model.mirrored = True
    torch.testing.assert_close(model.probabilities(images), oracle)
    model.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    assert loaded.mirrored
    assert torch.equal(loaded.probabilities(images), model.probabilities(images))


def test_models_from_before_mirror_images_are_read(model, tmp_path):
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    description = json.loads(file.read_text())
    assert description.pop("mirrored") is False
    file.write_text(json.dumps(description))
    assert TrainedModel.load(tmp_path / "model").mirrored is False


def test_test_part_of_a_source_is_read_as_the_model_wants_it(model):
    data = labelled_images(model, "digits")
    assert (len(data), *data.shape) == (359, 1, 8, 8)
    assert sorted(set(data.labels.tolist())) == list(range(10))
    assert torch.equal(model.probabilities(data), model.probabilities(data.images))
    with pytest.raises(DhaError, match="11"):
        labelled_images(model, data.images.squeeze(1).numpy(), [11] * 359)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(DhaError, match=r"nowhere is not a dha model.*folder `model`"):
        TrainedModel.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.json", lambda f: f.write_text("{")),
        ("model.json", lambda f: f.write_text("[]")),
        ("model.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "format": 99}))),
        ("model.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "classes": [0, 1]}))),
        ("model.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "genotype": {}}))),
        ("model.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "mirrored": 1}))),
        ("weights.safetensors", lambda f: f.unlink()),
        ("weights.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-100])),
        ("weights.safetensors", lambda f: safetensors.torch.save_file({"x": torch.zeros(1)}, f)),
    ],
)
def test_damaged_models_are_refused(model, tmp_path, file, damage):
    model.save(tmp_path / "model")
    damage(tmp_path / "model" / file)
    with pytest.raises(DhaError):
        TrainedModel.load(tmp_path / "model")


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors"])
def test_a_pickle_in_place_of_a_file_is_not_run(model, tmp_path, file):
    model.save(tmp_path / "model")
    payload = pickle.dumps(Payload(tmp_path / "proof"))
    (tmp_path / "model" / file).write_bytes(payload)
    with pytest.raises(DhaError):
        TrainedModel.load(tmp_path / "model")
    assert not (tmp_path / "proof").exists()
    pickle.loads(payload).close()
    assert (tmp_path / "proof").exists(), "the payload works, so the test above can fail"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "mps:7", "", "cpu:1", "\n"])
def test_a_device_that_is_not_there_is_named_in_one_line(model, tmp_path, device):
    model.save(tmp_path / "model")
    with pytest.raises(DhaError, match=r"^device='.*choose from ") as caught:
        TrainedModel.load(tmp_path / "model", device=device)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu")])
def test_devices_are_named_as_torch_does(model, tmp_path, device):
    model.save(tmp_path / "model")
    assert TrainedModel.load(tmp_path / "model", device=device).classes == model.classes


def test_labelled_images_that_cannot_be_read_are_named(model, tmp_path):
    for name in range(2):
        (tmp_path / str(name)).mkdir()
        for number in range(2):
            Image.new("L", (8, 8)).save(tmp_path / str(name) / f"{number}.png")
    (tmp_path / "1" / "0.png").write_bytes(b"")
    model.classes = tuple(map(str, range(10)))
    with pytest.warns(DataWarning, match=r"1 images could not be read and are left out: .*1/0\.png"):
        images = labelled_images(model, tmp_path, on_bad_image="skip")
    assert images.labels.tolist() == [0, 0, 1]


def test_columns_of_a_table_are_those_of_the_run(model, tmp_path):
    rows = ["where,what,label"]
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number + 4},x")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with pytest.raises(DhaError, match="no column of paths"):
        labelled_images(model, tmp_path / "table.csv")
    model.learned["data"] = {"columns": {"path": "where", "label": "what", "split": None}}
    assert labelled_images(model, tmp_path / "table.csv").labels.tolist() == [4, 5, 6]
    model.learned["data"] = {"columns": [1]}
    with pytest.raises(DhaError, match="no column of paths"):
        labelled_images(model, tmp_path / "table.csv")
