"""One run: from a source of labelled images to a trained, evaluated and saved model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dha import record
from dha.architecture import genotype_of
from dha.checking import check
from dha.config import Config, parse_budget
from dha.data import Cache, Preprocessing, Splits, load_source, measure, split
from dha.engine import Agreement, Budget, Checkpoints, Stop, make_fabric, summed
from dha.errors import DhaError, Interrupted
from dha.evaluation import best_by_validation, closing_seconds, diverged, evaluate, interim, mirroring, validate
from dha.model import TrainedModel
from dha.prepare import prepare, resolve
from dha.skipping import WATCHED
from dha.state import Position, RunState, fingerprint, resumed_config

RECOVERIES = 20
WRITING, BY_CLOCK = 0.01, 0.05
"""The shares of the time that checkpoints at the ends of epochs, and those by the clock, may take."""
LARGE = 0.5
"""A state that takes so many seconds to keep is not written after the first epoch before it is due, nor in the end."""
RETRIES = 3
"""How often a training that has diverged goes back to its last good state, with half the learning rate."""

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
    resume: bool = False,
    stoppable: bool = False,
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
        resume: go on with the run in ``out`` from its last checkpoint and by its settings; begin where there is none.
        stoppable: whether SIGINT and SIGTERM end the training after the steps under way, with everything saved.

    Raises:
        DhaError: for a bad setting, source or output folder, before any training; if the training diverges for good, or
            what it made cannot be written.
        Interrupted: if a signal has ended the training.
    """
    started = time.monotonic() if started is None else started
    check(config)
    folder = record.claim(out, resume)
    checkpoints = Checkpoints(folder)
    saved = checkpoints.load() if resume else None
    if saved is not None:
        config = resumed_config(config, saved["config"])
    loaded = load_source(
        source,
        labels,
        image_size=config.image_size,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        folder=folder,
    )
    splits = split(
        loaded,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction if hold_out_test else 0.0,
        seed=config.seed,
    )
    images = fingerprint(splits)
    if saved is not None and saved["images"] != images:
        raise DhaError(f"the run in {str(folder)!r} was begun with other images than are in {loaded.name!r} now")
    channels, image_size, _ = splits.train.shape
    fabric = make_fabric(config.device, config.precision, image_size, config.devices, config.num_nodes, config.strategy)
    if not fabric.is_global_zero:
        folder, checkpoints = None, Checkpoints(None)
    preprocessing = Preprocessing(image_size, channels, *measure(splits.train))
    if saved is None:
        config = fabric.broadcast(resolve(config, splits, preprocessing, fabric, time.monotonic() - started))
    spent = time.monotonic() - started
    batches, everything, validation, joint = prepare(splits, preprocessing, config, fabric, spent)
    budget = Budget(
        seconds=None if config.budget is None else parse_budget(config.budget),
        steps=(config.epochs or 0) * len(batches),
        started=started,
    )
    position = Position(nodes=sum(len(codes.code) for codes in joint.codes))
    state = RunState(config, images, joint, batches, everything, validation, budget, position)
    with (
        record.begun(folder, config, loaded, resume),
        # What is random in a network that was brought, as dropout, follows the seed too.
        torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []),
    ):
        torch.manual_seed(config.seed)
        if saved is not None:
            state.load_state_dict(saved["run"])
        with Stop(stoppable) as stop:
            train(state, splits, folder, checkpoints, watch, stop)
        history = position.history
        if not history:
            spent = budget.used()
            raise DhaError(
                f"budget={config.budget!r} was over before training began, after {spent:.0f} s: give more time"
            )
        network = best_by_validation(joint, batches, splits, config)
        if position.mirrored is None:
            position.mirrored = mirroring(network, joint, splits, config, image_size)
        genotype = genotype_of(network, config.network)
        model = TrainedModel(network, splits.classes, preprocessing, genotype, mirrored=position.mirrored)
        accuracy = None
        if splits.test is not None:
            settings = preprocessing, config.images_per_step(), fabric.device
            _, accuracy = evaluate(network, splits.test, *settings, mirrored=model.mirrored)
        model.learned = record.learned(joint, history, accuracy)
        record.finish(folder, model)
        checkpoints.remove()
        Cache(folder=folder).remove()
    return Run(model, history, accuracy, budget.used(), loaded.skipped, config)


