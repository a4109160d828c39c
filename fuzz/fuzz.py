"""Fuzz what reads files of strangers: images, and model folders.

    pip install atheris
    python fuzz/fuzz.py image -max_total_time=600      # or: model; further arguments are those of libFuzzer
    python fuzz/fuzz.py image crash-...                # once more what it found

Any exception but ``DhaError`` is a finding. In a model folder the bytes take the place of one file, model.json,
policy.json or weights.safetensors, as the first of them says. Python code is instrumented, the decoders of Pillow and
safetensors, which are compiled, are not.
"""

import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dha", "PIL"]):
    import torch
    from PIL import Image

    from dha.architecture import plain_network
    from dha.augmentation import AugmentationPolicy
    from dha.data import ImageFormat, Preprocessing, read_image
    from dha.errors import DhaError
    from dha.model import TrainedModel

GENOTYPE = {"space": "residual", "blocks": [["pair_3x3"], ["skip"], ["skip"]], "width": 2, "depth": 1, "resolution": 8}
FILES = ("model.json", "policy.json", "weights.safetensors")


def image(data: bytes) -> None:
    """Decode bytes as an image, in grey and in colour, padded and cropped."""
    formats: list[ImageFormat] = [ImageFormat(8, 1, "pad"), ImageFormat(8, 3, "crop", "black", 255, 1)]
    for image_format in formats:
        with contextlib.suppress(DhaError):
            read = read_image(io.BytesIO(data), image_format).pixels
            assert read.shape == (image_format.channels, 8, 8)


def model(data: bytes) -> None:
    """Load a model folder of which one file holds these bytes, and use the model if it is taken."""
    file = FOLDER / FILES[data[0] % len(FILES)] if data else FOLDER / FILES[0]
    whole = file.read_bytes()
    try:
        file.write_bytes(data[1:])
        taken = TrainedModel.load(FOLDER)
        size = taken.preprocessing.image_size, taken.preprocessing.image_size
        taken.probabilities(torch.zeros(1, taken.preprocessing.channels, *size, dtype=torch.uint8))
    except DhaError:
        pass
    finally:
        file.write_bytes(whole)


def seeds(target: str, folder: Path) -> None:
    """Write what mutations start from."""
    if target == "model":
        for number, name in enumerate(FILES):
            (folder / name).write_bytes(bytes([number]) + (FOLDER / name).read_bytes())
        return
    colour = ("jpeg", "png", "gif", "webp", "tiff", "bmp", "ppm", "avif", "jpeg2000", "ico", "pcx", "sgi", "qoi", "dds")
    others = {"I;16": ("png", "tiff"), "RGBA": ("png", "webp", "tiff"), "LA": ("png",), "F": ("tiff",), "1": ("png",)}
    for mode, kinds in {"RGB": colour, **others}.items():
        for kind in kinds:
            Image.new(mode, (8, 8)).save(folder / f"{mode.replace(';', '')}.{kind}", kind)
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    Image.new("P", (8, 8)).save(folder / "palette.png", transparency=0)


if __name__ == "__main__":
    target = sys.argv.pop(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        FOLDER, corpus = Path(place, "model"), Path(place, "corpus")
        corpus.mkdir()
        network = plain_network(GENOTYPE, 1, 2, 8)
        policy = AugmentationPolicy(["identity", "rotate"]).to_dict()
        preprocessing = Preprocessing(8, 1, (0.3,), (0.4,))
        TrainedModel(network, ("a", "b"), preprocessing, network.genotype, {"policy": policy}).save(FOLDER)
        seeds(target, corpus)
        given = sys.argv if any(not argument.startswith("-") for argument in sys.argv[1:]) else [*sys.argv, str(corpus)]
        atheris.Setup(given, {"image": image, "model": model}[target])
        atheris.Fuzz()
