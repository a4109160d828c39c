"""A block that is chosen by a sparse code: put it anywhere in a network, and the search decides what it computes."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dha.architecture.cells import CellSearchNetwork
from dha.architecture.operations import Scale, absorb, weighted
from dha.architecture.sparse import SparseCodes


class Sum(nn.Module):
    """Adds up what its candidates compute: what a ``SparseChoice`` becomes when the search is over."""

    def __init__(self, candidates: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict(candidates)

    def chosen(self) -> list[str]:
        """Return the names of its candidates."""
        return list(self.candidates)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of all candidates of ``x``."""
        terms: list[Tensor] = [candidate(x) for candidate in self.candidates.values()]
        return sum(terms[1:], start=terms[0])


class SparseChoice(nn.Module):
    """Adds up ``choose`` of its candidates; which ones and how much of each is decided by a sparse code.

    All candidates hold weights, only the chosen ones are computed. Their gradients reach the code through the mixing
    weights. Source: ISTA-NAS (Yang et al., NeurIPS 2020), as in ``SparseCodes``.

    Args:
        candidates: name -> module; all map one input to outputs of one shape.
        choose: how many are used at a time.
        start: names of the candidates to start from; at random when not given.
        size: m, the length of the compressed code; half the number of candidates, at least 2, when not given.
        penalty, gradient, seed: as in ``SparseCodes``.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        *,
        choose: int = 1,
        start: Sequence[str] | None = None,
        size: int | None = None,
        penalty: float = 0.1,
        gradient: Literal["one_step", "implicit"] = "one_step",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict({name: _scalable(module) for name, module in candidates.items()})
        self.names = list(candidates)
        # Every candidate is an edge of its own, so that no candidate is chosen twice.
        self.codes = SparseCodes(
            [len(self.names)],
            1,
            choose=choose,
            size=size or max(2, (len(self.names) + 1) // 2),
            penalty=penalty,
            gradient=gradient,
            start=None if start is None else [[self.names.index(name) for name in start]],
            seed=seed,
        )

    def chosen(self) -> list[str]:
        """Return the names of the candidates in use."""
        return [self.names[edge] for edge, _ in self.codes.choices()[0]]

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum of the chosen candidates of ``x``, differentiable in their weights and the code."""
        weights = self.codes.weights()[0].unbind()
        candidates = [self.candidates[name] for name in self.chosen()]
        terms: list[Tensor] = [
            weighted(candidate, x, weight)  # pyright: ignore[reportArgumentType]
            for candidate, weight in zip(candidates, weights, strict=True)
        ]
        return sum(terms[1:], start=terms[0])

    @torch.no_grad()
    def derive(self) -> Sum:
        """Return a plain copy with the chosen candidates only, mixing weights absorbed: the same function."""
        derived = Sum({name: copy.deepcopy(self.candidates[name]) for name in self.chosen()})
        for candidate, weight in zip(derived.candidates.values(), self.codes.weights()[0], strict=True):
            assert isinstance(candidate, nn.Sequential)
            absorb(candidate, weight)
        return derived.train(self.training)


def derive(network: nn.Module) -> nn.Module:
    """Return the network that a search network computes now, as a plain copy with no architecture parameters.

    Every ``SparseChoice`` becomes the plain sum of what it has chosen; a ``CellSearchNetwork`` derives itself.
    """
    if isinstance(network, CellSearchNetwork):
        return network.derive()
    return replace_choices(copy.deepcopy(network), SparseChoice.derive)


def replace_choices(network: nn.Module, plain: Callable[[SparseChoice], nn.Module]) -> nn.Module:
    """Return ``network`` with ``plain`` of every ``SparseChoice`` in its place, also of those inside of others.

    It is changed in place; a block that stands in two places stays one block.
    """
    done: dict[nn.Module, nn.Module] = {}

    def replaced(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = new = plain(module) if isinstance(module, SparseChoice) else module
            # Not `named_children`, which leaves out the second name of a module.
            for name, child in new._modules.items():
                new._modules[name] = None if child is None else replaced(child)
        return done[module]

    return replaced(network)


def _scalable(candidate: nn.Module) -> nn.Sequential:
    # A mixing weight is absorbed by the last layer, where that is linear in its parameters.
    last = candidate[-1] if isinstance(candidate, nn.Sequential) and len(candidate) else None
    if isinstance(candidate, nn.Sequential) and (
        isinstance(last, Scale) or (isinstance(last, BatchNorm) and last.affine)
    ):
        return candidate
    return nn.Sequential(candidate, Scale())
