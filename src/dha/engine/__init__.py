"""What runs need from the machine: devices, time, and files that are never half written."""

from dha.engine.budget import Budget
from dha.engine.device import HostCopy, make_fabric
from dha.engine.files import replaced_folder, write_text

__all__ = ["Budget", "HostCopy", "make_fabric", "replaced_folder", "write_text"]
