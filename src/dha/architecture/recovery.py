"""Recovery of all sparse codes of a network at once, with one choice of candidates that keeps the promised limits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dha.architecture.limits import Limits
from dha.architecture.sparse import Recovery, SparseCodes, best_on_distinct_edges, lasso


def sparse_codes(network: nn.Module) -> list[SparseCodes]:
    """Return the sparse codes in a network, in the order of its modules; none if its architecture is fixed."""
    return [module for module in network.modules() if isinstance(module, SparseCodes)]


@torch.no_grad()
def recover(codes: Sequence[SparseCodes], tolerance: float, limits: Limits | None = None) -> list[Recovery]:
    """Recover all codes, choose anew, and freeze the nodes whose z moved at most ``tolerance``.

    This is the only place of a search where the host waits for the device.

    Args:
        codes: of one network.
        tolerance: on |z_new - z_old|_2 of each node.
        limits: what the chosen architecture may cost; without it each node takes its best candidates.

    Returns:
        What happened to the nodes of each of ``codes``.
    """
    fixed = [c.frozen.clone() for c in codes]
    recoveries = [c.update(z, tolerance) for c, z in zip(codes, _solve(codes), strict=True)]
    choose_all(codes, fixed, limits)
    return recoveries


def choose_all(codes: Sequence[SparseCodes], fixed: Sequence[Tensor], limits: Limits | None) -> None:
    """Choose the best candidates of all nodes that are not ``fixed`` (one boolean per node of each of ``codes``)."""
    if limits is None:
        chosen = [best_on_distinct_edges(c.scores(), c.operations, c.choose) for c in codes]
    else:
        chosen = limits.best(codes, fixed)
    for c, picks, f in zip(codes, chosen, fixed, strict=True):
        c.take(torch.where(f[:, None], c.chosen, picks.to(c.chosen)))


def _solve(codes: Sequence[SparseCodes]) -> list[Tensor]:
    # One batch, padded with zero rows and columns, which change no solution. In float64 on the host, where so small a
    # problem is fastest. A penalty of its own for each: scaling b by 1/penalty scales z, for a penalty of 1.
    rows = max(c.dictionary.shape[1] for c in codes)
    columns = max(c.dictionary.shape[2] for c in codes)
    dictionaries, targets = [], []
    for c in codes:
        m, n = c.dictionary.shape[1:]
        dictionaries.append(nn.functional.pad(c.dictionary.double().cpu(), (0, columns - n, 0, rows - m)))
        targets.append(nn.functional.pad(c.compressed.double().cpu() / c.penalty, (0, rows - m)))
    solutions = lasso(torch.cat(dictionaries), torch.cat(targets), penalty=1.0)
    parts = solutions.split([len(c.code) for c in codes])
    return [part[:, : c.code.shape[1]] * c.penalty for part, c in zip(parts, codes, strict=True)]
