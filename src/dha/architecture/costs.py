"""What networks cost: parameters and multiply-adds, of a plain network and of every candidate of a search."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dha.architecture.cells import Cell, CellSearchNetwork
from dha.architecture.choice import SparseChoice
from dha.architecture.sparse import SparseCodes

Shape = tuple[int, int, int]  # Channels, height and width of an image.


@dataclass(frozen=True)
class CandidateCosts:
    """What choosing each candidate of some ``SparseCodes`` adds to the derived network, on the host.

    Attributes:
        parameters: int64, (nodes, candidates); 0 for padding and for nodes that the network has no cells for.
        flops: multiply-adds per image, likewise.
        weightless: bool, likewise: candidates with neither convolution nor linear layer, such as skips and pools.
    """

    parameters: Tensor
    flops: Tensor
    weightless: Tensor


def count(network: nn.Module, shape: Shape) -> tuple[int, int]:
    """Return the parameters of a plain network and its multiply-adds per image.

    Only convolutions and matrix products count, with all taps of their kernels, as is the custom.

    Args:
        network: on any device; left as it was.
        shape: of one image.
    """
    return sum(p.numel() for p in network.parameters()), _multiply_adds(network, shape)[network]


def candidate_costs(network: nn.Module, shape: Shape) -> tuple[list[CandidateCosts], tuple[int, int]]:
    """Return what candidates cost, for each of ``sparse_codes(network)``, and parameters and multiply-adds of the rest.

    These add up to the cost of the derived network. It costs less only where a candidate that is not chosen holds
    another choice, or where two that are chosen share weights.

    Args:
        network: on any device; left as it was.
        shape: of one image.
    """
    places = list(places_of(network))
    candidates = {candidate for *_, candidate, _ in places}
    flops = _multiply_adds(network, shape, candidates)
    zeros = {m: torch.zeros(m.real.shape, dtype=torch.int64) for m in network.modules() if isinstance(m, SparseCodes)}
    costs = {codes: CandidateCosts(zero, zero.clone(), zero.bool()) for codes, zero in zeros.items()}
    apart = candidates | costs.keys()
    rest = _parameters(network, apart)
    for codes, node, index, candidate, alike in places:
        cost, layers = costs[codes], candidate.modules()
        cost.parameters[node, index] += sum(p.numel() for p in _parameters(candidate, apart) - rest)
        cost.flops[node, index] += flops[alike]
        cost.weightless[node, index] = not any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers)
    return list(costs.values()), (sum(p.numel() for p in rest), flops[network])


def places_of(network: nn.Module) -> Iterator[tuple[SparseCodes, int, int, nn.Module, nn.Module]]:
    """Yield codes, node, position and module of every candidate, and a module that takes as many multiply-adds."""
    for module in network.modules():
        if isinstance(module, SparseChoice):
            for index, name in enumerate(module.names):
                yield module.codes, 0, index, module.candidates[name], module.candidates[name]
        elif isinstance(module, CellSearchNetwork):
            for cell, reduces in zip(module.cells, module.reductions, strict=True):
                assert isinstance(cell, Cell)
                last = list(cell.nodes[-1].children())  # It has the edges of all the others.
                for position, node in enumerate(cell.nodes, start=len(cell.nodes) if reduces else 0):
                    for index, candidate in enumerate(node.children()):
                        yield module.codes, position, index, candidate, last[index]


def _parameters(module: nn.Module, apart: Collection[nn.Module]) -> set[nn.Parameter]:
    """Return the parameters in a module, but for those in its parts that are counted apart."""
    parts = (_parameters(child, apart) for child in module.children() if child not in apart)
    return set(module.parameters(recurse=False)).union(*parts)


def _multiply_adds(network: nn.Module, shape: Shape, candidates: Collection[nn.Module] = ()) -> Counter[nn.Module]:
    """Return the multiply-adds of each candidate and, under ``network``, of the rest."""
    try:
        # Nothing is computed, and no device's way to compute a layer has a part in what is counted.
        return _metered(network, shape, candidates, meta=True)
    except Exception:
        # A network that was brought may need values, or hold tensors that it does not register.
        return _metered(network, shape, candidates, meta=False)


@torch.no_grad()
def _metered(network: nn.Module, shape: Shape, candidates: Collection[nn.Module], meta: bool) -> Counter[nn.Module]:
    from torch.utils.flop_counter import FlopCounterMode  # which takes long to load

    counter, flops, began = FlopCounterMode(display=False), Counter[nn.Module](), []

    def unclaimed() -> int:
        return counter.get_total_flops() // 2 - flops.total()

    def leave(module: nn.Module, args: object, output: object) -> None:
        # What candidates inside of this one took is theirs.
        flops[module] += unclaimed() - began.pop()

    hooks = [m.register_forward_hook(compute_others) for m in network.modules() if candidates]
    for module in (network, *candidates):
        hooks.append(module.register_forward_pre_hook(lambda *_: began.append(unclaimed())))
        hooks.append(module.register_forward_hook(leave))
    training = {module: module.training for module in network.modules()}
    # By module, because `functional_call` does not bring back what it knows by two names of one module.
    state = {
        f"{place}.{name}".lstrip("."): tensor.to("meta")
        for place, module in network.named_modules()
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    }
    image = next(network.parameters()).new_zeros(1, *shape, device="meta" if meta else None)
    try:
        with counter:
            functional_call(network.eval(), state, image, tie_weights=False) if meta else network.eval()(image)
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return flops


def compute_others(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Compute the candidates that a module of a search network has not chosen too."""
    if isinstance(module, SparseChoice):
        for name in set(module.names) - set(module.chosen()):
            module.candidates[name](args[0])
    elif isinstance(module, Cell):
        # The output concatenates those of the nodes; older and newer input are brought to one shape.
        inner = output[:, : output.shape[1] // len(module.nodes)]
        outer = inner.new_zeros(*inner.shape[:2], *args[1].shape[2:])
        for key, candidate in module.nodes[-1].named_children():
            source, name = key.split("-")
            if (int(source), name) not in args[2][-1]:
                candidate(outer if int(source) < 2 else inner)
