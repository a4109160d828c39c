"""What a run writes down: its settings, a row of metrics per epoch, and what was learned."""

import csv
import io
import json
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dha import __version__
from dha.architecture import genotype_of
from dha.config import LEARNED, Config
from dha.data import DataReport, Splits
from dha.errors import DhaError
from dha.files import write_bytes, write_text
from dha.joint import JointTraining
from dha.model import TrainedModel
from dha.ownership import DATA, LEFT_OUT, SETTINGS
from dha.run_folder import write_settings
from dha.state import Position, RunState

TOP_PAIRS = 5

SCHEDULE = 2000
"""The most epochs that ``model.json`` tells the hyper-parameters of; ``metrics.csv`` has all."""


def settings(folder: Path | None, config: Config, source: Any) -> None:
    """Write the settings of the run, with everything decided, to ``config.yaml``; a full disk does not end the run."""
    if folder is not None:
        with _complaining(folder / SETTINGS):
            write_settings(folder, config, source)


def row(
    joint: JointTraining, position: Position, validation: tuple[float, float] | None, seconds: float
) -> dict[str, Any]:
    """Return the row of metrics of the epoch that has just ended.

    Args:
        joint: what is learned.
        position: with the totals and the changes of the epoch.
        validation: loss and accuracy; None where validation images have become training images.
        seconds: since the run began.
    """
    assert position.totals is not None
    loss, hits, images, finite = position.totals.tolist()
    values: dict[str, Any] = {
        "epoch": len(position.history) + 1,
        "seconds": round(seconds, 2),
        "train_loss": round(loss / finite, 5) if finite else "",
        "train_accuracy": round(hits / images, 5),
        "validation_loss": "" if validation is None else round(validation[0], 5),
        "validation_accuracy": "" if validation is None else round(validation[1], 5),
        "learning_rate": float(f"{joint.hyper.peaks[0].value.item():.4g}"),
        "head_learning_rate": float(f"{joint.hyper.peaks[1].value.item():.4g}") if joint.head else "",
        "scheduled_learning_rate": float(f"{float(joint.optimizer.optimizer.param_groups[0]['lr']):.4g}"),
        "weight_decay": float(f"{joint.hyper.decays[0].value.item():.4g}"),
        "head_weight_decay": float(f"{joint.hyper.decays[1].value.item():.4g}") if joint.head else "",
        "momentum": float(f"{1 - joint.hyper.friction.value.item():.4g}"),
        "label_smoothing": float(f"{joint.hyper.smoothing.value.item():.4g}"),
        "drop_path": float(f"{joint.hyper.depth.probability.value.item():.4g}"),
        "policy_untouched": "",
        "policy_entropy": "",
        "policy_top_pairs": "",
        "searching": int(joint.searching),
        "skipped_steps": int(joint.skipped.counts[0]),
    }
    if joint.policy is not None:
        values["policy_untouched"] = round(joint.policy.untouched(), 5)
        values["policy_entropy"] = round(joint.policy.entropy().item(), 4)
        pairs = joint.policy.top_pairs(TOP_PAIRS)
        values["policy_top_pairs"] = " ".join(f"{a}>{b}:{p:.3f}" for a, b, p in pairs)
    for node, change in enumerate(position.changes):
        values[f"change_{node}"] = round(change, 5)
    return values


def data(folder: Path | None, report: DataReport) -> None:
    """Write what was read to ``data.json``, and what was left out to ``left-out.csv``."""
    if folder is None:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "reason"))
    writer.writerows(report.left_out.items())
    with _complaining(folder / DATA):
        write_text(folder / DATA, json.dumps(report.to_dict(), indent=2) + "\n")
    with _complaining(folder / LEFT_OUT):
        write_bytes(folder / LEFT_OUT, text.getvalue().encode("utf-8", "surrogateescape"))


