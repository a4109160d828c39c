"""Several processes that train one network: each takes its part of every batch, and all learn the same from all parts.

With one process everything here returns what it was given.
"""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def gathered(values: Tensor, fabric: "Fabric") -> Tensor:
    """Return the parts of all processes, (n, ...), as one batch, without gradient."""
    if fabric.world_size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def averaged(values: Sequence[Tensor], fabric: "Fabric") -> Sequence[Tensor]:
    """Return the mean over all processes of each tensor."""
    if fabric.world_size == 1:
        return values
    # As one message: there are many small tensors.
    together = fabric.all_reduce(torch.cat([v.flatten() for v in values]), reduce_op="mean")
    assert isinstance(together, Tensor)
    parts = together.split([v.numel() for v in values])
    return [p.view_as(v) for p, v in zip(parts, values, strict=True)]


def summed(values: Tensor, fabric: "Fabric") -> Tensor:
    """Return the sum over all processes."""
    total = fabric.all_reduce(values.clone(), reduce_op="sum") if fabric.world_size > 1 else values
    assert isinstance(total, Tensor)
    return total


def everywhere(condition: Tensor, fabric: "Fabric") -> Tensor:
    """Return whether a condition, bool without dimensions on the device, holds in all processes."""
    if fabric.world_size == 1:
        return condition
    least = fabric.all_reduce(condition.float(), reduce_op="min")
    assert isinstance(least, Tensor)
    return least > 0.5


class Agreement:
    """Lets all processes go by the clock and the signals of the first one.

    Args:
        fabric: of the run.
    """

    def __init__(self, fabric: "Fabric") -> None:
        self.group: Any = None
        self.alone = fabric.world_size == 1
        if not self.alone and torch.distributed.get_backend() != "gloo":
            # Numbers of the host go past the device, so that nothing waits for it.
            self.group = torch.distributed.new_group(backend="gloo")

    def __call__(self, *numbers: float) -> tuple[float, ...]:
        """Return the numbers that the first process has."""
        if self.alone:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.broadcast(shared, 0, group=self.group)
        return tuple(shared.tolist())


def check_agreed(values: Sequence[Tensor], what: str, fabric: "Fabric") -> None:
    """Make sure that integers are the same in all processes.

    Raises:
        RuntimeError: if they are not.
    """
    if fabric.world_size == 1:
        return
    mine = torch.cat([v.flatten() for v in values])
    if not (gathered(mine, fabric).view(fabric.world_size, -1) == mine).all():
        raise RuntimeError(f"the processes of this run hold different {what}: run it on machines of one kind")
