"""Architecture as a sparse code: which candidates a node uses is the support of the solution of a tiny LASSO.

Source: ISTA-NAS (Yang et al., NeurIPS 2020, arXiv 2010.06176), sections 3.2 and 3.3; used by DHA (Zhou et al., TMLR
2022), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

DRAWS = 200
"""The most dictionaries that are drawn to find one in which a search can start where it is told."""


def lasso(
    dictionary: Tensor, target: Tensor, penalty: float, *, start: Tensor | None = None, iterations: int = 5000
) -> Tensor:
    """Solve ``argmin_z 1/2 |A z - b|^2 + penalty |z|_1`` for a batch of problems by FISTA with adaptive restart.

    Args:
        dictionary: A, shape (P, m, n). All-zero columns are allowed: their coefficients are 0.
        target: b, shape (P, m).
        penalty: the weight of the L1 norm, > 0.
        start: where the iteration begins, shape (P, n); zeros when not given.
        iterations: the most iterations made; it stops earlier when no coefficient moves any more.

    Returns:
        z, shape (P, n).

    Source: Beck & Teboulle, SIAM J. Imaging Sciences 2009; restart by O'Donoghue & Candes, 2015, section 3.2.
    """
    step = 1 / torch.linalg.matrix_norm(dictionary, ord=2).square().clamp_min(1e-12)[:, None]
    z = torch.zeros_like(dictionary[:, 0]) if start is None else start.clone()
    point, momentum = z, torch.ones_like(step)
    for iteration in range(iterations):
        residual = torch.einsum("pmn,pn->pm", dictionary, point) - target
        moved = point - step * torch.einsum("pmn,pm->pn", dictionary, residual)
        new = nn.functional.softshrink(moved / (step * penalty), 1.0) * (step * penalty)
        uphill = ((point - new) * (new - z)).sum(1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        next_momentum = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        point = new + (momentum - 1) / next_momentum * (new - z)
        settled = iteration % 25 == 24 and torch.allclose(new, z, rtol=0, atol=1e-10)
        z, momentum = new, next_momentum
        if settled:
            break
    return z


@dataclass(frozen=True)
class Recovery:
    """What one recovery of the codes did: ``change`` |z_new - z_old|_2 per node, and which nodes are ``frozen`` now."""

    change: list[float]
    frozen: list[bool]


class SparseCodes(nn.Module):
    """The compressed codes b of a set of nodes, their dictionaries A, and the sparse codes z recovered from them.

    A node chooses ``choose`` of its candidates, on distinct edges. Candidate ``e * operations + o`` is operation o on
    edge e. Only b is trained. The mixing weights of the chosen candidates are linear in b between two recoveries:

    - ``one_step``: one step of the ISTA iteration at z, ``w = A^T b - E^T z`` with ``E = A^T A - I`` (ISTA-NAS, eq. 8);
      on the support of z it equals z plus the soft threshold.
    - ``implicit``: on the support S of z, the solution of the LASSO itself while S and the signs stay as they are,
      ``w_S = (A_S^T A_S)^-1 (A_S^T b - penalty sign(z_S))``; off it, where that would be a constant 0, as above.

    Args:
        edges: the number of edges that enter each node.
        operations: the number of candidate operations on every edge.
        choose: how many candidates a node uses, at most its number of edges.
        size: m, the length of each compressed code.
        penalty: lambda of the LASSO.
        gradient: "one_step" or "implicit".
        start: per node the candidates to start from, ``choose`` each; at random when not given.
        seed: seed of dictionaries and initial codes.

    Raises:
        ValueError: if a node has fewer edges than ``choose``, or the codes are too short to hold ``start``.
    """

    dictionary: Tensor
    code: Tensor
    frozen: Tensor
    chosen: Tensor
    real: Tensor
    slope: Tensor
    offset: Tensor
    _choices: list[list[tuple[int, int]]]

    def __init__(
        self,
        edges: Sequence[int],
        operations: int,
        *,
        choose: int = 2,
        size: int = 7,
        penalty: float = 0.1,
        gradient: Literal["one_step", "implicit"] = "one_step",
        start: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(edges) < choose:
            raise ValueError(f"a node with {min(edges)} edges cannot choose {choose} of them")
        self.operations, self.choose, self.penalty, self.gradient = operations, choose, penalty, gradient
        generator = torch.Generator().manual_seed(seed)
        nodes, candidates = len(edges), max(edges) * operations
        counts = torch.tensor(edges)[:, None] * operations
        # Nodes with fewer candidates are padded with zero columns, so that all nodes are solved as one batch.
        self.register_buffer("real", torch.arange(candidates) < counts)
        self.register_buffer("dictionary", self._random_dictionary(nodes, size, generator))
        self.compressed = nn.Parameter(nn.functional.normalize(torch.randn(nodes, size, generator=generator), dim=1))
        self.register_buffer("code", torch.zeros(nodes, candidates))
        self.register_buffer("frozen", torch.zeros(nodes, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros(nodes, choose, dtype=torch.long))
        self.register_buffer("slope", torch.zeros(nodes, choose, size))
        self.register_buffer("offset", torch.zeros(nodes, choose))
        self.register_load_state_dict_post_hook(_list_choices)
        self.recover(tolerance=0.0)
        if start is not None:
            self._begin_with(torch.tensor(start), generator)
        self.frozen.zero_()

    def _random_dictionary(self, nodes: int, size: int, generator: torch.Generator) -> Tensor:
        columns = torch.randn(nodes, size, self.real.shape[1], generator=generator)
        return nn.functional.normalize(columns, dim=1) * self.real[:, None]

    @torch.no_grad()
    def _begin_with(self, start: Tensor, generator: torch.Generator) -> None:
        """Set b to the sum of the columns of ``start``, and draw dictionaries until that is what the LASSO finds in b.

        Of many columns in few dimensions, others can lie closer to the sum.
        """
        wrong = torch.ones(len(start), dtype=torch.bool)
        for _ in range(DRAWS):
            dictionary = self._random_dictionary(len(start), self.compressed.shape[1], generator)
            total = dictionary.gather(2, start[:, None].expand(-1, self.compressed.shape[1], -1)).sum(2)
            self.dictionary[wrong], self.compressed[wrong] = dictionary[wrong], total[wrong]
            self.frozen.zero_()
            self.recover(tolerance=0.0)
            wrong = (self.chosen.sort(1).values != start.sort(1).values).any(1)
            if not wrong.any():
                return
        raise ValueError(
            f"no dictionary with codes of length {self.compressed.shape[1]} holds the start {start.tolist()}"
        )

    def weights(self) -> Tensor:
        """Return the mixing weights of the chosen candidates, shape (nodes, choose), differentiable in the codes."""
        return (self.slope * self.compressed[:, None]).sum(2) + self.offset

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return what ranks the candidates, shape (nodes, candidates): |w| of one ISTA step, -1 for padding.

        |w| orders candidates by |z| on the support of z (it is |z| + penalty there) and by their correlation with the
        residual off it (at most penalty), so one number ranks all, also when z has fewer than ``choose`` non-zeros.
        """
        slope, offset = self._one_step()
        weights = torch.einsum("pnm,pm->pn", slope, self.compressed) + offset
        return weights.abs().masked_fill(~self.real, -1.0)

    def choices(self) -> list[list[tuple[int, int]]]:
        """Return the chosen (edge, operation) pairs of every node, in the order of ``weights``, on the host."""
        return self._choices

    def recover(self, tolerance: float) -> Recovery:
        """Solve for z again from the current codes, choose anew, and freeze the nodes whose z moved at most
        ``tolerance``. Frozen nodes keep code and choice.

        ``dha.architecture.recover`` does the same for all codes of a network at once.
        """
        solution = lasso(self.dictionary.double().cpu(), self.compressed.detach().double().cpu(), self.penalty)
        fixed = self.frozen.clone()
        recovery = self.update(solution, tolerance)
        self.take(
            torch.where(
                fixed[:, None], self.chosen, best_on_distinct_edges(self.scores(), self.operations, self.choose)
            )
        )
        return recovery

    @torch.no_grad()
    def update(self, solution: Tensor, tolerance: float) -> Recovery:
        """Put new sparse codes z, shape (nodes, candidates), in place of the old ones, except for frozen nodes."""
        new = solution.to(self.code)
        change = (new - self.code).norm(dim=1).masked_fill(self.frozen, 0.0)
        self.code.copy_(torch.where(self.frozen[:, None], self.code, new))
        self.frozen |= change <= tolerance
        return Recovery(change.tolist(), self.frozen.tolist())

    @torch.no_grad()
    def take(self, chosen: Tensor) -> None:
        """Use these candidates from now on: positions, shape (nodes, choose)."""
        self.chosen.copy_(chosen)
        slope, offset = self._one_step()
        if self.gradient == "implicit":
            support = self.code != 0
            inverse = torch.linalg.pinv((self.dictionary * support[:, None]).double())
            shrinkage = self.penalty * torch.einsum("pnm,pkm,pk->pn", inverse, inverse, self.code.sign().double())
            slope = torch.where(support[:, :, None], inverse.to(slope), slope)
            offset = torch.where(support, -shrinkage.to(offset), offset)
        self.slope.copy_(slope.gather(1, self.chosen[:, :, None].expand_as(self.slope)))
        self.offset.copy_(offset.gather(1, self.chosen))
        _list_choices(self)

    def stop_frozen_gradients(self) -> None:
        """Zero the gradient of the codes of frozen nodes, so that an optimiser leaves them nearly alone."""
        if self.compressed.grad is not None:
            self.compressed.grad.masked_fill_(self.frozen[:, None], 0.0)

    def _one_step(self) -> tuple[Tensor, Tensor]:
        reconstruction = torch.einsum("pmn,pn->pm", self.dictionary, self.code)
        return self.dictionary.mT, self.code - torch.einsum("pmn,pm->pn", self.dictionary, reconstruction)


def _list_choices(codes: SparseCodes, *_: object) -> None:
    # Kept on the host, where the forward pass asks for them.
    codes._choices = [[divmod(c, codes.operations) for c in node] for node in codes.chosen.tolist()]


def best_on_distinct_edges(scores: Tensor, operations: int, choose: int) -> Tensor:
    """Return the positions of the ``choose`` largest scores on distinct edges, shape (nodes, choose).

    Args:
        scores: (nodes, candidates), at least 0 where a candidate exists.
        operations: number of candidates on each edge.
        choose: how many to take.
    """
    edge = torch.arange(scores.shape[1], device=scores.device) // operations
    picks = []
    for _ in range(choose):
        best = scores.argmax(dim=1)
        picks.append(best)
        scores = scores.masked_fill(edge == edge[best][:, None], -1.0)
    return torch.stack(picks, dim=1)
