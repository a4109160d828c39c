"""What runs need from the machine: devices, time, and files that are never half written."""

from dha.engine.averaging import MovingAverage, WeightAverage, estimate_statistics
from dha.engine.budget import Budget
from dha.engine.checkpoints import FULL, Checkpoints
from dha.engine.device import (
    HostCopy,
    computes_in_bf16,
    keep_memory,
    make_fabric,
    precision_of,
    present_device,
    set_precision,
    suited_precision,
    to_device,
)
from dha.engine.graphs import Graphs
from dha.engine.parallel import Agreement, averaged, check_agreed, everywhere, gathered, summed
from dha.engine.streams import Aside, side_by_side
from dha.engine.undisturbed import undisturbed

__all__ = [
    "FULL",
    "Agreement",
    "Aside",
    "Budget",
    "Checkpoints",
    "Graphs",
    "HostCopy",
    "MovingAverage",
    "WeightAverage",
    "averaged",
    "check_agreed",
    "computes_in_bf16",
    "estimate_statistics",
    "everywhere",
    "gathered",
    "keep_memory",
    "make_fabric",
    "precision_of",
    "present_device",
    "set_precision",
    "side_by_side",
    "suited_precision",
    "summed",
    "to_device",
    "undisturbed",
]
