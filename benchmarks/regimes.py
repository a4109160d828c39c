"""Does the learned policy help where the network overfits, and do no harm where it underfits?

    python benchmarks/regimes.py SOURCE --images 5120 --epochs 12 --budget 240s --seeds 3 --jobs 2
    python benchmarks/regimes.py --plot regimes.json

- underfitting: a few epochs of a small network of cells;
- overfitting: a residual network of 16 channels, as long as the budget lasts;
- overfitting on flips: the same, on images that are mirrored and cropped at random in all rows (`flips.py`).

Rows: no augmentation; uniform random pairs of operations (where the network overfits); the learned policy. Nothing else
is learned, and within a regime nothing else differs. Arguments that are not named here go to `dha fit`, such as
--hyperparameters.learning_rate. Prints two Markdown tables and what the learned policy gains, and writes regimes.json
with the course of every run: share of untouched images, losses and accuracies by epoch. The training loss is that of
augmented images and with label smoothing, the validation loss is that of plain ones. `--plot` draws the course of the
learned rows into regimes.png, and wants matplotlib.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from careful import prepare
from dha.augmentation import OPERATIONS, AugmentationPolicy
from repeated import PROGRAM, fit_all, report

FLIPS = (str(Path(__file__).with_name("flips.py")),)
RESIDUAL = ["--space=residual", "--architecture.width=16"]
ROWS = {
    "none": ["--learn=none"],
    "uniform": ["--learn=none", "--augmentation.rule=fixed"],
    "learned": ["--learn=augmentation"],
}
REGIMES = {
    "underfitting": (PROGRAM, ["--space=cells", "--architecture.width=8"], ("none", "learned")),
    "overfitting": (PROGRAM, RESIDUAL, tuple(ROWS)),
    "overfitting on flips": (FLIPS, RESIDUAL, tuple(ROWS)),
}
COURSE = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "policy_untouched")


def course(out: Path) -> dict[str, Any]:
    """Return how a run went, epoch by epoch, from its metrics."""
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {"course": {name: [float(row[name]) if row[name] else None for row in rows] for name in COURSE}}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of how far networks fit their training images, and how many are left untouched."""
    lines = ["| setting | training accuracy, % | untouched in the first epoch | and in the last |", "|---|---|---|---|"]
    for name, runs in results.items():
        fitted = statistics.mean(100 * run["course"]["train_accuracy"][-1] for run in runs)
        shares = [[run["course"]["policy_untouched"][epoch] for run in runs] for epoch in (0, -1)]
        texts = [", ".join("1" if share is None else f"{share:.2f}" for share in part) for part in shares]
        lines.append(f"| {name} | {fitted:.1f} | {texts[0]} | {texts[1]} |")
    return "\n".join(lines)


def gains(results: dict[str, list[dict[str, Any]]], regime: str) -> str:
    """Return what the learned policy gains over each other row of a regime, seed by seed."""
    parts = []
    accuracies = {name: [run["test_accuracy"] for run in runs] for name, runs in results.items()}
    learned = accuracies.get(f"{regime}, learned", [])
    for row in ("none", "uniform"):
        if learned and f"{regime}, {row}" in accuracies:
            gain = [a - b for a, b in zip(learned, accuracies[f"{regime}, {row}"], strict=True)]
            spread = statistics.stdev(gain) if len(gain) > 1 else 0.0
            parts.append(f"learned - {row} = {statistics.mean(gain):+.2f} ± {spread:.2f} points (n = {len(gain)})")
    return f"{regime}: {'; '.join(parts)}"


def plot(file: Path) -> None:
    """Draw the course of the learned rows of a regimes.json into a PNG beside it: is more augmented as they overfit?"""
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    results = {name: runs for name, runs in json.loads(file.read_text())["results"].items() if "learned" in name}
    _, axes = plt.subplots(3, len(results), sharex="col", squeeze=False, figsize=(4 * len(results), 8))
    for column, (name, runs) in zip(axes.T, results.items(), strict=True):
        column[0].set_title(name)
        for run in runs:
            for axis, kind in zip(column, ("loss", "accuracy"), strict=False):
                for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
                    values = [float("nan") if v is None else v for v in run["course"][f"{part}_{kind}"]]
                    label = part if run is runs[0] else None
                    axis.plot(range(1, len(values) + 1), values, color=colour, label=label, lw=1)
                axis.set_ylabel(kind)
            touched = [1 - share for share in run["course"]["policy_untouched"]]
            column[2].plot(range(1, len(touched) + 1), touched, color="tab:green", lw=1)
        column[2].set(ylabel="share of images changed", xlabel="epoch", ylim=(0, 1))
        column[0].legend()
    plt.tight_layout()
    plt.savefig(file.with_suffix(".png"), dpi=150)


def main() -> None:
    """Run the comparison, or draw one that was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="as for dha fit")
    parser.add_argument("--plot", type=Path, help="draw a regimes.json, and run nothing")
    parser.add_argument("--images", type=int, help="train on the first so many images")
    parser.add_argument("--epochs", type=int, default=12, help="of the underfitting regime")
    parser.add_argument("--budget", default="240s", help="of the overfitting regimes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options, others = parser.parse_known_args()
    if options.plot is not None:
        plot(options.plot)
        return
    if options.source is None:
        parser.error("name a source, or a file to --plot")
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, uniform = Path(place) / "images", Path(place) / "uniform.json"
        folder.mkdir()
        colour = prepare(options.source, options.images, folder)[1]
        operations = [name for name in OPERATIONS if colour or name != "color"]
        AugmentationPolicy(operations, identity_probability=1 / len(operations)).save(uniform)
        for regime in options.regimes:
            program, arguments, rows = REGIMES[regime]
            length = f"--epochs={options.epochs}" if regime == "underfitting" else f"--budget={options.budget}"
            settings = {
                f"{regime}, {row}": [*arguments, length, *ROWS[row], *others] for row in rows if row in options.rows
            }
            for name in settings:
                if name.endswith("uniform"):
                    settings[name].append(f"--augmentation.start={uniform}")
            results |= fit_all(str(folder), settings, options.seeds, options.jobs, program=program, more=course)
    report("regimes", results, sys.argv)
    print("\n" + table(results))
    for regime in options.regimes:
        print(gains(results, regime))


if __name__ == "__main__":
    main()
