import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dha.architecture.convolution import MANY, SameConv2d, _FewPixels, within


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (2, 5)])
@pytest.mark.parametrize("large", [1, 10**6])
def test_values_and_gradients_are_those_of_torch(kernel, size, large, monkeypatch):
    monkeypatch.setattr("dha.architecture.convolution.LARGE", large)
    images = torch.randn(6, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    outputs = _FewPixels.apply(images, within(weight, images)), F.conv2d(images, weight, padding=kernel // 2)
    results = [[out, *torch.autograd.grad((out.sin() * out).sum(), (images, weight))] for out in outputs]
    for mine, oracle in zip(*results, strict=True):
        torch.testing.assert_close(mine, oracle)


@pytest.mark.parametrize("side", [2, 4, 5])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("large", [1, 10**6])
def test_under_autocast_the_gradients_agree_to_the_precision_of_bfloat16(side, kernel, large, monkeypatch):
    monkeypatch.setattr("dha.architecture.convolution.LARGE", large)
    calls, apply = [], _FewPixels.apply
    monkeypatch.setattr(_FewPixels, "apply", lambda *arguments: (calls.append(1), apply(*arguments))[1])
    module = SameConv2d(64, 72, kernel).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(MANY, 64, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for forward in (module.forward, lambda images: nn.Conv2d.forward(module, images)):
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(images)
        assert out.dtype == torch.bfloat16
        gradients = torch.autograd.grad(out.float().square().sum(), (images, module.weight))
        # A gradient of the weight that lies in another way would be copied; taps that see nothing are rare.
        lying = (out, *gradients) if kernel // 2 < side else (out, gradients[0])
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in lying)
        results.append((out, *gradients))
    assert len(calls) == 1
    for mine, oracle in zip(*results, strict=True):
        assert mine.dtype == oracle.dtype
        assert (mine - oracle).norm() < 0.01 * oracle.norm()


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "images", "side", "half"),
    [
        (1, 1, MANY, MANY, 4, True),
        (3, 2, MANY, MANY, 4, True),
        (3, 1, 32, MANY, 4, True),
        (3, 1, MANY, 32, 4, True),
        (3, 1, MANY, MANY, 6, True),
        (3, 1, MANY, MANY, 4, False),
    ],
)
def test_other_convolutions_are_left_to_torch(kernel, stride, channels, images, side, half):
    module, inputs = SameConv2d(channels, 64, kernel, stride), torch.randn(images, channels, side, side)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = module(inputs)
        oracle = nn.Conv2d.forward(module, inputs)
    assert torch.equal(out, oracle)
    assert out.shape[2] == -(-side // stride)
    assert "FewPixels" not in type(out.grad_fn).__name__
