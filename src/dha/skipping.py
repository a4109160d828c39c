"""Steps that are left out because their loss was not finite: the device decides, the host hears of it one look late."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.engine import HostCopy, everywhere

WATCHED = 16
"""Steps between two looks of the host."""


class SkippedSteps:
    """Counts the steps of a run that were left out.

    Args:
        fabric: of the run; a step is left out by all of its processes or by none.

    Attributes:
        total: their number, on the device.
        recently: how many of ``WATCHED`` steps it was, at the look before the last.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.total = torch.zeros((), dtype=torch.long, device=fabric.device)
        self.recently = self._known = 0
        self._looked = HostCopy(self.total.clone())

    def sound(self, losses: Tensor) -> Tensor:
        """Return whether a step with these losses (n,) may be made, bool without dimensions, on the device."""
        sound = everywhere(losses.isfinite().all(), self.fabric)
        self.total += ~sound
        return sound

    def look(self) -> int:
        """Return how many steps were left out between the two looks before this one."""
        # The copy of the look before this one is done by now, so that nothing has to wait.
        before, self._looked = int(self._looked.wait().item()), HostCopy(self.total.clone())
        self.recently, self._known = before - self._known, before
        return self.recently

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the one on its way to the host."""
        return {"total": self.total, "known": self._known, "looked": self._looked.wait()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, with nothing skipped recently."""
        self.total.copy_(state["total"])
        self._known, self._looked, self.recently = state["known"], HostCopy(state["looked"]), 0
