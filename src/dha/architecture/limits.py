"""Limits on what an architecture may cost, kept by every architecture that a search visits."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dha.architecture.costs import Shape, candidate_costs
from dha.architecture.sparse import SparseCodes, best_on_distinct_edges
from dha.errors import DhaError

ENDLESS = 2**62
"""A limit that nothing reaches."""
SMALLEST = "the smallest network of this space and size"
REMEDY = "raise the limit, or set a smaller --architecture.width or --architecture.depth"


class Limits:
    """The most that an architecture may cost, and the best choice of candidates within it.

    Beside what the user limits there is a guard against candidates without weights, skips and pools: differentiable
    searches can collapse to them (Zela et al., ICLR 2020).

    Args:
        network: a search network, which takes the best feasible choice if its present one is not feasible; or a plain
            network, which is only checked.
        shape: channels, height and width of an image.
        max_parameters: the most parameters that a derived network may have.
        max_flops: the most multiply-adds per image.
        seconds: how long each candidate takes, and the rest, as ``candidate_seconds`` returns it.
        max_seconds: the longest that an architecture may take; where other limits leave none so fast, as long as the
            fastest does.
        weightless: the largest share of choices without weights, unless candidates or fixed nodes leave no other.

    Raises:
        DhaError: if no choice keeps the limits.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Shape,
        *,
        max_parameters: int | None = None,
        max_flops: int | None = None,
        seconds: tuple[Sequence[Tensor], float] | None = None,
        max_seconds: float = math.inf,
        weightless: float = 0.5,
    ) -> None:
        codes = [module for module in network.modules() if isinstance(module, SparseCodes)]
        costs, rest = candidate_costs(network, shape)
        times, rest_time = ([c.flops * 0.0 for c in costs], 0.0) if seconds is None else seconds
        # The candidates of all nodes in one row. They use up parameters, multiply-adds, choices without weights, and
        # nanoseconds.
        uses = [_row(getattr(c, use) for c in costs) for use in ("parameters", "flops", "weightless")]
        self._uses = np.stack([*uses, (1e9 * _row(times)).astype(np.int64)])
        self._rest = np.array([*rest, 0, int(1e9 * rest_time)])
        sizes = [c.real.shape[1] for c in codes for _ in c.real]
        edges = [torch.arange(c.real.shape[1]) // c.operations for c in codes for _ in c.real]
        self._node, self._widest = np.repeat(np.arange(len(sizes)), sizes), max(sizes, default=1)
        self._edge = self._node * self._widest + _row(edges)
        self._everything = _row(c.real for c in codes)
        self._choose = np.array([c.choose for c in codes for _ in c.real], dtype=int)
        # Nodes of a kind of cell that the network does not have cost nothing, and do not count as choices.
        exists = np.bincount(self._node, self._uses[0], len(sizes)) > 0
        most = [ENDLESS if m is None else m for m in (max_parameters, max_flops)]
        self._most = np.array([*most, int(weightless * self._choose[exists].sum()), ENDLESS])
        if seconds is not None and max_seconds < math.inf:
            fastest = self._solve(-1 * self._uses[3], self._everything, self._bounds(self._everything))
            if fastest is not None:
                self._most[3] = max(int(1e9 * max_seconds), self._used(fastest)[3])
        if (self._used(_row(map(_mask, codes))) > self._bounds(self._everything)).any():
            for c, chosen in zip(codes, self.best(codes, [torch.zeros_like(c.frozen) for c in codes]), strict=True):
                c.take(chosen)

    def cost(self, codes: Sequence[SparseCodes]) -> tuple[int, int]:
        """Return parameters and multiply-adds per image of the network that would be derived now."""
        parameters, flops, *_ = self._used(_row(map(_mask, codes))).tolist()
        return parameters, flops

    def fewest(self, max_parameters: int | None = None) -> tuple[int, int]:
        """Return the fewest parameters that an architecture can have, and the fewest multiply-adds per image.

        Args:
            max_parameters: count the multiply-adds of architectures with at most so many parameters, or else of those
                with the fewest; of all when not given.
        """
        bounds = self._bounds(self._everything)
        parameters = self._fewest(0, self._everything, bounds)
        within = ENDLESS if max_parameters is None else max(parameters, max_parameters)
        return parameters, self._fewest(1, self._everything, bounds, within)

    def best(self, codes: Sequence[SparseCodes], fixed: Sequence[Tensor]) -> list[Tensor]:
        """Return the candidates with the largest sum of scores within the limits, on distinct edges of each node: their
        positions, (nodes, choose), for each of ``codes``.

        Args:
            codes: all of the network.
            fixed: for each of ``codes`` the nodes that keep what they have chosen, bool, (nodes,).

        Raises:
            DhaError: if no choice keeps the limits.
        """
        # A fixed node may take what it has taken and nothing else, so that it needs no further treatment.
        masks = [torch.where(f[:, None], _mask(c), c.real) for c, f in zip(codes, fixed, strict=True)]
        # Codes that have diverged rank nothing, but the limits hold all the same.
        scores = [c.scores().nan_to_num(0.0, 0.0).masked_fill(~m, -1.0) for c, m in zip(codes, masks, strict=True)]
        best = [best_on_distinct_edges(s, c.operations, c.choose) for c, s in zip(codes, scores, strict=True)]
        allowed = _row(masks)
        bounds = self._bounds(allowed)
        if (self._used(_row(map(_mask, codes, best))) > bounds).any():
            taken = self._solve(_row(scores), allowed, bounds)
            if taken is None:
                # Fixed nodes may be slower now than when they were chosen, in a run that is gone on with.
                bounds[3] = ENDLESS
                taken = self._solve(-1 * self._uses[3], allowed, bounds)
            if taken is None:
                raise DhaError(self._refusal(allowed, bounds))
            parts = torch.from_numpy(taken).split([s.numel() for s in scores])
            only = [s.masked_fill(~p.view_as(s).to(s.device), -2.0) for s, p in zip(scores, parts, strict=True)]
            best = [s.topk(c.choose).indices for c, s in zip(codes, only, strict=True)]
        return [torch.where(f[:, None], c.chosen, b) for c, f, b in zip(codes, fixed, best, strict=True)]

    def _used(self, taken: np.ndarray) -> np.ndarray:
        return self._rest + self._uses[:, taken].sum(axis=1)

    def _bounds(self, allowed: np.ndarray) -> np.ndarray:
        # The guard gives way to nodes that have too few edges with a candidate that has weights.
        weighted = np.unique(self._edge[allowed & (self._uses[2] == 0)]) // self._widest
        needed = (self._choose - np.bincount(weighted, minlength=len(self._choose))).clip(0).sum()
        return np.maximum(self._most, [0, 0, needed, 0])

    def _solve(self, scores: np.ndarray, allowed: np.ndarray, bounds: np.ndarray) -> np.ndarray | None:
        """Return which of the allowed candidates are best, by an integer linear program; None if there is no way."""
        if not len(allowed):
            return None
        from scipy.optimize import LinearConstraint, milp  # Here, because a model that predicts has no need of them.
        from scipy.sparse import csr_array

        uses, columns = self._uses[:, allowed], np.arange(allowed.sum())
        # Rows of one magnitude, because the solver's tolerance is absolute.
        scale = uses.max(axis=1, initial=1)
        rows = [csr_array((np.ones(len(columns)), (group[allowed], columns))) for group in (self._node, self._edge)]
        constraints = [
            LinearConstraint(rows[0], self._choose, self._choose),  # pyright: ignore[reportArgumentType]
            LinearConstraint(rows[1], ub=1),
            LinearConstraint(uses / scale[:, None], ub=np.minimum(bounds - self._rest, uses.sum(axis=1)) / scale),
        ]
        # Without presolve, which gains nothing on so small a problem, and with which HiGHS prints lines more often.
        options = {"mip_rel_gap": 0, "presolve": False}
        gains = scores[allowed].astype(float)
        while (x := milp(-gains, integrality=1, bounds=(0, 1), constraints=constraints, options=options).x) is not None:
            taken = allowed.copy()
            taken[allowed] = x > 0.5
            if (self._used(taken) <= bounds).all():
                return taken
            # It breaks a limit by less than the solver's tolerance: anything but this.
            constraints.append(LinearConstraint(taken[allowed].astype(float), ub=self._choose.sum() - 1))
        return None

    def _refusal(self, allowed: np.ndarray, bounds: np.ndarray) -> str:
        parameters, flops, *_ = bounds.tolist()
        if (fewest := self._fewest(0, allowed, bounds)) > parameters:
            return f"max_parameters={parameters}: {SMALLEST} has {fewest} parameters: {REMEDY}"
        within = "" if parameters == ENDLESS else f"with max_parameters={parameters} "
        fewest = self._fewest(1, allowed, bounds, parameters)
        return f"max_flops={flops}: {within}{SMALLEST} takes {fewest} multiply-adds per image: {REMEDY}"

    def _fewest(self, use: int, allowed: np.ndarray, bounds: np.ndarray, max_parameters: int = ENDLESS) -> int:
        taken = self._solve(-1 * self._uses[use], allowed, np.array([max_parameters, ENDLESS, bounds[2], ENDLESS]))
        return int(self._used(allowed if taken is None else taken)[use])


def _mask(codes: SparseCodes, chosen: Tensor | None = None) -> Tensor:
    return torch.zeros_like(codes.real).scatter(1, codes.chosen if chosen is None else chosen, True)


def _row(tensors: Iterable[Tensor]) -> np.ndarray:
    # The empty part is for a network without codes.
    return np.concatenate([np.zeros(0, dtype=bool), *(t.numpy(force=True).ravel() for t in tensors)])
