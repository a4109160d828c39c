"""plain.py with a block whose operation is chosen by a sparse code while it trains.

    python examples/loop/block.py

Only what is chosen is computed. The code moves with the weights, the choice is recovered every 20th step, and the
network that is left at the end is a plain one.
"""

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from dha.architecture import SparseChoice, derive, recover, sparse_codes

EPOCHS, BATCH = 12, 64

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
train, validation, test = torch.randperm(len(labels)).split([1200, 240, 357])


def losses(pixels: Tensor, truth: Tensor) -> Tensor:
    """Return the loss of each image."""
    return F.cross_entropy(network(pixels), truth, reduction="none")


def conv(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a convolution whose kernel is chosen, and ReLU."""
    candidates = {
        f"{k}x{k}": nn.Sequential(
            nn.Conv2d(channels_in, channels_out, k, padding=k // 2, bias=False), nn.BatchNorm2d(channels_out)
        )
        for k in (1, 3, 5)
    }
    return nn.Sequential(SparseChoice(candidates, seed=channels_in), nn.ReLU())


network = nn.Sequential(conv(1, 32), conv(32, 32), nn.MaxPool2d(2), conv(32, 64), nn.Flatten(), nn.Linear(1024, 10))
codes = sparse_codes(network)
code_optimizer = torch.optim.Adam([code.compressed for code in codes], lr=0.005, betas=(0.5, 0.999))
weights = [weight for name, weight in network.named_parameters() if not name.endswith("compressed")]
optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
steps, step = EPOCHS * math.ceil(len(train) / BATCH), 0
for _ in range(EPOCHS):
    for batch in train[torch.randperm(len(train))].split(BATCH):
        schedule = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 0.1 * schedule
        losses(images[batch], labels[batch]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        code_optimizer.step()
        code_optimizer.zero_grad()
        step += 1
        if step % 20 == 0:
            recover(codes, tolerance=0.0)

print([module.chosen() for module in network.modules() if isinstance(module, SparseChoice)])
network = derive(network)
with torch.no_grad():
    accuracy = (network.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"test accuracy: {100 * accuracy:.2f} %")
