"""How fast this machine trains a network: the time of a step, and the share of each candidate of a search in it."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import ResidualNetwork, Size, candidate_seconds, layout, referred, sparse_codes
from dha.config import Config
from dha.data import Preprocessing
from dha.engine import Graphs

TIMED = 32
"""Images that candidates are timed on."""


def seconds_of_size(
    size: Size, config: Config, classes: int, preprocessing: Preprocessing, fabric: Fabric, precisions: Iterable[str]
) -> dict[str, float]:
    """Return ``seconds_per_image`` of the residual network of a size that a search starts from."""
    channels, side, device = preprocessing.channels, preprocessing.image_size, fabric.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        network = ResidualNetwork(channels, classes, side, referred, **size._asdict())
    return seconds_per_image(network, config, preprocessing, fabric, precisions)


def seconds_per_image(
    network: nn.Module,
    config: Config,
    preprocessing: Preprocessing,
    fabric: Fabric,
    precisions: Iterable[str],
    most: float = math.inf,
    steps: int = 2,
) -> dict[str, float]:
    """Return how long a plain training step takes in each precision, per image: the fastest of a few.

    Args:
        network: moved to the device, and otherwise left as it is.
        config: the batch size.
        preprocessing: channels and size of the images.
        fabric: the device.
        precisions: "32", "bf16" or both.
        most: seconds after which no further round of steps is begun.
        steps: how many are timed in each precision, taking turns, after one that counts only if there is no other.
    """
    side, size, device = preprocessing.image_size, config.images_per_step(), fabric.device
    network.to(device, memory_format=layout(network)).train()  # pyright: ignore[reportCallIssue]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, fused=True)
    images = torch.randn(size, preprocessing.channels, side, side, device=device)
    images = images.contiguous(memory_format=layout(network))
    labels = torch.zeros(size, dtype=torch.long, device=device)
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    # As in a run, where all steps but the first two of a kind are replayed.
    graphs = Graphs(device.type == "cuda" and fabric.world_size == 1 and config.network is None)

    def gradients(images: Tensor, labels: Tensor, half: bool) -> Sequence[Tensor | None]:
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=not graphs.possible):
            loss = F.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, trained, allow_unused=True)

    ways = {precision: partial(gradients, half=precision == "bf16") for precision in precisions}
    times: dict[str, list[float]] = {precision: [] for precision in precisions}
    first = time.monotonic()
    for _ in range(steps + 1):
        for precision, taken in times.items():
            began = time.monotonic()
            for weight, gradient in zip(trained, graphs(ways[precision], images, labels), strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
            labels[:1].cpu()  # waits for the device
            taken.append(time.monotonic() - began)
        if time.monotonic() - first > most:
            break
    for name, buffer in network.named_buffers():
        buffer.copy_(statistics[name])
    return {precision: min(taken[1:] or taken) / size for precision, taken in times.items()}


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
    step = seconds_per_image(network, config, preprocessing, fabric, [config.precision])[config.precision]
    inputs = torch.randn(count, preprocessing.channels, side, side, device=fabric.device)
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        forward, rest = candidate_seconds(network, inputs.contiguous(memory_format=layout(network)))
    chosen = sum(float(s.gather(1, c.chosen.cpu()).sum()) for s, c in zip(forward, sparse_codes(network), strict=True))
    scale = step / (rest + chosen)
    return [scale * seconds for seconds in forward], scale * rest
