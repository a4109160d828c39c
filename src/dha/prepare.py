"""What a run begins with: settings in which nothing is left open, batches, and the network in its joint training."""

import copy
import math
from dataclasses import fields
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.architecture import (
    Limits,
    Size,
    drop_paths,
    given_limits,
    given_network,
    head_weights,
    search_network,
    whiten,
)
from dha.augmentation import OPERATIONS, AugmentationPolicy
from dha.automatic import SEARCHED_PASSES, SHARE, affordable, choose_size, fastest, open_precisions
from dha.config import PARTS, Config, learned_parts, optimizer_of, parse_budget
from dha.data import Batches, LabelledImages, Preprocessing, Splits, on_device, sequential
from dha.engine import set_precision
from dha.errors import DhaError
from dha.joint import JointTraining
from dha.pace import seconds_by_choice, seconds_per_image
from dha.rehearsal import rehearse
from dha.resizing import pixels, side_in_run

WHITENED, CENTRE = 512, 32
"""Training images, and side in pixels of the centre of each, that the first filters are whitened by."""

TOGETHER, VALUES = 4, 2**21
"""The most batches that are augmented at once, and numbers in them: eight would gain half a per cent
of a step, and hold more memory."""


def resolve(config: Config, splits: Splits, preprocessing: Preprocessing, fabric: Fabric, spent: float = 0.0) -> Config:
    """Return a copy of the settings in which everything that was left open is decided.

    Args:
        config: the settings.
        splits: the images.
        preprocessing: channels and size of the images.
        fabric: the device.
        spent: seconds of the budget that are over.
    """
    resolved = Config(**{f.name: getattr(config, f.name) for f in fields(Config)})
    for part in PARTS:
        setattr(resolved, part, copy.copy(getattr(config, part)))
    resolved.image_size = preprocessing.image_size
    resolved.learn = ",".join(learned_parts(config.learn)) or "none"
    resolved.device = fabric.device.type  # pyright: ignore[reportAttributeAccessIssue]
    if config.batch_size is None:
        resolved.batch_size = 128 if len(splits.train) >= 2000 else 64
    if config.budget is None and config.epochs is None:
        resolved.budget = min(1200.0, max(30.0, 0.04 * len(splits.train)))
    hyperparameters = resolved.hyperparameters
    hyperparameters.optimizer = optimizer_of(config)
    hyperparameters.learning_rate, hyperparameters.weight_decay = hyperparameters.starts()
    learned = [name for name in hyperparameters.learned() if name != "weight_decay" or hyperparameters.weight_decay]
    hyperparameters.learn = ",".join(learned) or "none"
    images, classes, precisions = len(splits.train), len(splits.classes), open_precisions(resolved, fabric)
    resizing = False
    if config.network is None:
        chosen = choose_size(resolved, images, classes, preprocessing, fabric, precisions, spent)
        precisions, resizing = chosen.precisions, chosen.resizing
        resolved.space = chosen.space  # pyright: ignore[reportAttributeAccessIssue]
        resolved.architecture.width, resolved.architecture.depth, resolved.architecture.resolution = chosen.size
        resolved.architecture.start = chosen.start  # pyright: ignore[reportAttributeAccessIssue]
    precision = precisions[0]
    smaller = side_in_run(resolved, preprocessing.image_size, 0.0) < preprocessing.image_size
    if resolved.budget is not None and (len(precisions) > 1 or (smaller and resizing is None)):
        most = SHARE * parse_budget(resolved.budget)
        network = build(resolved, preprocessing, classes, fabric.device)
        paces = seconds_per_image(network, resolved, preprocessing, fabric, precisions, most)
        precision = fastest(paces)
        resizing = paces[precision].resizing if resizing is None else resizing
    resolved.precision = precision  # pyright: ignore[reportAttributeAccessIssue]
    # Where nothing is timed, what is usual: a GPU is not busy enough with small images to be faster.
    resolved.progressive_resizing = fabric.device.type != "cuda" if resizing is None else resizing
    return resolved


