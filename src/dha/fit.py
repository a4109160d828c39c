"""One run: from a source of labelled images to a trained, evaluated and saved model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dha import record
from dha.architecture import genotype_of
from dha.config import Config, check, parse_budget
from dha.data import Batches, Preprocessing, Splits, load_source, measure, split
from dha.engine import Budget, make_fabric
from dha.errors import DhaError
from dha.evaluation import best_by_validation, closing_seconds, evaluate, validate
from dha.joint import JointTraining
from dha.model import TrainedModel
from dha.prepare import prepare, resolve

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
    channels, image_size = splits.train.images.shape[1:3]
    preprocessing = Preprocessing(image_size, channels, *measure(splits.train.images))
    config = resolve(config, splits, preprocessing, fabric)
    batches, everything, joint = prepare(splits, preprocessing, config, fabric)
    record.begin(folder, config, loaded)
    budget = Budget(
        seconds=None if config.budget is None else parse_budget(config.budget),
        steps=(config.epochs or 0) * len(batches),
        started=started,
    )
    # What is random in a network that was brought, as dropout, follows the seed too.
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        history = train(joint, batches, everything, splits, budget, config, folder, started, watch)

    if not history:
        spent = time.monotonic() - started
        raise DhaError(f"budget={config.budget!r} was over before training began, after {spent:.0f} s: give more time")
    network = best_by_validation(joint, batches, splits, config)
    model = TrainedModel(network, splits.classes, preprocessing, genotype_of(network, config.network))
    accuracy = None
    if splits.test is not None:
        _, accuracy = evaluate(model.network, splits.test, preprocessing, config.images_per_step(), fabric.device)
    model.learned = record.learned(joint, history, accuracy)
    record.finish(folder, model)
    return Run(model, history, accuracy, time.monotonic() - started, loaded.skipped, config)


def train(
    joint: JointTraining,
    batches: Batches,
    everything: Batches,
    splits: Splits,
    budget: Budget,
    config: Config,
    folder: Path | None,
    started: float,
    watch: Watch | None,
) -> list[dict[str, Any]]:
    """The loop: steps until the budget is over, the search inside its share of it, ``everything`` trained on
    after what is learned has settled, one row of metrics per epoch.
    """
    history: list[dict[str, Any]] = []
    settings = config.architecture
    nodes = sum(len(codes.code) for codes in joint.codes)
    recovered, recovered_step, saved = 0.0, 0, time.monotonic()
    budget.closing = closing_seconds(joint, splits, config)
    while budget.progress() < 1:
        if budget.progress() >= config.settle and not joint.settled:
            joint.settle()
            batches = everything
        joint.network.train()
        totals = torch.zeros(3, device=joint.fabric.device)
        changes = [0.0] * nodes
        for images, labels in batches:
            losses, correct = joint.step(images, labels, budget.progress())
            totals += torch.stack([losses.sum(), correct.sum(), torch.ones_like(losses).sum()])
            budget.advance()
            progress = budget.progress()
            if settings.recover_every is not None:
                due = joint.steps - recovered_step >= settings.recover_every
            else:
                due = progress - recovered >= settings.deadline / RECOVERIES
            if joint.searching and (due or progress >= settings.deadline):
                recovered, recovered_step = progress, joint.steps
                change, frozen = joint.recover()
                changes = [max(pair) for pair in zip(changes, change, strict=True)]
                if frozen or progress >= settings.deadline:
                    record.codes(folder, joint)
                    joint.finish_search()
            if watch is not None:
                watch(progress, history[-1] if history else {})
            if progress >= 1:
                break
        validation = None if joint.settled and splits.held_out else validate(joint, splits, config)
        history.append(
            record.row(joint, len(history) + 1, totals.tolist(), validation, changes, time.monotonic() - started)
        )
        record.append(folder, history)
        if folder is not None and time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            network, learned = joint.derived(), record.learned(joint, history, None)
            genotype = genotype_of(network, config.network)
            TrainedModel(network, splits.classes, joint.preprocessing, genotype, learned).save(folder / "model")
    return history
