"""What a run writes down: its settings, a row of metrics per epoch, and what was learned."""

import csv
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import nn

from dha.architecture import genotype_of
from dha.config import LEARNED, Config, config_dict
from dha.data import Source, Splits
from dha.engine import lock, write_bytes, write_text
from dha.errors import DhaError
from dha.joint import JointTraining
from dha.model import TrainedModel
from dha.state import Position, RunState

TOP_PAIRS = 5


def claim(out: str | Path | None, resume: bool = False) -> Path | None:
    """Return the folder of the run.

    Args:
        out: its name.
        resume: whether it may hold a run that is not over.

    Raises:
        DhaError: if it holds a run that it should not hold, or cannot be a folder.
    """
    if out is None:
        if resume:
            raise DhaError("resume=True and out=None: name the folder of the run to go on with")
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DhaError(f"out={str(folder)!r} is a file: name a folder that is new or empty")
    held = [name for name in ("config.yaml", "metrics.csv", "model") if (folder / name).exists()]
    if held and not resume:
        raise DhaError(
            f"out={str(folder)!r} already holds a run: choose another folder, delete it first, or resume the run"
        )
    if "model" in held and not any(folder.glob("checkpoint*.pt")):
        raise DhaError(f"the run in out={str(folder)!r} is over: its model is in {str(folder / 'model')!r}")
    return folder


@contextmanager
def begun(folder: Path | None, config: Config, source: Source, resume: bool) -> Iterator[None]:
    """Make the folder, keep other runs out of it while the block lasts, and write the settings to ``config.yaml``.

    Raises:
        DhaError: if the folder cannot be written to, or another run has it.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        claim(folder, resume)  # Once more: another run may have been here before the folder was locked.
        header = f"# dha fit {source.name}\n"
        try:
            write_text(folder / "config.yaml", header + yaml.safe_dump(config_dict(config), sort_keys=False))
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _unwritable(folder: Path, error: OSError) -> DhaError:
    return DhaError(f"out={str(folder)!r} cannot be written to ({error.strerror}): choose another folder")


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
    loss, hits, images = position.totals.tolist()
    values: dict[str, Any] = {
        "epoch": len(position.history) + 1,
        "seconds": round(seconds, 2),
        "train_loss": round(loss / images, 5),
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
        "skipped_steps": int(joint.skipped.total),
    }
    if joint.policy is not None:
        values["policy_untouched"] = round(joint.policy.untouched(), 5)
        values["policy_entropy"] = round(joint.policy.entropy().item(), 4)
        pairs = joint.policy.top_pairs(TOP_PAIRS)
        values["policy_top_pairs"] = " ".join(f"{a}>{b}:{p:.3f}" for a, b, p in pairs)
    for node, change in enumerate(position.changes):
        values[f"change_{node}"] = round(change, 5)
    return values


def metrics(folder: Path | None, history: list[dict[str, Any]]) -> None:
    """Write all rows to ``metrics.csv``; a disk that is full does not end the run."""
    if folder is None:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with _complaining(folder / "metrics.csv"):
        write_text(folder / "metrics.csv", text.getvalue())


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


def interim(folder: Path | None, network: nn.Module, state: RunState, splits: Splits) -> None:
    """Write the model as it is now; a disk that is full does not end the run."""
    if folder is None or not state.position.history:
        return
    joint, genotype = state.joint, genotype_of(network, state.config.network)
    values = learned(joint, state.position.history, None)
    mirrored = bool(state.position.mirrored)
    model = TrainedModel(network, splits.classes, joint.preprocessing, genotype, values, mirrored)
    with _complaining(folder / "model"):
        model.save(folder / "model")


def finish(folder: Path | None, model: TrainedModel) -> None:
    """Write the delivered model.

    Raises:
        DhaError: if it cannot be written.
    """
    if folder is None:
        return
    try:
        model.save(folder / "model")
    except OSError as error:
        raise DhaError(
            f"{str(folder / 'model')!r} cannot be written ({error.strerror}): make room and resume the run"
        ) from error


@contextmanager
def _complaining(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        warnings.warn(f"{str(place)!r} cannot be written ({error}): the run goes on", RuntimeWarning, stacklevel=4)


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
