import pytest
import torch
from torch import nn

from dha.architecture import MobileNetwork, derive, plain_network
from dha.architecture.blocks import searched, written
from dha.architecture.depthwise import DepthwiseConv2d
from dha.architecture.mobile import LAYERS, InvertedResidual, inverted, proportional
from dha.architecture.operations import absorb

MOBILENET_V2 = {"space": "mobile", "width": 32, "depth": 4, "resolution": 224, "blocks": [["k3_e6"]] * 16}


def test_where_the_search_starts_is_mobilenet_v2():
    with torch.device("meta"):
        network = plain_network(MOBILENET_V2, 3, 1000, 224)
    assert sum(p.numel() for p in network.parameters()) == 3_504_872  # as in torchvision
    depthwise = [m for m in network.modules() if isinstance(m, DepthwiseConv2d)]
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    # fmt: off
    assert [m.out_channels for m in depthwise] == [
        32, 96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960
    ]
    # fmt: on


def test_candidates_are_three_kernels_times_two_expansions_and_skip_where_shapes_allow():
    network = MobileNetwork(3, 5, 32, searched(), width=4)
    tables = [tuple(m.branch.candidates) for m in network.modules() if isinstance(m, InvertedResidual)]  # pyright: ignore
    layers = ("k3_e6", "k5_e6", "k7_e6", "k3_e3", "k5_e3", "k7_e3")
    assert tuple(LAYERS) == layers
    first = [0, 2, 5, 9, 12, 15]  # of the stages
    assert tables == [layers if i in first else (*layers, "skip") for i in range(16)]


@pytest.mark.parametrize("squeeze_excite", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_right_shape_and_absorb_a_weight(name, size, stride, squeeze_excite):
    layer = inverted(4, 6, *LAYERS[name], stride, squeeze_excite)
    for _ in range(2):
        layer(torch.randn(8, 4, size, size))
    layer.eval()
    images = torch.randn(3, 4, size, size)
    before = layer(images)
    assert before.shape == (3, 6, -(-size // stride), -(-size // stride))
    absorb(layer, torch.tensor(-0.37))
    torch.testing.assert_close(layer(images), -0.37 * before)


def test_kernel_7_has_the_values_and_gradients_of_torch():
    for size in (2, 3, 8, 16):
        for stride in (1, 2):
            ours = DepthwiseConv2d(4, 7, stride).double()
            results = []
            for forward in (ours.forward, lambda x, ours=ours: nn.Conv2d.forward(ours, x)):
                images = torch.randn(2, 4, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
                ours.weight.grad = None
                out = forward(images.requires_grad_())
                out.sin().sum().backward()
                results.append((out, images.grad, ours.weight.grad))
            # The weight gradient sums in float32.
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_only_equal_shapes_are_added():
    images = torch.randn(2, 4, 6, 6)
    for channels, stride in ((4, 1), (4, 2), (6, 1)):
        block = InvertedResidual(4, channels, stride, written([["k5_e3"]]), "k3_e3").eval()
        branch = block.branch(images)
        torch.testing.assert_close(block(images), images + branch if (channels, stride) == (4, 1) else branch)
    torch.testing.assert_close(InvertedResidual(4, 4, 1, written([["skip"]]), "k3_e3")(images), 2 * images)


@pytest.mark.parametrize(
    ("size", "resolution", "stem", "side"),
    [
        (4, 224, 1, 4),
        (5, 224, 1, 5),
        (7, 224, 1, 7),
        (8, 224, 1, 4),
        (13, 224, 1, 7),
        (28, 224, 1, 7),
        (32, 224, 1, 4),
        (33, 224, 1, 5),
        (64, 224, 1, 4),
        (96, 224, 1, 6),
        (128, 224, 2, 4),
        (224, 224, 2, 7),
        (225, 224, 2, 8),
        (64, 32, 2, 4),
        (5, 4, 2, 3),
    ],
)
def test_halvings_follow_the_image_size(size, resolution, stem, side):
    choice = written([["k7_e3"]] * 6)
    network = MobileNetwork(1, 7, size, choice, width=2, depth=1, resolution=resolution).eval()
    images = torch.zeros(2, 1, size, size)
    assert network.body(images).shape == (2, 80, side, side)
    assert network(images).shape == (2, 7)
    first = network.body[0]
    assert isinstance(first, nn.Conv2d)
    assert first.stride[0] == stem


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (64, [32, 48, 64, 128, 192, 320, 640, 2560]),
        (48, [24, 40, 48, 96, 144, 240, 480, 1920]),
        (32, [16, 24, 32, 64, 96, 160, 320, 1280]),
        (16, [8, 12, 16, 32, 48, 80, 160, 640]),
        (8, [4, 6, 8, 16, 24, 40, 80, 320]),
        (1, [1, 1, 1, 2, 3, 5, 10, 40]),
    ],
)
def test_channels_are_in_proportion(width, expected):
    assert [proportional(channels, width) for channels in (16, 24, 32, 64, 96, 160, 320, 1280)] == expected


def test_depth_is_the_most_layers_of_a_stage():
    layers = [len(MobileNetwork(1, 2, 8, searched(), width=2, depth=d).genotype.blocks) for d in (1, 3, 5)]
    assert layers == [6, 15, 16]


def test_squeeze_excite_is_derived_too():
    search = MobileNetwork(3, 5, 16, searched(), width=4, depth=2, squeeze_excite=True)
    search(torch.randn(8, 3, 16, 16))
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(derive(search.eval())(images), search(images), rtol=0, atol=1e-5)
    genotype = search.genotype
    assert "squeeze-excite" in str(genotype)
    again = plain_network(genotype.to_dict(), 3, 5, 16)
    again.load_state_dict(derive(search).state_dict())
    torch.testing.assert_close(again.eval()(images), search(images), rtol=0, atol=1e-5)
    plain = MobileNetwork(3, 5, 16, searched(), width=4, depth=2)
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in search.parameters())
