"""The smallest budget of a few that reaches an accuracy: `dha fit`, timed from the start of its process to its end.

    python benchmarks/time_to_accuracy.py digits --accuracy 97.5 --budgets 6s 8s 10s 14s 20s 28s --seeds 3

Budgets are tried from small to large, all seeds of each, until every one of them reaches the accuracy; one that is over
before training begins is passed over. Prints a Markdown table, how long the slowest run of the last budget took, and
writes time_to_accuracy.json.
"""

import argparse
import subprocess
import sys

from repeated import fit_all, report


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="as for dha fit")
    parser.add_argument("--accuracy", type=float, default=97.5, help="of the test images, in percent")
    parser.add_argument("--budgets", nargs="+", default=["6s", "8s", "10s", "14s", "20s", "28s"], help="from small on")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    results, reached = {}, False
    for budget in options.budgets:
        try:
            results |= fit_all(options.source, {budget: [f"--budget={budget}"]}, options.seeds, jobs=1)
        except subprocess.CalledProcessError as error:
            print(f"{budget}: {error.stderr.decode().strip()}", file=sys.stderr)
            continue
        reached = min(run["test_accuracy"] for run in results[budget]) >= options.accuracy
        if reached:
            break
    if not results:
        return
    report("time_to_accuracy", results, sys.argv)
    budget, runs = list(results.items())[-1]
    slowest = max(run["seconds"] for run in runs)
    print(f"\n{budget}: {options.accuracy} % {'reached' if reached else 'not reached'}, slowest run {slowest} s")


if __name__ == "__main__":
    main()
