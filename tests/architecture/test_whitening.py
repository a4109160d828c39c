import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from dha.architecture import whiten
from dha.architecture.whitening import FLATTEST


def smooth_images(channels):
    images = torch.randn(40, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    return 3 * F.avg_pool2d(images, 3, stride=1, padding=1) + 0.2 * images


def test_filters_are_the_scaled_principal_components_of_patches():
    images, convolution = smooth_images(3), nn.Conv2d(3, 27, 3, padding=1, bias=False)
    whiten(convolution, images)
    patches = F.unfold(images, 3).transpose(1, 2).reshape(-1, 27).numpy()
    components = PCA(27, svd_solver="full").fit(patches)
    filters = convolution.weight.detach().flatten(1).numpy()
    # Which way a component points is open.
    filters *= np.sign((filters * components.components_).sum(1, keepdims=True))
    scales = np.sqrt(components.explained_variance_ + FLATTEST)[:, None]
    np.testing.assert_allclose(filters, components.components_ / scales, atol=1e-3)


def test_outputs_are_uncorrelated_and_a_second_set_of_filters_has_the_other_sign():
    images, convolution = smooth_images(1), nn.Conv2d(1, 22, 3, bias=False)
    before = convolution.weight.detach().clone()
    whiten(nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(22, 2, 3)), images)
    weights = convolution.weight.detach()
    outputs = F.conv2d(images, weights).transpose(0, 1).flatten(1)
    covariance = outputs[:9].cov()
    assert (covariance.diagonal() > 0.8).all()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    torch.testing.assert_close(weights[9:18], -weights[:9])
    torch.testing.assert_close(weights[18:], before[18:])


def test_fewer_filters_than_components_stay_as_they_are():
    convolution = nn.Conv2d(3, 26, 3)
    before = convolution.weight.detach().clone()
    whiten(convolution, smooth_images(3))
    torch.testing.assert_close(convolution.weight.detach(), before, rtol=0, atol=0)


def test_blank_images_leave_filters_finite():
    network = nn.Conv2d(1, 9, 3)
    whiten(network, torch.zeros(3, 1, 8, 8))
    assert network.weight.isfinite().all()
