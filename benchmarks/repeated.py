"""Runs `dha fit` many times, some side by side on one thread each, and gathers what the runs wrote."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROGRAM = ("-m", "dha")


def fit_all(
    source: str,
    settings: Mapping[str, Sequence[str]],
    seeds: int,
    jobs: int,
    *,
    program: Sequence[str] = PROGRAM,
    more: Callable[[Path], dict[str, Any]] = lambda out: {},
) -> dict[str, list[dict[str, Any]]]:
    """Train once per setting and seed; return the results of every setting by seed.

    Args:
        source: as for `dha fit`.
        settings: name -> arguments of `dha fit`.
        seeds: seeds 0..seeds-1.
        jobs: how many runs go on at once, each on one thread.
        program: what Python runs that takes the arguments of `dha`.
        more: reads further results from the folder of a run.
    """

    def fit(task: tuple[int, str]) -> tuple[str, dict[str, Any]]:
        seed, name = task
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, *program, "fit", source, "--out", str(out), f"--seed={seed}", *settings[name]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            model = json.loads((out / "model" / "model.json").read_text())
            last = model["schedule"][-1]
            result = {
                "seed": seed,
                "test_accuracy": 100 * model["results"]["test_accuracy"],
                "validation_accuracy": 100 * model["results"]["validation_accuracy"],
                "epochs": model["results"]["epochs"],
                "seconds": round(time.monotonic() - began, 1),
                "learning_rate": last["learning_rate"],
                "weight_decay": last["weight_decay"],
                "top_pair": model["results"]["policy_top_pair"],
                "genotype": model["genotype"],
                **more(out),
            }
            print(f"{name} seed {seed}: {result['test_accuracy']:.2f} % in {result['seconds']} s", file=sys.stderr)
            return name, result

    # Seed by seed, so that a cut-off still compares like with like, and so that the settings share the machine's moods.
    tasks = [(seed, name) for seed in range(seeds) for name in settings]
    gathered: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    with ThreadPoolExecutor(jobs) as pool:
        for name, result in pool.map(fit, tasks):
            gathered[name].append(result)
    return gathered


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: mean and standard deviation of the test accuracy, and what else was measured."""
    lines = [
        "| setting | test accuracy, % | n | epochs | learning rate at the end | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        accuracies = [run["test_accuracy"] for run in runs]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        rates = ", ".join(f"{run['learning_rate']:.2g}" for run in runs)
        lines.append(
            f"| {name} | {statistics.mean(accuracies):.2f} ± {spread:.2f} | {len(runs)} "
            f"| {statistics.mean(run['epochs'] for run in runs):.1f} | {rates} "
            f"| {max(run['seconds'] for run in runs):.0f} |"
        )
    return "\n".join(lines)


def report(name: str, results: dict[str, list[dict[str, Any]]], arguments: Sequence[str]) -> None:
    """Print the table and write everything to ``NAME.json`` beside the current folder's other results."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"command": ["python", *arguments], "machine": machine, "results": results}
    Path(f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(results))
