"""Whether a training step waits for photographs that are kept on disk: a folder of JPEGs, at 224 pixels.

    python benchmarks/reading.py --images 2000 --folder /somewhere/with/1/GB

Writes JPEGs of 500 x 375 pixels, decodes them once into a file, as `dha fit PHOTOS --cache disk --image-size 224` does,
and trains a residual network 8 wide on batches of 64 with everything learned. Rows: reading a batch of random rows in
the thread that asks; how long a step waits for its batch, which is read ahead by another thread; a step. Cold: the file
has been dropped from the page cache before. Prints Markdown and writes reading.json.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dha.config import ArchitectureConfig, Config
from dha.data import LabelledImages, Preprocessing, Source, load_source, measure, split
from dha.engine import make_fabric
from dha.prepare import prepare, resolve
from dha.state import fingerprint

SIDE, BATCH, CLASSES = 224, 64, 10


def write_photos(folder: Path, images: int) -> float:
    """Write JPEGs in class folders; return their mean size in bytes."""
    generator, size = np.random.default_rng(0), 0
    for number in range(images):
        file = folder / str(number % CLASSES) / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((500, 375))
        grain = generator.normal(0, 12, (375, 500, 1))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=88)
        size += file.stat().st_size
    return size / images


def drop(folder: Path) -> None:
    """Take the file of decoded images out of the page cache; nobody may have it mapped."""
    gc.collect()
    for file in folder.glob("images/*.u8"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(data: LabelledImages) -> list[float]:
    """Return the seconds that reading each of some batches of random rows takes."""
    order, seconds = torch.randperm(len(data), dtype=torch.int32), []
    for indices in order.split(BATCH)[: len(data) // BATCH // 2]:
        began = time.monotonic()
        data.read(indices)
        seconds.append(time.monotonic() - began)
    return seconds


def training(source: Source, steps: int) -> tuple[list[float], list[float]]:
    """Return the seconds that each of some steps waits for its batch, and takes itself."""
    splits = split(source, validation_fraction=0.1, test_fraction=0.0, seed=0)
    size = ArchitectureConfig(width=8, depth=1)
    config = Config(epochs=1, space="residual", architecture=size, batch_size=BATCH)
    preprocessing = Preprocessing(SIDE, 3, (0.5,) * 3, (0.25,) * 3)
    fabric = make_fabric("auto", "auto", SIDE)
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    joint.network.train()
    waits, taken, drawn = [], [], batches.forever()
    for _ in range(steps):
        began = time.monotonic()
        images, labels = next(drawn)
        got = time.monotonic()
        joint.step(images, labels, progress=0.2)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        waits.append(got - began)
        taken.append(time.monotonic() - got)
    return waits, taken


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", help="where images are written; a temporary folder by default")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        photos, out = Path(place) / "photos", Path(place) / "run"
        mean_size = write_photos(photos, options.images)

        def load() -> Source:
            return load_source(photos, image_size=SIDE, cache="disk", folder=out)

        def cold(timed: Callable[[Source], Any]) -> Any:
            drop(out)
            return timed(load())

        began, busy = time.monotonic(), time.process_time()
        load()
        seconds, processor = time.monotonic() - began, time.process_time() - busy
        rows["reading a batch, cold"] = cold(lambda source: reading(source.train))
        rows["reading a batch, warm"] = reading(load().train)
        busy = time.process_time()
        splits = split(load(), validation_fraction=0.1, test_fraction=0.0, seed=0)
        measure(splits.train)
        fingerprint(splits)
        passing = time.process_time() - busy
        waits, taken = cold(lambda source: training(source, options.steps))
        # The first batch of a run is waited for.
        rows["waiting for a batch in training, cold"], rows["a step"] = waits[1:], taken[1:]
    decoding = {
        "images": options.images,
        "bytes_per_jpeg": mean_size,
        "images_per_second": options.images / seconds,
        "images_per_processor_second": options.images / processor,
        "looked_through_per_processor_second": options.images / passing,
    }
    print(
        f"{options.images} JPEGs of {mean_size / 1000:.0f} kB decoded: {decoding['images_per_second']:.0f} images/s, "
        f"{decoding['images_per_processor_second']:.0f} per second of a core; "
        f"looked through for duplicates, mean and deviation: {decoding['looked_through_per_processor_second']:.0f}\n"
    )
    print("| | n | median, ms | most, ms |\n|---|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {len(values)} | {1000 * statistics.median(values):.2f} | {1000 * max(values):.2f} |")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    content = {"command": ["python", *sys.argv], "machine": machine, "decoding": decoding, "seconds": rows}
    Path("reading.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
