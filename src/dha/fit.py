"""One run: from a source of labelled images to a trained, evaluated and saved model."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from dha import record
from dha.architecture import CellSearchNetwork
from dha.augmentation import OPERATIONS, PairPolicy
from dha.config import Config, check, learned_parts, parse_budget
from dha.data import Batches, LabelledImages, Preprocessing, Splits, load_source, measure, sequential, split
from dha.engine import Budget, make_fabric
from dha.errors import DhaError
from dha.joint import JointTraining
from dha.model import TrainedModel

RECOVERIES = 20
SAVE_EVERY = 30.0

Watch = Callable[[float, dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """What a run hands back.

    Attributes:
        model: the delivered model.
        history: one row of ``metrics.csv`` per epoch.
        test_accuracy: share of the test images classified correctly, in [0, 1]; None when there are no test images.
        seconds: wall-clock time of the whole run.
        skipped: number of files left out because they are not images.
        config: the resolved settings.
    """

    model: TrainedModel
    history: list[dict[str, Any]]
    test_accuracy: float | None
    seconds: float
    skipped: int
    config: Config


def run(
    source: Any,
    labels: Any = None,
    *,
    config: Config,
    out: str | Path | None = None,
    hold_out_test: bool = True,
    started: float | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train an image classifier, learning the parts that ``config.learn`` names jointly with its weights.

    Args:
        source: labelled images, as ``dha.data.load_source`` takes them.
        labels: one per image, where the source holds none itself.
        config: the settings; not changed.
        out: folder of the run, made here; nothing is written when not given.
        hold_out_test: whether test images are held out of a source that has none.
        started: ``time.monotonic()`` of when the budget began to run; now when not given.
        watch: called after every step with the share of the run that is over and the latest row of metrics.

    Raises:
        DhaError: for a bad setting, source or output folder, before any training.
    """
    started = time.monotonic() if started is None else started
    check(config)
    folder = record.claim(out)
    loaded = load_source(source, labels, image_size=config.image_size, on_bad_image=config.on_bad_image)
    splits = split(
        loaded,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction if hold_out_test else 0.0,
        seed=config.seed,
    )
    fabric = make_fabric(config.device, config.precision, splits.train.images.shape[-1])
    config = resolve(config, splits, fabric)
    record.begin(folder, config, loaded)
    channels, image_size = splits.train.images.shape[1:3]
    preprocessing = Preprocessing(image_size, channels, *measure(splits.train.images))
    batches, joint = prepare(splits, preprocessing, config, fabric)
    budget = Budget(
        seconds=None if config.budget is None else parse_budget(config.budget),
        steps=(config.epochs or 0) * len(batches),
        started=started,
    )
    history = train(joint, batches, splits, budget, config, folder, started, watch)

    if not history:
        spent = time.monotonic() - started
        raise DhaError(f"budget={config.budget!r} was over before training began, after {spent:.0f} s: give more time")
    model = TrainedModel(joint.derived(), splits.classes, preprocessing)
    accuracy = None
    if splits.test is not None:
        _, accuracy = evaluate(model.network, splits.test, preprocessing, config.batch_size, fabric.device)
    model.learned = record.learned(joint, history, accuracy)
    record.finish(folder, model, joint.codes)
    return Run(model, history, accuracy, time.monotonic() - started, loaded.skipped, config)


def resolve(config: Config, splits: Splits, fabric: Fabric) -> Config:
    """Return a copy of the settings in which everything that was left open is decided."""
    resolved = Config(**{f.name: copy.deepcopy(getattr(config, f.name)) for f in fields(Config)})
    resolved.image_size = splits.train.images.shape[-1]
    resolved.learn = ",".join(learned_parts(config.learn)) or "none"
    resolved.device = fabric.device.type  # pyright: ignore[reportAttributeAccessIssue]
    resolved.precision = "bf16" if fabric._precision.precision == "bf16-mixed" else "32"
    if config.budget is None and config.epochs is None:
        resolved.budget = min(1200.0, max(30.0, 0.04 * len(splits.train)))
    return resolved


