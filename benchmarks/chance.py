"""Whether the search finds better architectures than chance does: found against random ones of the same space.

    python benchmarks/chance.py SOURCE --budget 2m --random 10 --seeds 3 --jobs 2

Every row trains the same network plainly (no policy, fixed hyper-parameters) in the same wall-clock time: with an
architecture drawn at random, with the one that a search starts from, and with the one that the search finds while it
trains. Prints a Markdown table and writes chance.json to the current folder.
"""

import argparse
import statistics
import sys
from typing import Any

from repeated import fit_all, report

ROWS = {
    "random": ["--learn=none", "--architecture.start=random"],
    "reference": ["--learn=none"],
    "found": ["--learn=architecture"],
    "found from random": ["--learn=architecture", "--architecture.start=random"],
}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--random", type=int, default=10, help="how many random architectures")
    parser.add_argument("--seeds", type=int, default=3, help="of the other rows")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--spaces", nargs="+", default=["residual", "mobile", "cells"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--size", nargs="*", default=[], metavar="SPACE=WIDTH,DEPTH,RESOLUTION")
    options = parser.parse_args()
    sizes = dict(pair.split("=") for pair in options.size)
    results: dict[str, list[dict[str, Any]]] = {}
    for space in options.spaces:
        values = sizes[space].split(",") if space in sizes else []
        names = ("width", "depth", "resolution")
        size = [f"--architecture.{name}={value}" for name, value in zip(names, values, strict=False)]
        settings = {
            f"{space}, {row}": [f"--space={space}", f"--budget={options.budget}", *size, *ROWS[row]]
            for row in options.rows
        }
        random = {name: settings.pop(name) for name in list(settings) if name.endswith(", random")}
        results |= fit_all(options.source, random, options.random, options.jobs)
        results |= fit_all(options.source, settings, options.seeds, options.jobs)
    report("chance", results, sys.argv)
    for space in options.spaces:
        if {"random", "found"} <= set(options.rows):
            chance = [run["test_accuracy"] for run in results[f"{space}, random"]]
            found = statistics.mean(run["test_accuracy"] for run in results[f"{space}, found"])
            margin = (found - statistics.mean(chance)) / statistics.stdev(chance)
            print(f"{space}: found - mean of random = {margin:+.2f} standard deviations of random")


if __name__ == "__main__":
    main()
