"""Devices and precision through Lightning Fabric, and copies to the host that nothing has to wait for."""

import ctypes
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dha.errors import DhaError

if TYPE_CHECKING:
    # Loaded where a run begins: that takes more than a second on a slow machine, and a model predicts without it.
    from lightning_fabric import Fabric

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def make_fabric(
    device: str, precision: str, image_size: int, devices: int = 1, num_nodes: int = 1, strategy: str = "auto"
) -> "Fabric":
    """Return a launched Fabric; with more than one device it starts the other processes, unless a launcher has.

    Args:
        device: "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda" or "mps".
        precision: "32", "bf16" (autocast), or "auto": bf16 where the hardware computes in it and images are large
            enough to gain; what a run that has the time to measure it can correct by ``set_precision``.
        image_size: side of the images in pixels.
        devices: processes of this machine, each with a device of its own.
        num_nodes: machines.
        strategy: of Fabric, how processes share the work; "auto" is distributed data-parallel.

    Raises:
        DhaError: if the device is not there, or there are not so many.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[device]:
        raise DhaError(
            f"device={device!r} is not on this machine: choose from {', '.join(d for d in there if there[d])}"
        )
    if precision == "auto":
        precision = "bf16" if image_size >= 24 and computes_in_bf16(device) else "32"
    # Fabric announces the precision in the middle of the progress display; it is in the saved settings.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    options: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed"}
    if device == "cpu":
        _keep_memory()
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", devices))  # torchrun's word
    if device == "cuda" and devices > torch.cuda.device_count():
        raise DhaError(f"devices={devices}: this machine has {torch.cuda.device_count()}")
    several: Any = strategy
    if devices * num_nodes > 1 and strategy in ("auto", "ddp"):
        # Candidates that the architecture does not use have no gradient.
        several = DDPStrategy(find_unused_parameters=True)
    if "LT_CLI_USED" in os.environ:  # `fabric run` has said the rest itself, and launches no second time
        return Fabric(strategy=several, precision=options[precision])
    fabric = Fabric(
        accelerator=device, devices=devices, num_nodes=num_nodes, strategy=several, precision=options[precision]
    )
    fabric.launch()
    return fabric


def _keep_memory() -> None:
    """Let freed memory stay with the process: glibc gives large tensors back to the system and fetches them by the page
    at the next use, which costs up to half of a step. What was freed before, while images were made ready, goes back.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)  # pyright: ignore[reportOptionalMemberAccess]
        libc.mallopt(M_MMAP_MAX, 0)  # pyright: ignore[reportOptionalMemberAccess]
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # pyright: ignore[reportOptionalMemberAccess]


def precision_of(fabric: "Fabric") -> Literal["32", "bf16"]:
    """Return the precision that networks are set up in."""
    return "bf16" if fabric.strategy.precision.precision == "bf16-mixed" else "32"


def set_precision(fabric: "Fabric", precision: str) -> None:
    """Let networks that are set up from now on compute in "32" or "bf16"."""
    if precision == precision_of(fabric):
        return
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    plugin = MixedPrecision("bf16-mixed", fabric.device.type) if precision == "bf16" else Precision()
    # Fabric has no word for it once it is launched, and it cannot be launched twice.
    fabric._precision = fabric.strategy.precision = plugin


def computes_in_bf16(device: str) -> bool:
    """Return whether the hardware of a device, "cpu", "cuda" or "mps", computes in bfloat16 itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions a CPU emulates bfloat16, slower than float32.
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting: for CUDA from pinned memory, which torch keeps until the copy is done."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor on the host that is under way while the program goes on."""

    def __init__(self, tensor: Tensor) -> None:
        self.event = None
        self.copy = tensor
        if tensor.is_cuda:
            self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.copy.copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        elif tensor.device.type != "cpu":
            self.copy = tensor.cpu()

    def wait(self) -> Tensor:
        """Return the copy once it is complete."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy
