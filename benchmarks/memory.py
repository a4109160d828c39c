"""How much memory a run takes as its source grows: from 10^4 to 10^6 images in a folder, in Parquet, in WebDataset.

    python benchmarks/memory.py --images 10000 1000000 --folder /somewhere/with/10/GB

Images are colour PNGs of 8 x 8 pixels in 100 classes, of 1,000 different contents; in a folder they are hard links.
Every row is a process of its own, which does what `dha fit SOURCE --cache disk` does up to the 32nd step: list, decode
into a file, hold out test and validation images, look for duplicates, measure, and train a residual network 8 wide
with everything learned, checkpoints included. Figures are the most that the process has held at once, seen every 5 ms:
`anonymous` memory (RssAnon of /proc/self/status), which is without files that are mapped, as those are part of the page
cache. Prints a Markdown table and writes memory.json.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, CONTENTS, SHARD, STEPS = 100, 1000, 10_000, 32


class Enough(Exception):
    """Ends a run after some steps."""


def contents() -> list[bytes]:
    """Return different PNG files."""
    generator, files = np.random.default_rng(0), []
    for _ in range(CONTENTS):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "png")
        files.append(file.getvalue())
    return files


def make_folder(folder: Path, images: int) -> None:
    """Write class folders."""
    originals = folder.with_name(f"{folder.name}-originals")
    originals.mkdir()
    for number, content in enumerate(contents()):
        (originals / str(number)).write_bytes(content)
    for label in range(CLASSES):
        (folder / f"class{label:03}").mkdir(parents=True)
    for i in range(images):
        os.link(originals / str(i % CONTENTS), folder / f"class{i % CLASSES:03}" / f"{i:07}.png")


def make_parquet(folder: Path, images: int) -> None:
    """Write Parquet files of `SHARD` rows, in groups of 1,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    files = contents()
    for first in range(0, images, SHARD):
        rows = range(first, min(first + SHARD, images))
        cells = [{"bytes": files[i % CONTENTS], "path": None} for i in rows]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({"image": pa.array(cells, kind), "label": [i % CLASSES for i in rows]})
        pq.write_table(table, folder / f"train-{first // SHARD:05}.parquet", row_group_size=1000)


def make_webdataset(folder: Path, images: int) -> None:
    """Write tar archives of `SHARD` images, each beside its label."""
    folder.mkdir()
    files = contents()
    for first in range(0, images, SHARD):
        with tarfile.open(folder / f"train-{first // SHARD:05}.tar", "w") as archive:
            for i in range(first, min(first + SHARD, images)):
                for suffix, content in (("png", files[i % CONTENTS]), ("cls", str(i % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{i:07}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


KINDS: dict[str, Callable[[Path, int], None]] = {
    "folder": make_folder,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
}


def status() -> dict[str, float]:
    """Return what Linux says of the memory of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 2**10 for name in ("RssAnon", "VmRSS")}


def fit(source: str, out: str) -> dict[str, float]:
    """Run some steps on a source and return the most memory that was held."""
    peak = {"RssAnon": 0.0, "VmRSS": 0.0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            for name, value in status().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    warnings.simplefilter("ignore")  # contents repeat on purpose

    import torch

    from dha import ArchitectureConfig, Config
    from dha.fit import run

    torch.set_num_threads(1)
    steps, began = 0, time.monotonic()
    until_training = 0.0

    def watch(progress: float, row: dict[str, Any]) -> None:
        nonlocal steps, until_training
        steps += 1
        if steps == 1:
            until_training = time.monotonic() - began
        if steps == STEPS:
            raise Enough

    size = ArchitectureConfig(width=8, depth=1, resolution=8)
    config = Config(epochs=1, space="residual", architecture=size, device="cpu", batch_size=64, checkpoint_every=1.0)
    config.cache, config.image_size = "disk", 8
    with suppress(Enough):
        run(source, config=config, out=out, watch=watch)
    done.set()
    watcher.join()
    return {**peak, "seconds": until_training}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--images", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--folder", help="where sources and decoded images are written; a temporary folder by default")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(fit(*options.child)))
        return
    rows: list[dict[str, Any]] = []
    print("| source | images | anonymous, MiB | over the first | resident, MiB | until the first step, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind in options.kinds:
        for images in options.images:
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                source, out = Path(place) / kind, Path(place) / "run"
                KINDS[kind](source, images)
                command = [sys.executable, __file__, "--child", str(source), str(out)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = {"source": kind, "images": images, **json.loads(said.splitlines()[-1])}
            rows.append(row)
            base = next(r for r in rows if r["source"] == kind)["RssAnon"]
            over = f"{100 * (row['RssAnon'] / base - 1):+.1f} %"
            print(
                f"| {kind} | {images:,} | {row['RssAnon']:.1f} | {over} | {row['VmRSS']:.0f} | {row['seconds']:.0f} |",
                flush=True,
            )
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"command": ["python", *sys.argv], "machine": machine, "rows": rows}
    Path("memory.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
