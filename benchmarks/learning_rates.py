"""Whether the learning rate has to be tuned: four initial values, fixed and learned, on digits.

    python benchmarks/learning_rates.py --seeds 3 --jobs 2

Prints a Markdown table and writes learning_rates.json to the current folder.
"""

import argparse
import sys

from repeated import fit_all, report

RATES = (0.001, 0.01, 0.1, 1.0)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="40s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    kinds = {"fixed": "none", "all learned": "architecture,augmentation,hyperparameters"}
    settings = {
        f"{rate:g}, {kind}": [
            f"--learn={learn}",
            f"--hyperparameters.learning_rate={rate}",
            f"--budget={options.budget}",
        ]
        for kind, learn in kinds.items()
        for rate in RATES
    }
    report("learning_rates", fit_all("digits", settings, options.seeds, options.jobs), sys.argv)


if __name__ == "__main__":
    main()
