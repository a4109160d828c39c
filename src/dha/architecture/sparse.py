"""Architecture as a sparse code: which candidates a node uses is the support of the solution of a tiny LASSO.

Source: ISTA-NAS (Yang et al., NeurIPS 2020, arXiv 2010.06176), sections 3.2 and 3.3; used by DHA (Zhou et al., TMLR
2022), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
    edge e. Only b is trained. Weights come from one step of the ISTA iteration at z, ``w = A^T b - E^T z`` with
    ``E = A^T A - I`` (ISTA-NAS, eq. 8), which on the support of z equals z plus the soft threshold, and is linear in b.

    Args:
        edges: the number of edges that enter each node.
        operations: the number of candidate operations on every edge.
        choose: how many candidates a node uses, at most its number of edges.
        size: m, the length of each compressed code.
        penalty: lambda of the LASSO.
        seed: seed of dictionaries and initial codes.

    Raises:
        ValueError: if a node has fewer edges than ``choose``.
    """

    dictionary: Tensor
    code: Tensor
    frozen: Tensor
    chosen: Tensor
    real: Tensor

    def __init__(
        self,
        edges: Sequence[int],
        operations: int,
        *,
        choose: int = 2,
        size: int = 7,
        penalty: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(edges) < choose:
            raise ValueError(f"a node with {min(edges)} edges cannot choose {choose} of them")
        self.operations, self.choose, self.penalty = operations, choose, penalty
        generator = torch.Generator().manual_seed(seed)
        nodes, candidates = len(edges), max(edges) * operations
        counts = torch.tensor(edges)[:, None] * operations
        # Nodes with fewer candidates are padded with zero columns, so that all nodes are solved as one batch.
        self.register_buffer("real", torch.arange(candidates) < counts)
        dictionary = nn.functional.normalize(torch.randn(nodes, size, candidates, generator=generator), dim=1)
        self.register_buffer("dictionary", dictionary * self.real[:, None])
        self.compressed = nn.Parameter(nn.functional.normalize(torch.randn(nodes, size, generator=generator), dim=1))
        self.register_buffer("code", torch.zeros(nodes, candidates))
        self.register_buffer("frozen", torch.zeros(nodes, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros(nodes, choose, dtype=torch.long))
        self.recover(tolerance=0.0)
        self.frozen.zero_()

    def all_weights(self) -> Tensor:
        """Return the weight of every candidate, shape (nodes, candidates), differentiable in the compressed codes."""
        correlation = torch.einsum("pmn,pm->pn", self.dictionary, self.compressed)
        reconstruction = torch.einsum("pmn,pn->pm", self.dictionary, self.code)
        return correlation - torch.einsum("pmn,pm->pn", self.dictionary, reconstruction) + self.code

    def weights(self) -> Tensor:
        """Return the mixing weights of the chosen candidates, shape (nodes, choose), differentiable in the codes."""
        return self.all_weights().gather(1, self.chosen)

    def choices(self) -> list[list[tuple[int, int]]]:
        """Return the chosen (edge, operation) pairs of every node, in the order of ``weights``, on the host."""
        return [[divmod(c, self.operations) for c in node] for node in self.chosen.tolist()]

    @torch.no_grad()
    def recover(self, tolerance: float) -> Recovery:
        """Solve for z again from the current codes, choose anew, and freeze the nodes whose z moved at most
        ``tolerance``.

        Frozen nodes keep code and choice. This is the only place where the host waits for the device.
        """
        new = lasso(self.dictionary.double().cpu(), self.compressed.double().cpu(), self.penalty).to(self.code)
        change = (new - self.code).norm(dim=1).masked_fill(self.frozen, 0.0)
        self.code.copy_(torch.where(self.frozen[:, None], self.code, new))
        self.chosen.copy_(torch.where(self.frozen[:, None], self.chosen, self._best_on_distinct_edges()))
        self.frozen |= change <= tolerance
        return Recovery(change.tolist(), self.frozen.tolist())

    def stop_frozen_gradients(self) -> None:
        """Zero the gradient of the codes of frozen nodes, so that an optimiser leaves them nearly alone."""
        if self.compressed.grad is not None:
            self.compressed.grad.masked_fill_(self.frozen[:, None], 0.0)

    def _best_on_distinct_edges(self) -> Tensor:
        # |w| orders candidates by |z| on the support of z (it is |z| + penalty there) and by their correlation with the
        # residual off it (at most penalty), so one number ranks all, also when z has fewer than `choose` non-zeros.
        score = self.all_weights().abs().masked_fill(~self.real, -1.0)
        edge = torch.arange(score.shape[1], device=score.device) // self.operations
        picks = []
        for _ in range(self.choose):
            best = score.argmax(dim=1)
            picks.append(best)
            score = score.masked_fill(edge == edge[best][:, None], -1.0)
        return torch.stack(picks, dim=1)
