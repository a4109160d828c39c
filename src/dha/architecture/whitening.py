"""Patch whitening: the first convolution begins with filters whose outputs have nothing to do with each other.

Neighbouring pixels of a photograph are much alike, so that random filters nearly all see the brightness of a patch.
Source: Page, "How to train your ResNet 8" (2019),
after Coates et al. (AISTATS 2011); there the filters stay as they are, here they are where training begins.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLATTEST = 1e-2
"""Added to the variance of a filter's output: what hardly varies is noise, and not to be enlarged without bound."""


@torch.no_grad()
def whiten(network: nn.Module, images: Tensor) -> None:
    """Let the first convolution of a network begin as whitening filters, in place.

    The filters are the principal components of the patches that it sees, largest variance first and each scaled to an
    output of unit variance; more filters than there are components begin with their negatives, what is beyond those
    stays as it is. With fewer filters than components nothing changes.

    Args:
        network: the first ``nn.Conv2d`` among its modules sees the images.
        images: normalised, (N, C, H, W), with more than a filter's weights of patches among them.
    """
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    # The largest components alone are without detail, and were no better than random filters.
    if len(first.weight) < first.weight[0].numel():
        return
    patches = F.unfold(images, first.kernel_size).transpose(0, 1).flatten(1)
    variances, components = torch.linalg.eigh(patches.cov().double())
    filters = (components / (variances + FLATTEST).sqrt()).flip(1).T.view(-1, *first.weight.shape[1:])
    filters = torch.cat([filters, -filters])[: len(first.weight)]
    first.weight[: len(filters)] = filters.to(first.weight)
