"""What each learned part brings: nothing, each alone, and all, in the same wall-clock time.

    python benchmarks/ablation.py SOURCE --budget 4m --seeds 3 --jobs 2

Prints a Markdown table and writes ablation.json to the current folder.
"""

import argparse
import sys

from repeated import fit_all, report

SETTINGS = {
    "nothing": "none",
    "architecture": "architecture",
    "augmentation": "augmentation",
    "hyper-parameters": "hyperparameters",
    "all three": "architecture,augmentation,hyperparameters",
}


def main() -> None:
    """Run the ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = parser.parse_args()
    settings = {name: [f"--learn={SETTINGS[name]}", f"--budget={options.budget}"] for name in options.settings}
    report("ablation", fit_all(options.source, settings, options.seeds, options.jobs), sys.argv)


if __name__ == "__main__":
    main()
