"""Print a hash of the weights after a few epochs on digits, in each search space and with a custom network.

    python tools/weights_hash.py

Renames and moves must leave every hash as it is; run it before and after such a change, on the same machine. Hashes of
different machines differ, because their libraries round differently.
"""

import hashlib
import tempfile
from pathlib import Path

import torch
from torch import nn

from dha import ArchitectureConfig, Config
from dha.fit import run

EPOCHS, SEED = 4, 3


def custom_network(channels: int, classes: int) -> nn.Module:
    """Return a small network with dropout, so that the random state is covered too."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def weights_hash(config: Config) -> str:
    """Return a hash of the weights and buffers of the model that a run delivers, 16 hexadecimal digits."""
    with tempfile.TemporaryDirectory() as folder:
        network = run("digits", config=config, out=Path(folder) / "run").model.network
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for space in ("residual", "mobile", "cells"):
        architecture = ArchitectureConfig(width=8, depth=1 if space == "residual" else 2)
        settings = Config(epochs=EPOCHS, seed=SEED, device="cpu", space=space, architecture=architecture)
        print(f"{space:9} {weights_hash(settings)}")
    torch.manual_seed(SEED)
    settings = Config(epochs=EPOCHS, seed=SEED, device="cpu", network=custom_network(1, 10))
    print(f"{'custom':9} {weights_hash(settings)}")