def prepare(
    splits: Splits, preprocessing: Preprocessing, config: Config, fabric: Fabric
) -> tuple[Batches, JointTraining]:
    """Build the training batches and all that is learned from them; all randomness comes from ``config.seed``."""
    order, held_out, draws = (torch.Generator().manual_seed(3 * config.seed + i) for i in range(3))
    batches = Batches(splits.train, config.batch_size, order, fabric.device, drop_last=True)
    validation = Batches(splits.validation, config.batch_size, held_out, fabric.device, drop_last=True).forever()
    settings = config.architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CellSearchNetwork(
            preprocessing.channels,
            len(splits.classes),
            preprocessing.image_size,
            cells=settings.cells,
            channels=settings.channels,
            resolution=settings.resolution,
            nodes=settings.nodes,
            code_size=settings.code_size,
            penalty=settings.penalty,
            seed=config.seed,
        )
    learn = learned_parts(config.learn)
    policy = None
    if "augmentation" in learn:
        # An image of one channel has no colour: the operation would be a second identity.
        operations = [name for name in OPERATIONS if preprocessing.channels > 1 or name != "color"]
        policy = PairPolicy(operations, config.augmentation.structure, config.augmentation.identity)
    joint = JointTraining(network, policy, validation, preprocessing, config, fabric, draws)
    if "architecture" not in learn:
        joint.finish_search()
    return batches, joint


def train(
    joint: JointTraining,
    batches: Batches,
    splits: Splits,
    budget: Budget,
    config: Config,
    folder: Path | None,
    started: float,
    watch: Watch | None,
) -> list[dict[str, Any]]:
    """The loop: steps until the budget is over, the search inside its share of it, one row of metrics per epoch."""
    history: list[dict[str, Any]] = []
    deadline = config.architecture.deadline
    recovered, saved = 0.0, time.monotonic()
    few = splits.validation.select(torch.arange(min(len(splits.validation), 4 * config.batch_size)))
    budget.closing = closing_seconds(joint, few, splits, config)[1]
    while budget.progress() < 1:
        joint.network.train()
        totals = torch.zeros(3, device=joint.fabric.device)
        changes: list[list[float]] = []
        for images, labels in batches:
            losses, correct = joint.step(images, labels, budget.progress())
            totals += torch.stack([losses.sum(), correct.sum(), torch.ones_like(losses).sum()])
            budget.advance()
            progress = budget.progress()
            if joint.searching and (progress >= deadline or progress - recovered >= deadline / RECOVERIES):
                recovered = progress
                change, frozen = joint.recover()
                changes.append(change)
                if frozen or progress >= deadline:
                    joint.finish_search()
            if watch is not None:
                watch(progress, history[-1] if history else {})
            if progress >= 1:
                break
        validation, budget.closing = closing_seconds(joint, splits.validation, splits, config)
        history.append(
            record.row(joint, len(history) + 1, totals.tolist(), validation, changes, time.monotonic() - started)
        )
        record.append(folder, history)
        if folder is not None and time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            learned = record.learned(joint, history, None)
            TrainedModel(joint.derived(), splits.classes, joint.preprocessing, learned).save(folder / "model")
    return history


def closing_seconds(
    joint: JointTraining, data: LabelledImages, splits: Splits, config: Config
) -> tuple[tuple[float, float], float]:
    """Evaluate on ``data``; return the result, and how long validation, test and saving will take at that speed."""
    began = time.monotonic()
    result = evaluate(joint.plain, data, joint.preprocessing, config.batch_size, joint.fabric.device)
    images = len(splits.validation) + len(splits.test or ())
    return result, 1.0 + (time.monotonic() - began) * images / len(data)


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    data: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy of a network on labelled images, in evaluation mode and float32."""
    network.eval()
    totals = torch.zeros(2, device=device)
    for images, labels in sequential(data, 4 * batch_size, device):
        pixels = preprocessing.normalise(images.float() / 255).contiguous(memory_format=torch.channels_last)
        logits = network(pixels)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss, correct = (totals / len(data)).tolist()
    return loss, correct
