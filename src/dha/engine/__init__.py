"""What runs need from the machine: devices, time, and files that are never half written."""

from dha.engine.averaging import MovingAverage, WeightAverage, estimate_statistics
from dha.engine.budget import Budget
from dha.engine.checkpoints import Checkpoints, lock
from dha.engine.device import HostCopy, make_fabric
from dha.engine.files import replaced_folder, write_bytes, write_text
from dha.engine.signals import Stop
from dha.engine.undisturbed import undisturbed

__all__ = [
    "Budget",
    "Checkpoints",
    "HostCopy",
    "MovingAverage",
    "Stop",
    "WeightAverage",
    "estimate_statistics",
    "lock",
    "make_fabric",
    "replaced_folder",
    "undisturbed",
    "write_bytes",
    "write_text",
]
