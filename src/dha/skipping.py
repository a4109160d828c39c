"""Steps left out because their loss or gradient is not finite: the device decides, the host hears of it late."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.engine import HostCopy, everywhere
from dha.hyperparameters import norm

WATCHED = 16
"""Steps between two looks of the host."""

TROUBLE = WATCHED // 2
"""More steps than this left out, of those between two looks, are no accident."""


class SkippedSteps:
    """Counts the steps of a run that were left out.

    Args:
        fabric: of the run; a step is left out by all of its processes or by none.

    Attributes:
        counts: on the device, int64 (2,): all of them, and those whose loss was finite and whose gradient was not.
        recently: how many of ``WATCHED`` steps it was, at the look before the last.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.counts = torch.zeros(2, dtype=torch.long, device=fabric.device)
        self.recently = self._known = 0
        self._looked = HostCopy(self.counts[0].clone())

    def sound(self, losses: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return whether a step with these losses (n,) and gradients may be made, bool without dimensions, on the
        device.
        """
        finite_losses = everywhere(losses.isfinite().all(), self.fabric)
        sound = finite_losses & everywhere(norm(gradients).isfinite(), self.fabric)
        self.counts += torch.stack([~sound, finite_losses & ~sound])
        return sound

    def look(self) -> int:
        """Return how many steps were left out between the two looks before this one."""
        # The copy of the look before this one is done by now, so that nothing has to wait.
        before, self._looked = int(self._looked.wait().item()), HostCopy(self.counts[0].clone())
        self.recently, self._known = before - self._known, before
        return self.recently

    def unseen(self) -> int:
        """Return how many steps were left out that no look has told of yet; waits for the device."""
        return int(self.counts[0]) - self._known

    def reset(self, counts: Tensor) -> None:
        """Go on from these counts, of which the host knows; waits for the device."""
        self.counts.copy_(counts)
        self._looked, self._known, self.recently = HostCopy(self.counts[0].clone()), int(counts[0]), 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the one on its way to the host."""
        return {"counts": self.counts, "known": self._known, "looked": self._looked.wait()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, with nothing skipped recently."""
        self.counts.copy_(state["counts"])
        self._known, self._looked, self.recently = state["known"], HostCopy(state["looked"]), 0
