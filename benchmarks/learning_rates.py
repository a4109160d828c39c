"""Does the learning rate have to be tuned? Bad and good starts, learned, against a grid of fixed values.

    python benchmarks/learning_rates.py SOURCE --budget 40s --seeds 3 --jobs 2

Four learning rates times two weight decays, as the start of a run that learns everything and, architecture and policy
being learned alike, as values that stay; `--learned` and `--fixed` name other learning rates. All networks have one
size, so that no row depends on how it is timed; arguments that are not named here go to `dha fit`. Prints a Markdown
table and the worst learned minus the best fixed mean, and writes learning_rates.json to the current folder.
"""

import argparse
import itertools
import statistics
import sys

from repeated import fit_all, report

RATES, DECAYS = (0.001, 0.01, 0.1, 1.0), (1e-6, 1e-3)
KINDS = {"fixed": "architecture,augmentation", "learned": "architecture,augmentation,hyperparameters"}
SIZE = ["--space=residual", "--architecture.width=16"]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="digits", help="as for dha fit")
    parser.add_argument("--budget", default="40s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--fixed", type=float, nargs="+", default=RATES)
    parser.add_argument("--learned", type=float, nargs="+", default=RATES)
    options, others = parser.parse_known_args()
    settings = {
        f"rate {rate:g}, decay {decay:g}, {kind}": [
            f"--learn={learn}",
            f"--hyperparameters.learning_rate={rate}",
            f"--hyperparameters.weight_decay={decay}",
            f"--budget={options.budget}",
            *SIZE,
            *others,
        ]
        for kind, learn in KINDS.items()
        for rate, decay in itertools.product(getattr(options, kind), DECAYS)
    }
    results = fit_all(options.source, settings, options.seeds, options.jobs)
    report("learning_rates", results, sys.argv)
    means = {name: statistics.mean(run["test_accuracy"] for run in runs) for name, runs in results.items()}
    worst = min((n for n in means if n.endswith("learned")), key=means.__getitem__)
    best = max((n for n in means if n.endswith("fixed")), key=means.__getitem__)
    print(f"worst learned ({worst}) - best fixed ({best}) = {means[worst] - means[best]:+.2f} points")


if __name__ == "__main__":
    main()
