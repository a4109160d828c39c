"""What runs need from the machine: devices, time, and files that are never half written."""

from dha.engine.averaging import MovingAverage, WeightAverage, estimate_statistics
from dha.engine.budget import Budget
from dha.engine.device import HostCopy, make_fabric
from dha.engine.files import replaced_folder, write_text
from dha.engine.undisturbed import undisturbed

__all__ = [
    "Budget",
    "HostCopy",
    "MovingAverage",
    "WeightAverage",
    "estimate_statistics",
    "make_fabric",
    "replaced_folder",
    "undisturbed",
    "write_text",
]
