import pytest
import torch
from torch import nn

from dha.model import better_mirrored, logits_of


def test_logits_are_the_mean_of_an_image_and_its_mirror_image():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    images = torch.randn(7, 3, 4, 4)
    both = torch.stack([network(images), network(images.flip(3))])
    assert torch.equal(logits_of(network, images, mirrored=False), both[0])
    torch.testing.assert_close(logits_of(network, images, mirrored=True), both.mean(0))


def change(gain, noise, count=500, classes=10, seed=0):
    """Return losses, losses with mirror images, and labels, every class equally often."""
    plain = torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 1
    noise = noise * torch.randn(count, generator=torch.Generator().manual_seed(seed + 1))
    return plain, plain - gain + noise, torch.arange(count) % classes


@pytest.mark.parametrize(("gain", "better"), [(0.1, True), (-0.1, False), (0.0, False)])
def test_a_lower_mean_loss_is_better(gain, better):
    assert better_mirrored(*change(gain, noise=0.0), classes=10) == better


def test_what_chance_explains_is_not_worth_twice_the_time():
    lower = [
        float((mirrored - plain).mean()) < 0 for plain, mirrored, _ in (change(0.0, 0.5, seed=s) for s in range(40))
    ]
    better = [better_mirrored(*change(0.0, noise=0.5, seed=seed), classes=10) for seed in range(40)]
    assert sum(lower) > 12, "chance alone lowers the mean of many"
    assert sum(better) < 12
    assert all(better_mirrored(*change(0.1, noise=0.5, seed=seed), classes=10) for seed in range(40))


@pytest.mark.parametrize("seed", range(20))
def test_chance_in_single_classes_does_not_count(seed):
    plain, mirrored, labels = change(0.1, noise=0.5, seed=10 * seed)
    single = torch.stack([(mirrored - plain)[labels == name].mean() for name in range(10)])
    assert single.max() > -0.05, "some are hardly better, and one or the other worse"
    assert better_mirrored(plain, mirrored, labels, classes=10)


def test_two_rare_classes_that_are_each_others_mirror_images_are_kept_apart():
    plain, mirrored, _ = change(0.1, noise=0.1, count=400)
    labels = torch.cat([torch.arange(388) % 38, torch.tensor([38, 39] * 6)])
    assert better_mirrored(plain, mirrored, labels, classes=40)
    mirrored[labels >= 38] = plain[labels >= 38] + 0.69  # Both are as likely then.
    assert mirrored.mean() < plain.mean()
    assert not better_mirrored(plain, mirrored, labels, classes=40)


def test_classes_without_images_and_losses_that_are_not_numbers():
    plain, mirrored, labels = change(0.1, noise=0.0)
    assert better_mirrored(plain, mirrored, labels, classes=1000)
    mirrored[3] = torch.nan
    assert not better_mirrored(plain, mirrored, labels, classes=10)
