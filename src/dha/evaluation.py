"""How well networks do on images that they are not training on, and which one a run delivers."""

import copy
import itertools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import layout
from dha.config import Config
from dha.data import Batches, LabelledImages, Preprocessing, Splits, sequential
from dha.engine import estimate_statistics
from dha.errors import DhaError
from dha.hyperparameters import weighed
from dha.joint import JointTraining
from dha.model import better_mirrored, logits_of
from dha.passes import per_image
from dha.resizing import pixels

STATISTICS_IMAGES = 512
"""Training images that BatchNorm statistics are estimated anew from."""
RESERVE = 1.25
"""How many times as long as a few batches tell the end of a run may take: other programs come and go."""


def closing_seconds(joint: JointTraining, splits: Splits, config: Config) -> float:
    """Return how long validation, test and saving will take at the end of the run, from a few batches."""
    size = config.images_per_step()
    few = splits.validation.select(torch.arange(min(len(splits.validation), 2 * size)))
    seconds = []
    for _ in range(2):  # The first is slower than those to come.
        began = time.monotonic()
        evaluate(joint.plain, few, joint.preprocessing, size, joint.fabric.device)
        seconds.append(time.monotonic() - began)
    tests = 1 if config.mirrored is False else 2
    images = 3 * len(splits.validation) + 2 * min(STATISTICS_IMAGES, len(splits.train)) + tests * len(splits.test or ())
    return 1.0 + RESERVE * min(seconds) * images / len(few)


def validate(joint: JointTraining, splits: Splits, config: Config, side: int) -> tuple[float, float]:
    """Return loss and accuracy on the validation images, at a side in pixels and in the precision of the run."""
    size, device = config.images_per_step(), joint.fabric.device
    with joint.fabric.autocast():
        return evaluate(joint.plain, splits.validation, joint.preprocessing, size, device, side)


def interim(joint: JointTraining, splits: Splits, config: Config, side: int) -> nn.Module:
    """Return the network as it is now, a copy with BatchNorm statistics of full size if images have another side."""
    network = joint.derived()
    if side != joint.preprocessing.image_size:
        network = copy.deepcopy(network)
        some = splits.train.select(torch.arange(min(len(splits.train), STATISTICS_IMAGES)))
        parts = sequential(some, config.images_per_step(), joint.fabric.device)
        estimate_statistics(network, (joint.inputs(images) for images, *_ in parts if len(images) > 1))
    return network


def best_by_validation(joint: JointTraining, batches: Batches, splits: Splits, config: Config) -> nn.Module:
    """Return the network to deliver: of the last weights, the same with fresh BatchNorm statistics, and the averaged
    weights, the one with the lowest validation loss.

    Where the run has ended by training on validation images too, that loss is too low for all of them alike.

    Raises:
        DhaError: if none of these losses is finite.
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
    # Those of the first process, so that all take the same: running statistics may differ between them.
    losses = joint.fabric.broadcast([loss if math.isfinite(loss) else math.inf for loss in losses])
    if min(losses) == math.inf:
        raise diverged(config, "its validation loss is not a finite number")
    return networks[losses.index(min(losses))]


def diverged(config: Config, cause: str) -> DhaError:
    """Return the error of a training that cannot go on.

    Args:
        config: of the run.
        cause: what is not finite.
    """
    remedy = f"start from a lower hyperparameters.learning_rate than {config.hyperparameters.starts()[0]:g}"
    if config.network is not None:
        remedy += ", from other weights, or look for the operation in the network that is not finite"
    return DhaError(f"the training has diverged, {cause}: {remedy}")


def refresh_statistics(network: nn.Module, joint: JointTraining, batches: Batches, config: Config) -> None:
    """Estimate BatchNorm statistics anew from untouched training images."""
    count = max(1, STATISTICS_IMAGES // config.images_per_step())
    parts = (part for images, *_ in batches.forever() for part in images.split(joint.batching.size))
    estimate_statistics(network, (joint.inputs(part) for part in itertools.islice(parts, count)))


@torch.no_grad()
def mirroring(network: nn.Module, joint: JointTraining, splits: Splits, config: Config, side: int) -> bool:
    """Return whether the model is to predict from mirror images, too: as the settings say, or if validation images are
    predicted better so by a network, at a side in pixels and in the precision of the run.
    """
    if config.mirrored is not None:
        return config.mirrored
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
    arguments = splits.validation, joint.preprocessing, config.images_per_step(), joint.fabric.device, side
    with joint.fabric.autocast():
        for inputs, labels, weights in _inputs(network, *arguments):
            losses = (
                weighed(per_image(logits_of(network, inputs, mirrored), labels), weights) for mirrored in (False, True)
            )
            for part, found in zip(parts, (*losses, labels), strict=True):
                part.append(found)
    plain, mirrored, labels = map(torch.cat, parts)
    return joint.fabric.broadcast(better_mirrored(plain, mirrored, labels, len(splits.classes)))


@torch.no_grad()
def evaluate(
    network: nn.Module,
    data: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    side: int | None = None,
    mirrored: bool = False,
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy of a network on labelled images, in evaluation mode, at their own or
    another side in pixels, with or without their mirror images. The mean follows the weights of the images, if they
    have any; the accuracy does not.
    """
    totals, weight = torch.zeros(2, device=device), torch.zeros((), device=device)
    for inputs, labels, weights in _inputs(network, data, preprocessing, batch_size, device, side):
        logits = logits_of(network, inputs, mirrored).float()
        if weights is None:
            loss = F.cross_entropy(logits, labels, reduction="sum")
        else:
            loss = weighed(per_image(logits, labels), weights).sum()
            weight += weights.sum()
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss, correct = (totals / len(data)).tolist()
    return loss if data.weights is None else loss * len(data) / weight.item(), correct


def _inputs(
    network: nn.Module,
    data: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    side: int | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    network.eval()
    for images, labels, *weights in sequential(data, batch_size, device):
        inputs = preprocessing.normalise(pixels(images, side or images.shape[-1]))
        yield inputs.contiguous(memory_format=layout(network)), labels, weights[0] if weights else None
