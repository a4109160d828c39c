"""plain.py with a learning rate and a weight decay that are learned while it trains.

    python examples/loop/hyperparameters.py

Every 16th step the gradient of a validation batch says whether the way that the weights have come should have been
longer. Start the rate where you like.
"""

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from dha.engine import undisturbed
from dha.hyperparameters import LearnedScalar, LearnedSGD

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
rate, decay = LearnedScalar(0.01, low=1e-4, high=1.0), LearnedScalar(5e-4, low=1e-6, high=1e-2)
optimizer = LearnedSGD([list(network.parameters())], [rate], [decay], momentum=0.9)
norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
steps, step = EPOCHS * math.ceil(len(train) / BATCH), 0
for _ in range(EPOCHS):
    for batch in train[torch.randperm(len(train))].split(BATCH):
        schedule = 0.5 * (1 + math.cos(math.pi * step / steps))
        losses(images[batch], labels[batch]).mean().backward()
        if step % 16 == 0:
            optimizer.look(step / steps)
        optimizer.step(schedule)
        if step % 16 == 0:
            seen, weights = validation[torch.randperm(len(validation))[:BATCH]], optimizer.active()
            with undisturbed(norms, []):  # BatchNorm records nothing of this pass
                held_out = torch.autograd.grad(losses(images[seen], labels[seen]).mean(), weights)
            optimizer.learn(weights, held_out, rate=2.0 * schedule)
        optimizer.zero_grad()
        step += 1

with torch.no_grad():
    accuracy = (network.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"learning rate: 0.01 -> {rate.value:.3f}; weight decay: 0.0005 -> {decay.value:.5f}")
print(f"test accuracy: {100 * accuracy:.2f} %")