class Metrics:
    """Writes ``metrics.csv``, a row at a time; a disk that is full does not end the run.

    Args:
        folder: of the run; None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else folder / "metrics.csv"
        self._rows, self._known = 0, (0, 0, 0)

    def write(self, history: list[dict[str, Any]]) -> None:
        """Add the last row of all; write all anew where the file does not hold those before it, as after a resume."""
        if self.file is None:
            return
        with _complaining(self.file):
            if self._rows and self._rows == len(history) - 1 and self._identity() == self._known:
                self._append(_table(history[-1:]))
            else:
                self._rows = 0
                write_text(self.file, _table(history[:1], header=True) + _table(history[1:]))
            self._rows, self._known = len(history), self._identity()

    def _append(self, text: str) -> None:
        assert self.file is not None
        rows, self._rows = self._rows, 0  # A part of the row may be written when the disk is full.
        with open(self.file, "ab") as file:
            file.write(text.encode())
        self._rows = rows

    def _identity(self) -> tuple[int, int, int]:
        # The file that this process has written, and not one that has been put in its place.
        assert self.file is not None
        try:
            status = self.file.lstat()
        except FileNotFoundError:
            return 0, 0, 0
        return status.st_dev, status.st_ino, status.st_size


def _table(rows: list[dict[str, Any]], header: bool = False) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def learned(
    joint: JointTraining,
    history: list[dict[str, Any]],
    test_accuracy: float | None,
    report: DataReport,
    final: bool,
) -> dict[str, Any]:
    """Return what ``model.json`` says beside the network: what was read, policy, course of the hyper-parameters,
    results, whether the run is over.
    """
    names = ("epoch", "learning_rate", "head_learning_rate", "scheduled_learning_rate", *LEARNED[1:])
    last = history[-1] if history else {}
    validated = [values["validation_accuracy"] for values in history if values["validation_accuracy"] != ""]
    return {
        "final": final,
        "versions": {"dha": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": report.to_dict(),
        "policy": None if joint.policy is None else joint.policy.to_dict(),
        "schedule": [{name: values[name] for name in names} for values in _thinned(history)],
        "results": {
            "epochs": len(history),
            "seconds": last.get("seconds"),
            "validation_accuracy": validated[-1] if validated else None,
            "test_accuracy": test_accuracy,
            "policy_top_pair": None if joint.policy is None else joint.policy.top_pairs(1)[0],
        },
    }


def _thinned(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most ``SCHEDULE`` rows, evenly spaced, the first and the last among them."""
    count = len(history)
    if count <= SCHEDULE:
        return history
    return [history[round(place * (count - 1) / (SCHEDULE - 1))] for place in range(SCHEDULE)]


def interim(folder: Path | None, network: nn.Module, state: RunState, splits: Splits) -> None:
    """Write the model as it is now; a disk that is full does not end the run."""
    if folder is None or not state.position.history:
        return
    joint, genotype = state.joint, genotype_of(network, state.config.network)
    values = learned(joint, state.position.history, None, splits.report, final=False)
    mirrored = bool(state.position.mirrored)
    model = TrainedModel(network, splits.classes, joint.preprocessing, genotype, values, mirrored)
    with _complaining(folder / "model"):
        model.save(folder / "model")


@contextmanager
def _complaining(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DhaError) as error:  # The latter of a folder that dha must not replace.
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(f"{str(place)!r} cannot be written ({reason}): the run goes on", RuntimeWarning, stacklevel=4)


def codes(folder: Path | None, joint: JointTraining) -> None:
    """Write the codes and dictionaries that the architecture came from, at the end of a search."""
    if folder is None or not joint.codes:
        return
    state = {
        f"{index}.{name}": tensor.cpu().contiguous()
        for index, codes in enumerate(joint.codes)
        for name, tensor in codes.state_dict().items()
    }
    with _complaining(folder / "codes.safetensors"):
        write_bytes(folder / "codes.safetensors", safetensors.torch.save(state))
