"""What a run writes down: its settings, a row of metrics per epoch, and what was learned."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml

from dha.config import LEARNED, Config, config_dict
from dha.data import Source
from dha.engine import write_text
from dha.errors import DhaError
from dha.joint import JointTraining
from dha.model import TrainedModel

TOP_PAIRS = 5


def claim(out: str | Path | None) -> Path | None:
    """Return the folder of the run.

    Raises:
        DhaError: if it already holds a run, or cannot be a folder.
    """
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DhaError(f"out={str(folder)!r} is a file: name a folder that is new or empty")
    if any((folder / name).exists() for name in ("config.yaml", "metrics.csv", "model")):
        raise DhaError(f"out={str(folder)!r} already holds a run: choose another folder, or delete it first")
    return folder


def begin(folder: Path | None, config: Config, source: Source) -> None:
    """Make the folder and write the resolved settings to ``config.yaml``."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        header = f"# dha fit {source.name}\n"
        write_text(folder / "config.yaml", header + yaml.safe_dump(config_dict(config), sort_keys=False))
    except OSError as error:
        raise DhaError(f"out={str(folder)!r} cannot be written to ({error.strerror}): choose another folder") from error


def row(
    joint: JointTraining,
    epoch: int,
    totals: list[float],
    validation: tuple[float, float] | None,
    changes: Sequence[float],
    seconds: float,
) -> dict[str, Any]:
    """Return one row of metrics.

    Args:
        joint: what is learned.
        epoch: its number, from 1.
        totals: sums of losses, hits and images of the epoch.
        validation: loss and accuracy; None where validation images have become training images.
        changes: the largest move of the sparse code of each node in the epoch.
        seconds: since the run began.
    """
    images = max(1.0, totals[2])
    values: dict[str, Any] = {
        "epoch": epoch,
        "seconds": round(seconds, 2),
        "train_loss": round(totals[0] / images, 5),
        "train_accuracy": round(totals[1] / images, 5),
        "validation_loss": "" if validation is None else round(validation[0], 5),
        "validation_accuracy": "" if validation is None else round(validation[1], 5),
        "learning_rate": float(f"{joint.peaks[0].value.item():.4g}"),
        "head_learning_rate": float(f"{joint.peaks[1].value.item():.4g}") if joint.head else "",
        "scheduled_learning_rate": float(f"{float(joint.optimizer.optimizer.param_groups[0]['lr']):.4g}"),
        "weight_decay": float(f"{joint.weight_decay.value.item():.4g}"),
        "momentum": float(f"{1 - joint.friction.value.item():.4g}"),
        "label_smoothing": float(f"{joint.smoothing.value.item():.4g}"),
        "policy_entropy": "",
        "policy_top_pairs": "",
        "searching": int(joint.searching),
    }
    if joint.policy is not None:
        values["policy_entropy"] = round(joint.policy.entropy().item(), 4)
        pairs = joint.policy.top_pairs(TOP_PAIRS)
        values["policy_top_pairs"] = " ".join(f"{a}>{b}:{p:.3f}" for a, b, p in pairs)
    for node, change in enumerate(changes):
        values[f"change_{node}"] = round(change, 5)
    return values


def append(folder: Path | None, history: list[dict[str, Any]]) -> None:
    """Add the latest row to ``metrics.csv``, with a header above the first."""
    if folder is None:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[-1]))
    if len(history) == 1:
        writer.writeheader()
    writer.writerow(history[-1])
    with open(folder / "metrics.csv", "a", encoding="utf-8", newline="") as handle:
        handle.write(text.getvalue())


def learned(joint: JointTraining, history: list[dict[str, Any]], test_accuracy: float | None) -> dict[str, Any]:
    """Return what ``model.json`` says beside the network: policy, course of the hyper-parameters, results."""
    names = ("epoch", "learning_rate", "head_learning_rate", "scheduled_learning_rate", *LEARNED[1:])
    last = history[-1] if history else {}
    validated = [values["validation_accuracy"] for values in history if values["validation_accuracy"] != ""]
    return {
        "policy": None if joint.policy is None else joint.policy.to_dict(),
        "schedule": [{name: values[name] for name in names} for values in history],
        "results": {
            "epochs": len(history),
            "seconds": last.get("seconds"),
            "validation_accuracy": validated[-1] if validated else None,
            "test_accuracy": test_accuracy,
            "policy_top_pair": None if joint.policy is None else joint.policy.top_pairs(1)[0],
        },
    }


def finish(folder: Path | None, model: TrainedModel) -> None:
    """Write the delivered model."""
    if folder is not None:
        model.save(folder / "model")


def codes(folder: Path | None, joint: JointTraining) -> None:
    """Write the codes and dictionaries that the architecture came from, at the end of a search."""
    if folder is None or not joint.codes:
        return
    state = {
        f"{index}.{name}": tensor.cpu().contiguous()
        for index, codes in enumerate(joint.codes)
        for name, tensor in codes.state_dict().items()
    }
    safetensors.torch.save_file(state, folder / "codes.safetensors")
