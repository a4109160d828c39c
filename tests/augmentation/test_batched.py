import pytest
import torch
import torch.nn.functional as F

from dha.augmentation import OPERATIONS
from dha.augmentation.batched import apply_operations


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_every_image_has_its_own_operations_one_after_the_other(photo, slots):
    names, generator = list(OPERATIONS), torch.Generator().manual_seed(0)
    images = photo * torch.rand(40, 1, 1, 1, generator=generator)
    before = images.clone()
    choices = torch.randint(len(names), (40, slots), generator=generator)
    uniforms = torch.rand(40, slots, 3, generator=generator)
    result = apply_operations(names, images, choices, uniforms)
    assert torch.equal(images, before)
    for index, places in enumerate(choices.tolist()):
        alone = images[index : index + 1]
        for slot, place in enumerate(places):
            alone = OPERATIONS[names[place]](alone, uniforms[index : index + 1, slot])
        torch.testing.assert_close(result[index : index + 1], alone, rtol=0, atol=1e-6)


def test_rotations_and_shears_are_one_call(photo, monkeypatch):
    sizes, sample = [], F.grid_sample

    def counted(images, grid, **settings):
        sizes.append(len(images))
        return sample(images, grid, **settings)

    monkeypatch.setattr(F, "grid_sample", counted)
    names = ["shear_x", "invert", "rotate", "crop", "shear_y"]
    choice = torch.tensor([0, 4, 1, 2, 3, 0, 4])
    apply_operations(names, photo.expand(7, -1, -1, -1), choice[:, None], torch.rand(7, 1, 3))
    assert sizes == [5]
