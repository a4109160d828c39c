"""How far back should a hypergradient look? Cosines of validation gradient and way of the weights, at fixed rates.

    python benchmarks/horizon.py SOURCE --steps 350 --rates 0.02 0.07 0.2 0.5 --horizons 1 16 64 256

For every learning rate, held fixed from the first step on, a residual network is trained with the learned policy. Every
4th step the gradient of a validation batch is compared with the way that the weights have come over each horizon (in
steps). A horizon is of use if small rates have a positive cosine and large ones a negative one. Prints a Markdown table
(training loss of the last tenth; mean cosine over the second half, with its standard error) and writes horizon.json.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dha import ArchitectureConfig, Config, HyperparametersConfig
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import MovingAverage, make_fabric
from dha.hyperparameters import cosine
from dha.prepare import prepare, resolve

EVERY = 4


def measure_rate(source: str, rate: float, steps: int, horizons: Sequence[int], width: int) -> dict[str, Any]:
    """Train with one fixed learning rate and record losses and cosines."""
    config = Config(
        epochs=1,
        space="residual",
        learn="augmentation,hyperparameters",
        every=EVERY,
        architecture=ArchitectureConfig(width=width),
        hyperparameters=HyperparametersConfig(learning_rate=rate, rate=0.0, warmup=0.0),
    )
    splits = split(load_source(source), validation_fraction=0.1, test_fraction=0.15, seed=0)
    fabric = make_fabric("auto", "auto", splits.train.images.shape[-1])
    channels, size = splits.train.images.shape[1:3]
    preprocessing = Preprocessing(size, channels, *measure(splits.train.images))
    batches, *_, joint = prepare(splits, preprocessing, resolve(config, splits, preprocessing, fabric), fabric)
    averages = {horizon: MovingAverage(joint.weights, horizon / steps) for horizon in horizons}
    cosines: dict[int, list[float]] = {horizon: [] for horizon in horizons}
    gradient = joint._held_out_gradient

    def compare(
        active: Sequence[Tensor], images: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Sequence[Tensor], Tensor]:
        held_out, losses = gradient(active, images, labels, weights)
        for horizon, average in averages.items():
            past = dict(zip(average.weights, average.values, strict=True))
            way = [past[weight] - weight.detach() for weight in active]
            cosines[horizon].append(cosine(held_out, way).item())
        return held_out, losses

    joint._held_out_gradient = compare
    joint.network.train()
    endless, losses = batches.forever(), []
    while joint.steps < steps:
        for batch in joint.batching.batches(*next(endless), progress=0.0):
            for average in averages.values():
                average.update(joint.steps / steps)
            losses.append(joint.train(batch, progress=0.0)[0].mean().item())
    halves = {horizon: values[len(values) // 2 :] for horizon, values in cosines.items()}
    return {
        "learning_rate": rate,
        "loss": statistics.mean(losses[-max(1, steps // 10) :]),
        "cosine": {h: statistics.mean(half) for h, half in halves.items()},
        "standard_error": {h: statistics.stdev(half) / len(half) ** 0.5 for h, half in halves.items()},
    }


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.07, 0.2, 0.5])
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 16, 64, 256], help="in steps")
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        measure_rate(options.source, rate, options.steps, options.horizons, options.width) for rate in options.rates
    ]
    Path("horizon.json").write_text(json.dumps({"command": ["python", *sys.argv], "rows": rows}, indent=1) + "\n")
    print("| learning rate | training loss | " + " | ".join(f"{h} steps" for h in options.horizons) + " |")
    print("|---" * (2 + len(options.horizons)) + "|")
    for row in rows:
        values = (f"{row['cosine'][h]:+.3f} ± {row['standard_error'][h]:.3f}" for h in options.horizons)
        print(f"| {row['learning_rate']:g} | {row['loss']:.2f} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
