"""One run: from a source of labelled images to a trained, evaluated and saved model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dha import record, run_folder
from dha.architecture import genotype_of, prepare_call
from dha.checking import check
from dha.class_weights import read_class_weight, weighted, with_sample_weights
from dha.config import Config, parse_budget
from dha.data import Columns, DataReport, Preprocessing, load_source, measure, split
from dha.delivery import deliver
from dha.engine import Budget, Checkpoints, keep_memory, make_fabric, set_precision, suited_precision
from dha.errors import DhaError
from dha.evaluation import best_by_validation, evaluate, mirroring
from dha.loop import TrainingLoop, Watch
from dha.model import TrainedModel
from dha.paths import check_files, check_source
from dha.prepare import prepare, resolve
from dha.signals import Stop
from dha.state import Position, RunState, fingerprint
from dha.terminal import first_process


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
        place: folder of the model, where there was room for it; None if nothing was to be written.
        report: what was read.
    """

    model: TrainedModel
    history: list[dict[str, Any]]
    test_accuracy: float | None
    seconds: float
    skipped: int
    config: Config
    place: Path | None
    report: DataReport


def run(
    source: Any,
    labels: Any = None,
    *,
    config: Config,
    sample_weight: Any = None,
    out: str | Path | None = None,
    hold_out_test: bool = True,
    started: float | None = None,
    watch: Watch | None = None,
    resume: bool = False,
    own_process: bool = False,
    tell: Callable[[Sequence[str]], None] | None = None,
) -> Run:
    """Train an image classifier, learning the parts that ``config.learn`` names jointly with its weights.

    Args:
        source: labelled images, as ``dha.data.load_source`` takes them.
        labels: one per image, where the source holds none itself.
        config: the settings; not changed.
        sample_weight: one number per image of a source that holds nothing but images to train on.
        out: folder of the run, made here; nothing is written when not given.
        hold_out_test: whether test images are held out of a source that has none.
        started: ``time.monotonic()`` of when the budget began to run; now when not given.
        watch: called after every step with the share of the run that is over and the latest row of metrics.
        resume: go on with the run in ``out`` from its last checkpoint and by its settings; begin where there is none.
        own_process: whether this process is there for the run alone. Then signals that ask it to end do so after the
            steps under way, with everything saved, and freed memory stays with it.
        tell: called by the first process with lines that say what was read, before training begins.

    Raises:
        DhaError: for a bad setting, source or output folder, before any training; if the training diverges for good, or
            what it made cannot be written.
        Interrupted: if a signal has ended the training.
    """
    started = time.monotonic() if started is None else started
    check(config)
    check_source(source)
    check_files(config)
    config = read_class_weight(config)
    with run_folder.opened(out, source, config, resume) as folder:
        given = source, labels, sample_weight
        return _run(*given, config, folder, hold_out_test, started, watch, resume, own_process, tell)


def _run(
    source: Any,
    labels: Any,
    sample_weight: Any,
    config: Config,
    folder: Path | None,
    hold_out_test: bool,
    started: float,
    watch: Watch | None,
    resume: bool,
    own_process: bool,
    tell: Callable[[Sequence[str]], None] | None,
) -> Run:
    # Code of a user may change the working directory.
    named, folder = folder, None if folder is None else folder.absolute()
    checkpoints = Checkpoints(folder)
    saved = checkpoints.load(set_aside=first_process()) if resume else None
    if resume and folder is not None:
        config = run_folder.settings_of(folder, saved, config)
    fabric = make_fabric(
        config.device, config.precision, config.image_size, config.devices, config.num_nodes, config.strategy
    )
    if isinstance(config.network, str):
        prepare_call(config.network)
    _check_time_left(config, started if saved is None else time.monotonic(), "the first image")
    loaded = load_source(
        source,
        labels,
        image_size=config.image_size,
        resize=config.resize,
        background=config.background,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        folder=folder,
        columns=Columns(config.path_column, config.label_column, config.split_column),
    )
    loaded = with_sample_weights(loaded, sample_weight)
    splits = split(
        loaded,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction if hold_out_test else 0.0,
        seed=config.seed,
        weighted=config.class_weight is not None or sample_weight is not None,
    )
    if first_process():
        if tell is not None:
            tell(splits.report.lines(named))
        record.data(folder, splits.report)
    images = fingerprint(splits)
    splits = weighted(splits, config.class_weight)
    if saved is not None and saved.get("images") != images:
        raise DhaError(f"the run in {str(folder)!r} was begun with other images than are in {loaded.name!r} now")
    image_size = loaded.image_format.image_size
    if config.precision == "auto":
        set_precision(fabric, suited_precision(fabric.device.type, image_size))
    if own_process and fabric.device.type == "cpu":
        keep_memory()
    if not fabric.is_global_zero:
        folder, checkpoints = None, Checkpoints(None)
    preprocessing = Preprocessing.of(loaded.image_format, *measure(splits.train))
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
    record.settings(folder, config, source)
    # What is random in a custom network, such as dropout, follows the seed too.
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if saved is not None:
            state.load_state_dict(saved.get("run", {}))
        with Stop(own_process, told=fabric.is_global_zero) as stop:
            TrainingLoop(state, splits, folder, checkpoints, watch, stop).run()
        history = position.history
        if not history:
            _check_time_left(config, started, "the first step")
        network = best_by_validation(joint, batches, splits, config)
        if position.mirrored is None:
            position.mirrored = mirroring(network, joint, splits, config, image_size)
        genotype = genotype_of(network, config.network)
        model = TrainedModel(network, splits.classes, preprocessing, genotype, mirrored=position.mirrored)
        accuracy = None
        if splits.test is not None:
            settings = preprocessing, config.images_per_step(), fabric.device
            _, accuracy = evaluate(network, splits.test, *settings, mirrored=model.mirrored)
        model.learned = record.learned(joint, history, accuracy, splits.report, final=True)
        with Stop(own_process):  # What is nearly over is not cut off.
            place = deliver(folder, model, checkpoints)
        if named is not None and folder is not None and place == folder / "model":
            place = named / "model"
    return Run(model, history, accuracy, budget.used(), loaded.skipped, config, place, splits.report)


def _check_time_left(config: Config, started: float, goal: str) -> None:
    spent = time.monotonic() - started
    if config.budget is not None and (goal == "the first step" or spent > parse_budget(config.budget)):
        raise DhaError(
            f"budget={config.budget!r} was over before training began, at {goal} after {spent:.1f} s: give more time, "
            f"at least {2 * spent + 2:.0f} s"
        )
