"""One run: from a source of labelled images to a trained, evaluated and saved model."""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from dha import record
from dha.architecture import (
    Limits,
    Size,
    genotype_of,
    given_limits,
    given_network,
    head_weights,
    layout,
    search_network,
)
from dha.augmentation import OPERATIONS, PairPolicy
from dha.automatic import choose_size
from dha.config import PARTS, Config, check, learned_parts, parse_budget
from dha.data import Batches, LabelledImages, Preprocessing, Splits, load_source, measure, sequential, split
from dha.engine import Budget, estimate_statistics, make_fabric
from dha.errors import DhaError
from dha.joint import JointTraining
from dha.model import TrainedModel

RECOVERIES = 20
SAVE_EVERY = 30.0
STATISTICS_IMAGES = 512
"""Training images that BatchNorm statistics are estimated anew from."""

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
    batches, joint = prepare(splits, preprocessing, config, fabric)
    record.begin(folder, config, loaded)
    budget = Budget(
        seconds=None if config.budget is None else parse_budget(config.budget),
        steps=(config.epochs or 0) * len(batches),
        started=started,
    )
    # What is random in a network that was brought, as dropout, follows the seed too.
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        history = train(joint, batches, splits, budget, config, folder, started, watch)

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


def resolve(config: Config, splits: Splits, preprocessing: Preprocessing, fabric: Fabric) -> Config:
    """Return a copy of the settings in which everything that was left open is decided."""
    resolved = Config(**{f.name: getattr(config, f.name) for f in fields(Config)})
    for part in PARTS:
        setattr(resolved, part, copy.copy(getattr(config, part)))
    resolved.image_size = preprocessing.image_size
    resolved.learn = ",".join(learned_parts(config.learn)) or "none"
    resolved.device = fabric.device.type  # pyright: ignore[reportAttributeAccessIssue]
    resolved.precision = "bf16" if fabric._precision.precision == "bf16-mixed" else "32"
    if config.batch_size is None:
        resolved.batch_size = 128 if len(splits.train) >= 2000 else 64
    if config.budget is None and config.epochs is None:
        resolved.budget = min(1200.0, max(30.0, 0.04 * len(splits.train)))
    if config.network is None:
        space, size = choose_size(resolved, len(splits.train), len(splits.classes), preprocessing, fabric)
        resolved.space = space  # pyright: ignore[reportAttributeAccessIssue]
        resolved.architecture.width, resolved.architecture.depth, resolved.architecture.resolution = size
    return resolved


def prepare(
    splits: Splits, preprocessing: Preprocessing, config: Config, fabric: Fabric
) -> tuple[Batches, JointTraining]:
    """Build the training batches and all that is learned from them; all randomness comes from ``config.seed``."""
    order, held_out, draws = (torch.Generator().manual_seed(3 * config.seed + i) for i in range(3))
    batches = Batches(splits.train, config.images_per_step(), order, fabric.device, drop_last=True)
    validation = Batches(splits.validation, config.images_per_step(), held_out, fabric.device, drop_last=True).forever()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build(config, preprocessing, len(splits.classes), fabric.device)
    shape = preprocessing.channels, preprocessing.image_size, preprocessing.image_size
    if config.network is None:
        limits = Limits(network, shape, max_parameters=config.max_parameters, max_flops=config.max_flops)
        head = frozenset()
    else:
        limits = given_limits(network, config.network, shape, config.max_parameters, config.max_flops)
        head = head_weights(network, len(splits.classes))
    learn = learned_parts(config.learn)
    policy = None
    if "augmentation" in learn:
        # An image of one channel has no colour: the operation would be a second identity.
        operations = [name for name in OPERATIONS if preprocessing.channels > 1 or name != "color"]
        policy = PairPolicy(operations, config.augmentation.structure, config.augmentation.identity)
    joint = JointTraining(network, policy, validation, preprocessing, config, fabric, draws, limits, head)
    if joint.searching and "architecture" not in learn:
        joint.finish_search()
    return batches, joint


def build(config: Config, preprocessing: Preprocessing, classes: int, device: torch.device) -> torch.nn.Module:
    """Return the network as it is when a run begins: the one that was brought, or one as the settings say."""
    if config.network is not None:
        shape = preprocessing.channels, classes, preprocessing.image_size
        return given_network(config.network, *shape, device=device)
    settings = config.architecture
    assert settings.width is not None
    assert settings.depth is not None
    assert settings.resolution is not None
    return search_network(
        config.space,
        preprocessing.channels,
        classes,
        preprocessing.image_size,
        Size(settings.width, settings.depth, settings.resolution),
        nodes=settings.nodes,
        choose=settings.choose,
        start=settings.start,
        code_size=settings.code_size,
        penalty=settings.penalty,
        gradient=settings.gradient,
        seed=config.seed,
    )


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
    settings = config.architecture
    nodes = sum(len(codes.code) for codes in joint.codes)
    recovered, recovered_step, saved = 0.0, 0, time.monotonic()
    few = splits.validation.select(torch.arange(min(len(splits.validation), 4 * config.images_per_step())))
    budget.closing = closing_seconds(joint, few, splits, config)[1]
    while budget.progress() < 1:
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
        validation, budget.closing = closing_seconds(joint, splits.validation, splits, config)
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


def closing_seconds(
    joint: JointTraining, data: LabelledImages, splits: Splits, config: Config
) -> tuple[tuple[float, float], float]:
    """Evaluate on ``data``; return the result, and how long validation, test and saving will take at that speed."""
    began = time.monotonic()
    result = evaluate(joint.plain, data, joint.preprocessing, config.images_per_step(), joint.fabric.device)
    images = 3 * len(splits.validation) + 2 * min(STATISTICS_IMAGES, len(splits.train)) + len(splits.test or ())
    return result, 1.0 + (time.monotonic() - began) * images / len(data)


def best_by_validation(joint: JointTraining, batches: Batches, splits: Splits, config: Config) -> torch.nn.Module:
    """Return the network to deliver: of the last weights, the same with fresh BatchNorm statistics, and the averaged
    weights, the one with the lowest validation loss.
    """
    networks = [joint.derived()]
    fresh = [copy.deepcopy(networks[0])]
    if joint.average is not None:
        fresh.append(joint.average.averaged())
    for network in fresh:
        refresh_statistics(network, joint, batches, config)
    networks += fresh
    device = joint.fabric.device
    losses = [
        evaluate(n, splits.validation, joint.preprocessing, config.images_per_step(), device)[0] for n in networks
    ]
    return networks[losses.index(min(losses))]


def refresh_statistics(network: torch.nn.Module, joint: JointTraining, batches: Batches, config: Config) -> None:
    """Estimate BatchNorm statistics anew from untouched training images."""
    count = max(1, STATISTICS_IMAGES // config.images_per_step())
    estimate_statistics(network, (joint.inputs(images) for images, _ in itertools.islice(batches, count)))


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
    for images, labels in sequential(data, batch_size, device):
        pixels = preprocessing.normalise(images.float() / 255).contiguous(memory_format=layout(network))
        logits = network(pixels)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss, correct = (totals / len(data)).tolist()
    return loss, correct
