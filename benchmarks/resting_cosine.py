"""At which cosine between validation gradient and update do learning rates train best? Fixed rates, no schedule.

    python benchmarks/resting_cosine.py SOURCE --steps 200 --rates 0.003 0.03 0.1 0.3 1

Prints a Markdown table (training loss of the last 20 steps, mean cosine over the second half) and writes
resting_cosine.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from torch import Tensor

from dha import Config, HyperparametersConfig
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.fit import prepare, resolve


def measure_rate(source: str, rate: float, steps: int) -> dict[str, Any]:
    """Train with one fixed learning rate and record losses and cosines."""
    settings = HyperparametersConfig(learning_rate=rate, resting_cosine=0.0, warmup=0.0, label_smoothing=0.0)
    config = Config(epochs=1, space="cells", learn="hyperparameters", every=2, hyperparameters=settings)
    splits = split(load_source(source), validation_fraction=0.1, test_fraction=0.15, seed=0)
    fabric = make_fabric("auto", "auto", splits.train.images.shape[-1])
    channels, size = splits.train.images.shape[1:3]
    preprocessing = Preprocessing(size, channels, *measure(splits.train.images))
    batches, joint = prepare(splits, preprocessing, resolve(config, splits, preprocessing, fabric), fabric)
    cosines: list[float] = []

    def record(direction: Tensor, rate: float) -> None:
        cosines.append(direction.item())

    joint.peaks[0].move = record
    joint.network.train()
    endless = batches.forever()
    losses = [joint.step(*next(endless), progress=0.0)[0].mean().item() for _ in range(steps)]
    second_half = cosines[len(cosines) // 2 :]
    return {
        "learning_rate": rate,
        "loss": statistics.mean(losses[-20:]),
        "cosine": statistics.mean(second_half),
        "standard_error": statistics.stdev(second_half) / len(second_half) ** 0.5,
    }


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.03, 0.1, 0.3, 1.0])
    options = parser.parse_args()
    rows = [measure_rate(options.source, rate, options.steps) for rate in options.rates]
    Path("resting_cosine.json").write_text(json.dumps({"source": options.source, "rows": rows}, indent=1) + "\n")
    print("| learning rate | training loss | cosine |\n|---|---|---|")
    for row in rows:
        print(f"| {row['learning_rate']:g} | {row['loss']:.2f} | {row['cosine']:+.3f} ± {row['standard_error']:.3f} |")


if __name__ == "__main__":
    main()
