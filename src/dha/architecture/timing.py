"""What candidates cost in time, measured on the device where they are to be trained."""

import time
from collections import Counter

import torch
from torch import Tensor, nn

from dha.architecture.costs import compute_others, places_of
from dha.architecture.sparse import SparseCodes


@torch.no_grad()
def candidate_seconds(network: nn.Module, images: Tensor, rounds: int = 2) -> tuple[list[Tensor], float]:
    """Return how long candidates take in a forward pass, for each of ``sparse_codes(network)``, and how long the rest.

    These add up to the time of the derived network.

    Args:
        network: a search network, on the device of the images; left as it was.
        images: a batch of inputs of the network.
        rounds: passes that are timed, after one that is not; the fastest counts, for each candidate.

    Returns:
        Seconds, float64, (nodes, candidates), 0 for padding; and those of everything but candidates. On a CPU they are
        those of its cores, so that other programs on them do not count.
    """
    places = list(places_of(network))
    timed = {network, *(candidate for *_, candidate, _ in places)}
    training = {module: module.training for module in network.modules()}
    try:
        network.eval()
        passes = [_pass_seconds(network, images, timed) for _ in range(rounds + 1)][1:]
    finally:
        for module, mode in training.items():
            module.training = mode
    seconds = {
        m: torch.zeros(m.real.shape, dtype=torch.float64) for m in network.modules() if isinstance(m, SparseCodes)
    }
    for codes, node, index, candidate, _ in places:
        seconds[codes][node, index] += min(taken[candidate] for taken in passes)
    return list(seconds.values()), min(taken[network] for taken in passes)


def _pass_seconds(network: nn.Module, images: Tensor, timed: set[nn.Module]) -> Counter[nn.Module]:
    """Return the seconds of one forward pass in each of some modules, those in others of them inside not included."""
    seconds, began = Counter[nn.Module](), []

    def unclaimed() -> float:
        if images.device.type == "cpu":
            return time.process_time() - sum(seconds.values())
        # The copy waits for the device.
        images[:1, :1, :1, :1].cpu()
        return time.perf_counter() - sum(seconds.values())

    def leave(module: nn.Module, args: object, output: object) -> None:
        seconds[module] += unclaimed() - began.pop()

    hooks = [module.register_forward_hook(compute_others) for module in network.modules()]
    for module in timed:
        hooks.append(module.register_forward_pre_hook(lambda *_: began.append(unclaimed())))
        hooks.append(module.register_forward_hook(leave))
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seconds