def prepare(
    splits: Splits, preprocessing: Preprocessing, config: Config, fabric: Fabric, spent: float = 0.0
) -> tuple[Batches, Batches, Batches, JointTraining]:
    """Build the training batches, those for the end of the run, which have validation images that were held out among
    them, those of validation images, and all that is learned from them; all randomness comes from ``config.seed``.
    ``spent`` are the seconds of the budget that are over.
    """
    set_precision(fabric, config.precision)
    share = fabric.global_rank, fabric.world_size
    if config.images_per_step() % fabric.world_size:
        raise DhaError(
            f"batch_size={config.images_per_step()}: {fabric.world_size} processes share every batch equally, so it "
            f"has to be a multiple of {fabric.world_size}"
        )
    order, held_out, draws = (torch.Generator().manual_seed(3 * config.seed + i) for i in range(3))
    size, device = config.images_per_step(), fabric.device
    train, unseen = on_device([splits.train, splits.validation], device)
    several = together(config, splits.train)
    batches = Batches(train, size, order, device, True, share, several)
    everything = batches
    if splits.held_out and config.settle < 1:
        everything = Batches(train.join(unseen), size, order, device, True, share, several)
    validation = Batches(unseen, size, held_out, device, True, share)
    network, learn = build(config, preprocessing, len(splits.classes), fabric.device), learned_parts(config.learn)
    drop_path = config.hyperparameters.drop_path
    if drop_path and not drop_paths(network):
        raise DhaError(
            f"hyperparameters.drop_path={drop_path}: nothing can be dropped in this network: leave it out, choose "
            "space='residual' or 'mobile', or put a dha.architecture.DropPath into the network that is brought"
        )
    shape = preprocessing.channels, preprocessing.image_size, preprocessing.image_size
    if config.network is None:
        whiten(network, preprocessing.normalise(centres(splits.train)))
        most: dict[str, Any] = {}
        if config.budget is not None and "architecture" in learn:
            # Of the first process, so that all agree.
            most["seconds"] = fabric.broadcast(seconds_by_choice(network, config, preprocessing, fabric))
            most["max_seconds"] = affordable(config, len(splits.train), SEARCHED_PASSES, spent)
        limits = Limits(network, shape, max_parameters=config.max_parameters, max_flops=config.max_flops, **most)
        head = frozenset()
    else:
        limits = given_limits(network, config.network, shape, config.max_parameters, config.max_flops)
        head = head_weights(network, len(splits.classes))
    policy = starting_policy(config, preprocessing) if augments(config) else None
    joint = JointTraining(network, policy, validation.forever(), preprocessing, config, fabric, draws, limits, head)
    if joint.searching and "architecture" not in learn:
        joint.finish_search()
    if joint.passes.graphs.possible:
        images, labels, *_ = next(sequential(train, size, device))
        rehearse(joint.passes, pixels(images, joint.batching.side(0.0)), labels, joint.smoothing)
    return batches, everything, validation, joint


def augments(config: Config) -> bool:
    """Return whether there is a policy."""
    return "augmentation" in learned_parts(config.learn) or config.augmentation.rule == "fixed"


def together(config: Config, images: LabelledImages) -> int:
    """Return how many batches of these images are augmented at once: four times as many small images take about twice
    as long, and the policy moves only every ``config.every`` steps.
    """
    size = config.images_per_step()
    if not augments(config) or len(images) < size:
        return 1
    most = min(TOGETHER, VALUES // (size * math.prod(images.shape)))
    return max(count for count in range(1, max(1, most) + 1) if config.every % count == 0)


def centres(images: LabelledImages) -> Tensor:
    """Return the centres of some images, spread over all of them, float32 (N, C, S, S) in [0, 1]."""
    side = min(CENTRE, images.shape[-1])
    start = (images.shape[-1] - side) // 2
    # One by one, so that of large images nothing but their centres is held in memory.
    chosen = (images[index][0] for index in range(0, len(images), -(-len(images) // WHITENED)))
    return pixels(torch.stack([image[:, start : start + side, start : start + side] for image in chosen]), side)


def starting_policy(config: Config, preprocessing: Preprocessing) -> AugmentationPolicy:
    """Return the policy that a run begins with: that of a file, or one near identity."""
    settings = config.augmentation
    if settings.start is not None:
        return AugmentationPolicy.load(settings.start)
    # An image of one channel has no colour: the operation would be a second identity.
    operations = [name for name in OPERATIONS if preprocessing.channels > 1 or name != "color"]
    return AugmentationPolicy(operations, settings.structure, settings.identity)


def build(config: Config, preprocessing: Preprocessing, classes: int, device: torch.device) -> torch.nn.Module:
    """Return the network as it is when a run begins: the one that was brought, or one as the settings say; all chance
    in it is that of ``config.seed``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
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
            start="light" if settings.start == "reference" else settings.start,
            code_size=settings.code_size,
            penalty=settings.penalty,
            gradient=settings.gradient,
            squeeze_excite=settings.squeeze_excite,
            seed=config.seed,
        )
