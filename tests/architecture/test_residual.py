import copy

import pytest
import torch
from torch import nn

from dha.architecture import BRANCHES, ResidualNetwork
from dha.architecture.blocks import searched, written
from dha.architecture.operations import absorb
from dha.architecture.residual import Residual


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (6, 7), (6, 8)])
def test_branches_keep_the_shape_and_absorb_a_weight(name, channels, size):
    branch = BRANCHES[name](channels)
    for _ in range(2):
        branch(torch.randn(8, channels, size, size))
    branch.eval()
    images = torch.randn(3, channels, size, size)
    before = branch(images)
    assert before.shape == images.shape
    absorb(branch, torch.tensor(-0.37))
    torch.testing.assert_close(branch(images), -0.37 * before)


def test_a_block_is_the_relu_of_input_plus_branch():
    block, images = Residual(3, written([["skip"]])), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(block(images), torch.relu(2 * images))


@pytest.mark.parametrize("name", BRANCHES)
def test_a_further_block_of_a_stage_begins_as_the_identity(name):
    x = torch.rand(2, 4, 8, 8)
    first, further = (Residual(4, written([[name]]), further=f) for f in (False, True))
    assert torch.equal(further(x), 2 * x if name == "skip" else x)
    assert name == "skip" or not torch.allclose(first(x), x, atol=0.01)


def test_the_order_of_pooling_and_relu_is_of_no_account():
    blocks = [["pair_3x3"], ["inverted_3x3"], ["bottleneck"]]
    network = ResidualNetwork(3, 5, 32, written(blocks), width=4).train()
    customary = copy.deepcopy(network)
    body = customary.body
    pools = [place for place, module in enumerate(body) if isinstance(module, nn.MaxPool2d)]
    assert len(pools) == 3
    for module in customary.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for place in pools:
        assert isinstance(body[place + 1], nn.ReLU)
        body[place], body[place + 1] = body[place + 1], body[place]
    images = torch.randn(6, 3, 32, 32)
    logits = [model(images) for model in (network, customary)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(model.parameters()))
        for out, model in zip(logits, (network, customary), strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "resolution", "side"),
    [
        (4, 40, 4),
        (7, 40, 7),
        (8, 40, 4),
        (13, 40, 6),
        (28, 40, 7),
        (32, 40, 4),
        (40, 40, 5),
        (41, 40, 5),
        (64, 40, 4),
        (96, 40, 6),
        (224, 40, 7),
        (32, 20, 4),
        (5, 4, 3),
    ],
)
def test_stem_and_stages_follow_the_image_size(size, resolution, side):
    network = ResidualNetwork(3, 7, size, searched(), width=2, resolution=resolution).eval()
    images = torch.zeros(2, 3, size, size)
    assert network.body(images).shape == (2, 16, side, side)
    assert network(images).shape == (2, 7)


def test_depth_counts_blocks_per_stage():
    for depth in (1, 3):
        network = ResidualNetwork(3, 7, 16, searched(), width=2, depth=depth)
        assert len(network.genotype.blocks) == 3 * depth
        assert (network.genotype.width, network.genotype.depth, network.genotype.resolution) == (2, depth, 40)
