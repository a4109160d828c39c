"""Defines a sparse-coded block of one's own, puts it into a network of one's own, and lets a run choose.

    python examples/own_block.py

A ``SparseChoice`` adds up ``choose`` of its candidates; a sparse code, trained with the weights, decides which. It can
stand anywhere in a network. dha finds it there, searches, and delivers a plain network with what was chosen; in a loop
of one's own, train ``codes.compressed``, call ``recover(sparse_codes(network), 1e-3)`` now and then, and ``derive`` at
the end.
"""

import torch
from torch import Tensor, nn

from dha import ImageClassifier
from dha.architecture import SparseChoice


class GatedBlock(nn.Module):
    """x + gate(x) * branch(x), where the branch is chosen: 3x3, dilated 3x3, a pair of 1x3 and 3x1, or 1x1."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()

        def conv(kernel: int | tuple[int, int], **settings: int) -> nn.Conv2d:
            return nn.Conv2d(channels, channels, kernel, padding="same", bias=False, **settings)

        layers = {
            "3x3": [conv(3)],
            "dilated": [conv(3, dilation=2)],
            "pair": [conv((1, 3)), conv((3, 1))],
            "1x1": [conv(1)],
        }
        candidates = {name: nn.Sequential(*convs, nn.BatchNorm2d(channels)) for name, convs in layers.items()}
        self.branch = SparseChoice(candidates, start=["3x3"], seed=seed)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return torch.relu(x + torch.sigmoid(self.gate(x)) * self.branch(x))


class Network(nn.Sequential):
    """Three such blocks on digits: (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self) -> None:
        blocks = [GatedBlock(32, seed) for seed in range(3)]
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
        )


if __name__ == "__main__":
    classifier = ImageClassifier(network=Network(), epochs=10).fit("digits")
    print(classifier.genotype_)
    print(f"test accuracy: {100 * classifier.test_accuracy_:.2f} %")