def train(
    state: RunState,
    splits: Splits,
    folder: Path | None,
    checkpoints: Checkpoints,
    watch: Watch | None,
    stop: Stop,
) -> None:
    """The loop: steps until the budget is over, the search inside its share of it, validation images trained on, too,
    after what is learned has settled, one row of metrics per epoch.
    """
    joint, budget, position, config = state.joint, state.budget, state.position, state.config
    settings, retries = config.architecture, 0
    budget.closing = closing_seconds(joint, splits, config)
    agreed = Agreement(joint.fabric)

    def keep(whole: bool) -> None:
        """Write a checkpoint, and the model so far with it if ``whole``; but never one that has diverged."""
        nonlocal saved, cost
        began = time.monotonic()
        if joint.is_sound():
            checkpoints.save(state.state_dict())
            if whole:
                record.interim(folder, interim(joint, splits, config, joint.batching.side(progress)), state, splits)
        saved = time.monotonic()
        cost = saved - began

    def so_far() -> float:
        return progress

    saved = time.monotonic()
    checkpoints.save(state.state_dict(), write=False)
    cost = time.monotonic() - saved
    (progress,) = agreed(budget.progress())
    while progress < 1:
        if position.totals is None:
            if progress >= config.settle and not joint.settled:
                # Now, because the validation images are still unseen.
                position.mirrored = mirroring(joint.plain, joint, splits, config, joint.batching.side(progress))
                joint.settle()
            joint.space_looks()
            position.totals = torch.zeros(3, device=joint.fabric.device)
            position.changes = [0.0] * position.nodes
        joint.network.train()
        in_trouble, signal = False, 0.0
        for batches in joint.batching.drawn(state.everything if joint.settled else state.batches, so_far):
            for batch in batches:
                losses, correct = joint.train(batch, progress)
                position.totals += torch.stack([losses.sum(), correct.sum(), torch.ones_like(losses).sum()])
                budget.advance()
                progress, signal = agreed(budget.progress(), stop.signal or 0)
                if settings.recover_every is not None:
                    due = joint.steps - position.recovered_step >= settings.recover_every
                else:
                    due = progress - position.recovered >= settings.deadline / RECOVERIES
                if joint.searching and (due or progress >= settings.deadline):
                    position.recovered, position.recovered_step = progress, joint.steps
                    change, frozen = joint.recover()
                    position.changes = [max(pair) for pair in zip(position.changes, change, strict=True)]
                    if frozen or progress >= settings.deadline:
                        record.codes(folder, joint)
                        joint.finish_search()
                        checkpoints.save(state.state_dict(), write=False)
                if watch is not None:
                    watch(progress, position.history[-1] if position.history else {})
                in_trouble = joint.skipped.recently > WATCHED // 2
                if in_trouble or progress >= 1:
                    break
            if in_trouble or progress >= 1:
                break
            # A checkpoint knows of whole draws of batches alone.
            if signal:
                keep(whole=True)
                raise Interrupted(int(signal), progress)
            if time.monotonic() - saved > max(config.checkpoint_every, cost / BY_CLOCK):
                keep(whole=False)
        if in_trouble:
            if retries == RETRIES:
                raise diverged(config)
            retries += 1
            state.load_state_dict(joint.fabric.broadcast(checkpoints.latest()["run"]), clock=False)
            joint.optimizer.slow_down(0.5**retries)
            continue
        position.totals = summed(position.totals, joint.fabric)
        side = joint.batching.side(progress)
        validation = None if joint.settled and splits.held_out else validate(joint, splits, config, side)
        position.history.append(record.row(joint, position, validation, budget.used()))
        position.totals = None
        record.metrics(folder, position.history)
        # What is left to do in the end may take less time than writing what to go on from.
        either_end = len(position.history) == 1 or progress >= 1
        if (either_end and cost < LARGE) or (progress < 1 and time.monotonic() - saved > cost / WRITING):
            keep(whole=True)
        (progress,) = agreed(budget.progress())
