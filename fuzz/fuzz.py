"""Fuzz what reads files of strangers: images, models, checkpoints, settings, tables and NumPy archives.

    pip install atheris
    python fuzz/fuzz.py TARGET -max_total_time=600     # image, model, checkpoint, yaml, table or npz
    python fuzz/fuzz.py TARGET crash-...               # once more what it found

Further arguments are those of libFuzzer. Findings are: any exception but ``DhaError``, an input that takes 20 s, and
more than 2 GB of memory, of which Python, torch and dha take 350 MB.

- image: bytes, decoded in grey and in colour.
- model: bytes in the place of one file of a model, model.json, policy.json or weights.safetensors, as the first of them
  says; or one of the first two with some values replaced. What loads predicts.
- checkpoint: bytes behind the header of a checkpoint and before their checksum; or, as the first of them says, as the
  pickle in there; or a whole checkpoint in which some values are replaced. A run goes on from what loads.
- yaml: bytes as the file of ``dha fit --config``.
- table: bytes as a table of paths and labels beside images: CSV, TSV, JSON Lines or Parquet, as the first of them says.
- npz: bytes as an archive; or, as the first of them says, as the array of images or of labels in an archive.

Python code is instrumented, the decoders of Pillow, safetensors, torch and Arrow, which are compiled, are not.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

PLACE = tempfile.TemporaryDirectory()
FOLDER, CORPUS = Path(PLACE.name, "work"), Path(PLACE.name, "corpus")
os.environ |= {"HF_HOME": str(Path(PLACE.name, "huggingface")), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import atheris  # noqa: E402  the data sets' library reads the environment when it is loaded

with atheris.instrument_imports(include=["dha", "PIL", "yaml", "numpy.lib"]):
    import numpy as np
    import torch
    from PIL import Image

    from dha import Config, run_folder
    from dha.architecture import plain_network
    from dha.augmentation import AugmentationPolicy
    from dha.checking import check
    from dha.data import ImageFormat, Preprocessing, load_source, measure, read_image, split
    from dha.engine import Budget, Checkpoints, make_fabric
    from dha.engine.checkpoints import MAGIC
    from dha.errors import DhaError
    from dha.model import TrainedModel
    from dha.options import parse
    from dha.prepare import prepare, resolve
    from dha.state import Position, RunState

GENOTYPE = {"space": "residual", "blocks": [["pair_3x3"], ["skip"], ["skip"]], "width": 2, "depth": 1, "resolution": 8}
MODEL_FILES = ("model.json", "policy.json", "weights.safetensors")
TABLES = ("csv", "tsv", "jsonl", "parquet")
OPTIONS = {"-timeout": 20, "-rss_limit_mb": 2048}


def image(data: bytes) -> None:
    """Decode bytes as an image, in grey and in colour, padded and cropped."""
    formats: list[ImageFormat] = [ImageFormat(8, 1, "pad"), ImageFormat(8, 3, "crop", "black", 255, 1)]
    for image_format in formats:
        with contextlib.suppress(DhaError):
            read = read_image(io.BytesIO(data), image_format).pixels
            assert read.shape == (image_format.channels, 8, 8)


def model(data: bytes) -> None:
    """Load a model folder of which one file holds these bytes, and use the model if it is taken."""
    content, kind = data[1:], data[0] % 5 if data else 0
    file = FOLDER / MODEL_FILES[kind % 3]
    whole = file.read_bytes()
    if kind >= len(MODEL_FILES):
        changed = _changed(json.loads(whole), atheris.FuzzedDataProvider(content))
        content = json.dumps(changed, default=str).encode()
    try:
        file.write_bytes(content)
        with contextlib.suppress(DhaError):
            taken = TrainedModel.load(FOLDER)
            side = taken.preprocessing.image_size
            taken.probabilities(torch.zeros(1, taken.preprocessing.channels, side, side, dtype=torch.uint8))
    finally:
        file.write_bytes(whole)


def write_model() -> None:
    """Write a model, and its files as seeds."""
    network = plain_network(GENOTYPE, 1, 2, 8)
    policy = AugmentationPolicy(["identity", "rotate"]).to_dict()
    preprocessing = Preprocessing(8, 1, (0.3,), (0.4,))
    TrainedModel(network, ("a", "b"), preprocessing, network.genotype, {"policy": policy}).save(FOLDER)
    for number, name in enumerate(MODEL_FILES):
        (CORPUS / name).write_bytes(bytes([number]) + (FOLDER / name).read_bytes())
    for number in range(20):
        (CORPUS / f"changed{number}").write_bytes(bytes([3 + number % 2]) + hashlib.sha256(bytes([number])).digest())


def new_run() -> RunState:
    """Return a run that begins."""
    config = Config(epochs=1, device="cpu", space="cells")
    config.architecture.set_params(width=2, depth=1, nodes=1)
    splits = split(
        load_source((torch.arange(16 * 64) % 255).view(16, 8, 8).byte(), torch.arange(16) % 2),
        validation_fraction=0.25,
        test_fraction=0.25,
        seed=0,
    )
    fabric, preprocessing = make_fabric("cpu", "32", 8), Preprocessing(8, 1, *measure(splits.train))
    config = resolve(config, splits, preprocessing, fabric)
    batches, everything, validation, joint = prepare(splits, preprocessing, config, fabric)
    position = Position(nodes=sum(len(codes.code) for codes in joint.codes))
    budget = Budget(seconds=None, steps=len(batches), started=time.monotonic())
    return RunState(config, "", joint, batches, everything, validation, budget, position)


def checkpoint(data: bytes) -> None:
    """Go on with a run from a checkpoint of these bytes."""
    content, kind = data[1:], data[0] % 3 if data else 0
    if kind == 1:
        changed, stored = _changed(copy.deepcopy(STATE), atheris.FuzzedDataProvider(content)), io.BytesIO()
        torch.save(changed, stored)
        content = stored.getvalue()
    elif kind == 2:
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w") as archive:
            for name, part in {
                "data.pkl": content,
                "byteorder": b"little",
                "version": b"3\n",
                "data/0": bytes(64),
            }.items():
                archive.writestr(f"archive/{name}", part)
        content = stored.getvalue()
    (FOLDER / "checkpoint.pt").write_bytes(MAGIC + content + hashlib.sha256(content).digest())
    with contextlib.suppress(DhaError):
        saved = Checkpoints(FOLDER).load(set_aside=False)
        assert saved is not None
        run_folder.settings_of(FOLDER, saved, Config())
        new_run().load_state_dict(saved.get("run", {}))


def _changed(state: Any, choose: atheris.FuzzedDataProvider) -> Any:
    """Replace some values of a state by others."""
    for _ in range(choose.ConsumeIntInRange(1, 3)):
        parent, key, value = None, None, state
        while isinstance(value, dict | list) and value and (parent is None or choose.ConsumeIntInRange(0, 9)):
            places = list(value) if isinstance(value, dict) else range(len(value))
            parent, key = value, places[choose.ConsumeIntInRange(0, len(places) - 1)]
            value = parent[key]
        if parent is not None:
            parent[key] = _another(value, choose)
    return state


def _another(value: Any, choose: atheris.FuzzedDataProvider) -> Any:
    number = choose.ConsumeIntInRange(-(2**64), 2**64)
    numbers = [number, 0, -1, 2**40, choose.ConsumeFloat(), math.nan, math.inf, None, True, "text", {}, [], [1, 2]]
    tensors = [torch.zeros(size) for size in ((), (0,), (3,), (2, 3), (1, 1, 1, 1))]
    tensors += [torch.zeros(1).expand(2**34), torch.full((4,), math.nan), torch.zeros(5056, dtype=torch.uint8)]
    if isinstance(value, torch.Tensor) and value.numel() < 2**20:
        tensors += [value.double(), value.long(), value.flatten(), value[None], value + 2**30, value * math.nan]
    others = [*numbers, *tensors]
    return others[choose.ConsumeIntInRange(0, len(others) - 1)]


def write_checkpoints() -> None:
    """Write seeds, and keep what they are made of."""
    global STATE
    STATE = new_run().state_dict()
    stored = io.BytesIO()
    torch.save(STATE, stored)
    (CORPUS / "whole").write_bytes(b"\0" + stored.getvalue())
    small: dict[str, Any] = {"config": {"seed": 1, "learn": ["none", None, 0.5]}, "images": torch.zeros(4, 4)}
    stored = io.BytesIO()
    torch.save(small, stored)
    with zipfile.ZipFile(stored) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    (CORPUS / "small").write_bytes(b"\0" + stored.getvalue())
    (CORPUS / "pickle").write_bytes(b"\2" + pickled)
    for number in range(20):
        (CORPUS / f"changed{number}").write_bytes(b"\1" + hashlib.sha256(bytes([number])).digest())


def yaml(data: bytes) -> None:
    """Take bytes as a file of settings."""
    file = FOLDER / "settings.yaml"
    file.write_bytes(data)
    with contextlib.suppress(DhaError):
        check(parse("fit", ["digits", "--config", str(file)])["config"])


def write_settings() -> None:
    """Write seeds."""
    run_folder.write_settings(CORPUS, Config(epochs=3), "digits")
    (CORPUS / "small.yaml").write_text("epochs: 3\nmax_flops: 5e7\narchitecture:\n  width: 8\naugmentation:\n")
    (CORPUS / "flow.yaml").write_text("{epochs: 0x3, learn: [architecture], seed: &a 1, every: *a, <<: {budget: 1:30}}")


def table(data: bytes) -> None:
    """Read images by a table of these bytes."""
    file = FOLDER / f"table.{TABLES[data[0] % len(TABLES) if data else 0]}"
    file.write_bytes(data[1:])
    with contextlib.suppress(DhaError):
        load_source(file, image_size=8, on_bad_image="skip")
    file.unlink()


def write_tables() -> None:
    """Write images, and tables of them as seeds."""
    import pandas

    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(FOLDER / f"{number}.png")
    rows = pandas.DataFrame({"path": [f"{number}.png" for number in range(6)], "label": list("ababab")})
    split_rows = rows.assign(split=["train"] * 4 + ["test"] * 2)
    for name, frame in (("plain", rows), ("split", split_rows), ("numbers", rows.assign(label=[0, 1.0] * 3))):
        texts = (
            frame.to_csv(index=False),
            frame.to_csv(index=False, sep="\t"),
            frame.to_json(orient="records", lines=True),
        )
        for number, content in enumerate((*(text.encode() for text in texts), frame.to_parquet(index=False))):
            (CORPUS / f"{name}.{TABLES[number]}").write_bytes(bytes([number]) + content)


def npz(data: bytes) -> None:
    """Read images from an archive of these bytes."""
    file, kind = FOLDER / "images.npz", data[0] % 3 if data else 0
    file.write_bytes(data[1:])
    if kind:
        arrays = {"x": _bytes_of(np.zeros((4, 8, 8), np.uint8)), "y": _bytes_of(np.array([0, 1, 0, 1]))}
        arrays["xy"[kind - 1]] = data[1:]
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in arrays.items():
                archive.writestr(f"{name}.npy", content)
    with contextlib.suppress(DhaError):
        load_source(file, image_size=8)


def _bytes_of(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def write_archives() -> None:
    """Write seeds."""
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array(["a", "b", "a", "b"])
    np.savez(CORPUS / "stored.npz", x=images, y=labels)
    for file in CORPUS.glob("*.npz"):
        file.write_bytes(b"\0" + file.read_bytes())
    for number, dtype in enumerate(("u1", "f4", "i8", "?", ">u2", "U3", "S2", "c8", "M8[s]", "V4")):
        (CORPUS / f"x{number}").write_bytes(b"\1" + _bytes_of(np.zeros((4, 8, 8), dtype)))
        (CORPUS / f"y{number}").write_bytes(
            b"\2" + _bytes_of(np.arange(4).astype("i8").astype(dtype) if number < 8 else np.zeros(4, dtype))
        )


def write_images() -> None:
    """Write seeds."""
    colour = ("jpeg", "png", "gif", "webp", "tiff", "bmp", "ppm", "avif", "jpeg2000", "ico", "pcx", "sgi", "qoi", "dds")
    others = {"I;16": ("png", "tiff"), "RGBA": ("png", "webp", "tiff"), "LA": ("png",), "F": ("tiff",), "1": ("png",)}
    for mode, kinds in {"RGB": colour, **others}.items():
        for kind in kinds:
            Image.new(mode, (8, 8)).save(CORPUS / f"{mode.replace(';', '')}.{kind}", kind)
    Image.new("CMYK", (8, 8)).save(CORPUS / "cmyk.jpg")
    Image.new("P", (8, 8)).save(CORPUS / "palette.png", transparency=0)


TARGETS = {
    "image": (image, write_images),
    "model": (model, write_model),
    "checkpoint": (checkpoint, write_checkpoints),
    "yaml": (yaml, write_settings),
    "table": (table, write_tables),
    "npz": (npz, write_archives),
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    target, prepare_target = TARGETS[sys.argv.pop(1)]
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    with PLACE:
        FOLDER.mkdir()
        CORPUS.mkdir()
        prepare_target()
        named = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        options = [
            f"{name}={value}" for name, value in OPTIONS.items() if not any(a.startswith(name + "=") for a in sys.argv)
        ]
        atheris.Setup([*sys.argv, *options, *([] if named else [str(CORPUS)])], target)
        atheris.Fuzz()
