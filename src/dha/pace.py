"""How fast this machine trains a network: the time of a step, and the share of each candidate of a search in it."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import Size, candidate_seconds, layout, sparse_codes
from dha.config import Config
from dha.data import Preprocessing
from dha.engine import Graphs
from dha.resizing import WORTH, mean_seconds, side_in_run
from dha.sizes import start_of

TIMED = 32
"""Images that candidates are timed on."""


class Pace(NamedTuple):
    """How fast a network trains.

    Attributes:
        seconds: that a plain training step takes per image, in the mean over a run.
        resizing: whether the run begins on smaller images: as the settings say, or if that is worth it.
    """

    seconds: float
    resizing: bool


def seconds_of_size(
    size: Size,
    config: Config,
    classes: int,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Sequence[str],
    start: str = "light",
    most: float = math.inf,
) -> dict[str, Pace]:
    """Return ``seconds_per_image`` of the network that a run of a size begins with."""
    device = fabric.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        network = start_of(config, size, classes, preprocessing, start)
    return seconds_per_image(network, config, preprocessing, fabric, precisions, most)


def seconds_per_image(
    network: nn.Module,
    config: Config,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Sequence[str],
    most: float = math.inf,
    steps: int = 2,
) -> dict[str, Pace]:
    """Return how long a plain training step takes in each precision: the fastest of a few steps at full and at smallest
    size.

    Args:
        network: moved to the device, and otherwise left as it is.
        config: the batch size, and whether images begin small.
        preprocessing: channels and size of the images.
        fabric: the device.
        precisions: "32", "bf16" or both.
        most: seconds after which no further round of steps is begun.
        steps: how many are timed in each precision, taking turns, after one that counts only if there is no other.
    """
    full, size, device = preprocessing.image_size, config.images_per_step(), fabric.device
    network.to(device, memory_format=layout(network)).train()  # pyright: ignore[reportCallIssue]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, fused=True)
    first = side_in_run(config, full, 0.0)
    images = {side: torch.randn(size, preprocessing.channels, side, side, device=device) for side in (full, first)}
    images = {side: noise.contiguous(memory_format=layout(network)) for side, noise in images.items()}
    labels = torch.zeros(size, dtype=torch.long, device=device)
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    # As in a run, where all steps but the first two of a kind are replayed.
    graphs = Graphs(device.type == "cuda" and fabric.world_size == 1 and config.network is None)

    def gradients(images: Tensor, labels: Tensor, half: bool) -> Sequence[Tensor | None]:
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=not graphs.possible):
            loss = F.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, trained, allow_unused=True)

    ways = {precision: partial(gradients, half=precision == "bf16") for precision in precisions}
    times: dict[tuple[str, int], list[float]] = {(precision, side): [] for precision in precisions for side in images}
    started = time.monotonic()
    for _ in range(steps + 1):
        for (precision, side), taken in times.items():
            began = time.monotonic()
            for weight, gradient in zip(trained, graphs(ways[precision], images[side], labels), strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            labels[:1].cpu()  # waits for the device
            taken.append(time.monotonic() - began)
        if time.monotonic() - started > most:
            break
    for name, buffer in network.named_buffers():
        buffer.copy_(statistics[name])
    least = {what: min(taken[1:] or taken) / size for what, taken in times.items()}

    def pace(precision: str) -> Pace:
        at_full, resizing = least[precision, full], config.progressive_resizing
        resized = mean_seconds(full, at_full, least[precision, first])
        if resizing is None:
            resizing = at_full >= WORTH * resized
        return Pace(resized if resizing else at_full, resizing)

    return {precision: pace(precision) for precision in precisions}


def seconds_by_choice(
    network: nn.Module, config: Config, preprocessing: Preprocessing, fabric: Fabric
) -> tuple[list[Tensor], float]:
    """Return how long a plain training step takes with each candidate of a search network, and without any, per image.

    A candidate is taken to have the same share in a step as in its forward pass.

    Args:
        network: moved to the device, and otherwise left as it is.
        config: batch size and precision.
        preprocessing: channels and size of the images.
        fabric: the device.

    Returns:
        What ``candidate_seconds`` returns, scaled.
    """
    side, count = preprocessing.image_size, min(TIMED, config.images_per_step())
    step = seconds_per_image(network, config, preprocessing, fabric, [config.precision])[config.precision].seconds
    inputs = torch.randn(count, preprocessing.channels, side, side, device=fabric.device)
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        forward, rest = candidate_seconds(network, inputs.contiguous(memory_format=layout(network)))
    chosen = sum(float(s.gather(1, c.chosen.cpu()).sum()) for s, c in zip(forward, sparse_codes(network), strict=True))
    scale = step / (rest + chosen)
    return [scale * seconds for seconds in forward], scale * rest
