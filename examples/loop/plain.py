"""An ordinary training script; beside it stand the same script with a learned policy, learned rates, a searched block.

    python examples/loop/plain.py

See what each part takes with `diff examples/loop/plain.py examples/loop/policy.py`, and so on.
"""

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS, BATCH = 12, 64

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
train, validation, test = torch.randperm(len(labels)).split([1200, 240, 357])


def losses(pixels: Tensor, truth: Tensor) -> Tensor:
    """Return the loss of each image."""
    return F.cross_entropy(network(pixels), truth, reduction="none")


def conv(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a 3x3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


network = nn.Sequential(conv(1, 32), conv(32, 32), nn.MaxPool2d(2), conv(32, 64), nn.Flatten(), nn.Linear(1024, 10))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
steps, step = EPOCHS * math.ceil(len(train) / BATCH), 0
for _ in range(EPOCHS):
    for batch in train[torch.randperm(len(train))].split(BATCH):
        schedule = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 0.1 * schedule
        losses(images[batch], labels[batch]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1

with torch.no_grad():
    accuracy = (network.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"test accuracy: {100 * accuracy:.2f} %")
