import numpy as np
import pytest
import torch

from dha.augmentation.geometry import CROP, TRANSLATION_X, TRANSLATION_Y, take


def taken(images, magnitude, position, kind):
    """Return copies of images, each moved by a magnitude and a position of its own."""
    changed, n = images.clone(), len(images)
    take(changed, torch.tensor(magnitude), torch.tensor(position), *(torch.full((n,), number) for number in kind))
    return changed


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (9, 5), (640, 1000), (1001, 333)])
def test_crops_are_whole_pixels_of_the_reflected_image_at_every_position(height, width):
    images = torch.rand(5, 2, height, width, generator=torch.Generator().manual_seed(0))
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    position = [[0.0, 0.0], [below_one, below_one], [0.0, below_one], [0.5, 0.5], [0.3, 0.8]]
    found = taken(images, [0.125] * 5, position, CROP)
    down, right = -(-height // 8), -(-width // 8)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (down, down), (right, right)), mode="reflect")
    for one, wanted, (x, y) in zip(found.numpy(), padded, position, strict=True):
        top, left = int(y * (2 * down + 1)), int(x * (2 * right + 1))
        assert np.array_equal(one, wanted[:, top : top + height, left : left + width])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (640, 1000)])
@pytest.mark.parametrize("magnitude", [-0.3, -0.1, 0.0, 0.2, 0.3])
def test_translations_are_whole_pixels_and_bring_in_black(height, width, magnitude):
    images = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0)) + 0.1
    for kind, side, axis in ((TRANSLATION_X, width, -1), (TRANSLATION_Y, height, -2)):
        found = taken(images, [magnitude], [[0.7, 0.2]], kind)
        by = round(magnitude * side)
        expected = images.roll(by, axis)
        entered = torch.arange(side) < by if by > 0 else torch.arange(side) >= side + by
        expected.movedim(axis, -1)[..., entered] = 0
        assert torch.equal(found, expected)
