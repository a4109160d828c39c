import pytest
import torch
from torch import nn

from dha.architecture.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("size", [2, 5, 8, 16])
@pytest.mark.parametrize(("kernel", "dilation", "stride"), [(3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 2, 1), (5, 2, 2)])
def test_values_and_gradients_are_those_of_torch(size, kernel, dilation, stride):
    ours = DepthwiseConv2d(6, kernel, stride, dilation).double()
    theirs = nn.Conv2d(6, 6, kernel, stride, dilation * (kernel // 2), dilation, groups=6, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, theirs):
        images = torch.randn(4, 6, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        out = module(images)
        (out.sin() * out).sum().backward()
        results.append((out, images.grad, module.weight.grad))
    for mine, oracle in zip(*results, strict=True):
        # The weight gradient sums in float32.
        torch.testing.assert_close(mine, oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16])
def test_under_autocast_the_gradients_agree_to_the_precision_of_bfloat16(size):
    module = DepthwiseConv2d(4, 5, dilation=2)
    images = torch.randn(8, 4, size, size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(images)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    mine = images.grad, module.weight.grad
    images.grad = module.weight.grad = None
    nn.Conv2d.forward(module, images).square().sum().backward()
    for gradient, oracle in zip(mine, (images.grad, module.weight.grad), strict=True):
        assert gradient is not None
        assert oracle is not None
        assert gradient.dtype == torch.float32
        assert (gradient - oracle).norm() < 0.02 * oracle.norm()
