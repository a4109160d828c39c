"""Devices and precision through Lightning Fabric, and copies to the host that nothing has to wait for."""

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dha.errors import DhaError, one_line

if TYPE_CHECKING:
    # Loaded where a run begins: that takes more than a second on a slow machine, and a model predicts without it.
    from lightning_fabric import Fabric

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


DEVICES = "auto", "cpu", "cuda", "mps"
LARGE = 24
"""Side in pixels from which on images gain from bf16 where the hardware computes in it."""


def make_fabric(
    device: str, precision: str, image_size: int | None, devices: int = 1, num_nodes: int = 1, strategy: str = "auto"
) -> "Fabric":
    """Return a launched Fabric; with more than one device it starts the other processes, unless a launcher has.

    Args:
        device: "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda" or "mps".
        precision: "32", "bf16" (autocast), or "auto": as ``suited_precision`` says; what a run that has the time to
            measure it can correct by ``set_precision``.
        image_size: side of the images in pixels; None if it is not known yet, which stands for large ones.
        devices: processes of this machine, each with a device of its own.
        num_nodes: machines.
        strategy: of Fabric, how processes share the work; "auto" is distributed data-parallel.

    Raises:
        DhaError: if the device is not there, there are not so many, Fabric has no such strategy, or the variables that
            a launcher sets are no numbers.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    device = present_device(device).type
    if precision == "auto":
        precision = suited_precision(device, LARGE if image_size is None else image_size)
    options: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed"}
    devices = _number("LOCAL_WORLD_SIZE", devices)  # torchrun's word
    if device == "cuda" and devices > torch.cuda.device_count():
        raise DhaError(f"devices={devices}: this machine has {torch.cuda.device_count()}")
    several: Any = strategy
    if devices * num_nodes > 1 and strategy in ("auto", "ddp"):
        # Candidates that the architecture does not use have no gradient.
        several = DDPStrategy(find_unused_parameters=True)
    settings: dict[str, Any] = {"strategy": several, "precision": options[precision]}
    launched = "LT_CLI_USED" in os.environ  # `fabric run` has said the rest itself, and launches no second time
    if not launched:
        settings |= {"accelerator": device, "devices": devices, "num_nodes": num_nodes}
    with _quiet():
        try:
            fabric = Fabric(**settings)
            if not launched:
                fabric.launch()
        except (ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
            said = one_line(error)[:300]
            if strategy != "auto":
                remedy = 'leave it out, or choose "ddp" or another strategy of Lightning Fabric'
                raise DhaError(f"strategy={strategy!r} cannot be used here ({said}): {remedy}") from error
            raise DhaError(
                f"devices={devices} and num_nodes={num_nodes}: the processes cannot be started ({said}): correct or "
                "unset the variables of a launcher (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, SLURM_*)"
            ) from error
    return fabric


def present_device(name: str) -> torch.device:
    """Return a device by the name that torch has for it: "cpu", "cuda", "cuda:1", "mps"; or the best for "auto".

    Raises:
        DhaError: if torch has no such name, or this machine no such device.
    """
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind, _, index = name.partition(":")
    if kind == "auto" and not index:
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if there[d]))
    if kind not in there or (index and not (index.isdecimal() and index.isascii() and len(index) < 5)):
        raise DhaError(f"device={name!r}: choose from {', '.join(DEVICES)}, or cuda:1 for the second CUDA device")
    if int(index or 0) >= there[kind]:
        names = [d if count == 1 else f"{d} (0 to {count - 1})" for d, count in there.items() if count]
        raise DhaError(f"device={name!r} is not on this machine: choose from {', '.join(names)}")
    return torch.device(name)


def suited_precision(device: str, image_size: int) -> Literal["32", "bf16"]:
    """Return "bf16" where the hardware of a device computes in it and images are large enough to gain, else "32"."""
    return "bf16" if image_size >= LARGE and computes_in_bf16(device) else "32"


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:9]) <= 1024):
        raise DhaError(f"{variable}={value!r:.80}: expected the number of processes of this machine; unset it")
    return int(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Fabric from announcing the precision in the middle of the progress display; it is in the saved settings."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def keep_memory() -> None:
    """Let freed memory stay with this process for good: glibc gives large tensors back to the system and fetches them
    by the page at the next use, which costs up to half of a step. What was freed before goes back. For a process that
    does nothing but train on a CPU.
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
