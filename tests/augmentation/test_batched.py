import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from dha.augmentation import OPERATIONS, Operation
from dha.augmentation.batched import _numbers, _recorded, _table, all_alike, apply_operations, spread


def drawn(photo, slots, n=60):
    """Return n images, operations for each, and what the operations follow from."""
    generator = torch.Generator().manual_seed(0)
    images = photo * torch.rand(n, 1, 1, 1, generator=generator)
    choices = torch.randint(len(OPERATIONS), (n, slots), generator=generator)
    return images, choices, torch.rand(n, slots, 3, generator=generator)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_every_image_has_its_own_operations_one_after_the_other(photo, slots):
    names, (images, choices, uniforms) = list(OPERATIONS), drawn(photo, slots)
    before = images.clone()
    result = apply_operations(names, images, choices, uniforms)
    assert torch.equal(images, before)
    for index, places in enumerate(choices.tolist()):
        alone = images[index : index + 1]
        for slot, place in enumerate(places):
            alone = OPERATIONS[names[place]](alone, uniforms[index : index + 1, slot])
        torch.testing.assert_close(result[index : index + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(("kept", "share"), [(18, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize("idle", [True, False])
def test_functions_that_are_given_equally_many_images_do_the_same(photo, slots, kept, share, idle):
    names, (images, _, uniforms) = tuple(OPERATIONS)[0 if idle else 1 :], drawn(photo, slots)
    choices = (torch.arange(60)[:, None] + torch.arange(slots)) % min(kept, len(names)) + int(idle and kept == 1)
    operations = tuple(OPERATIONS[name] for name in names)
    before, table = images.clone(), _table(operations)
    told, which = spread(table.places[choices], _numbers(table, choices, uniforms), table.acting())
    assert told.shape[:3] == (slots, 10, 60 // share)
    (result,) = all_alike(operations)(images, told, which)
    assert torch.equal(images, before)
    torch.testing.assert_close(result, apply_operations(names, images, choices, uniforms), rtol=0, atol=1e-6)


def test_slots_that_change_nothing_cost_nothing(photo, monkeypatch):
    sizes, select = [], torch.index_select

    def counted(images, *rest, **settings):
        sizes.append(len(images))
        return select(images, *rest, **settings)

    monkeypatch.setattr(torch, "index_select", counted)
    images, names = photo.repeat(3, 1, 1, 1), ["identity", "invert"]
    for second, expected in ((0, 1 - images), (1, images)):
        choices = torch.tensor([[1, second]] * 3)
        torch.testing.assert_close(apply_operations(names, images, choices, torch.rand(3, 2, 3)), expected)
    assert len(sizes) == 1 + 2
    untouched = apply_operations(names, images, torch.zeros(3, 2, dtype=torch.long), torch.rand(3, 2, 3))
    assert torch.equal(untouched, images)
    assert untouched is not images
    assert len(sizes) == 1 + 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [32, 320])
def test_a_gpu_makes_the_same_of_images(side):
    images, generator = torch.rand(50, 3, side, side), torch.Generator().manual_seed(0)
    for _ in range(4):  # as it is, recorded, and replayed twice
        choices = torch.randint(len(OPERATIONS), (50, 2), generator=generator)
        uniforms = torch.rand(50, 2, 3, generator=generator)
        wanted = apply_operations(list(OPERATIONS), images, choices, uniforms)
        found = apply_operations(list(OPERATIONS), images.cuda(), choices, uniforms).cpu()
        # A pixel may be taken from the other side of an edge, or fall on the other side of a threshold.
        assert ((found - wanted).abs() > 1e-3).float().mean() < 1e-3


def test_bytes_become_what_their_floats_do(photo):
    names, (images, choices, uniforms) = list(OPERATIONS), drawn(photo, 2)
    pixels = (images * 255).byte()
    before = pixels.clone()
    for places in (choices, torch.zeros_like(choices)):
        found = apply_operations(names, pixels, places, uniforms)
        assert torch.equal(found, apply_operations(names, pixels.float() / 255, places, uniforms))
    assert torch.equal(pixels, before)


def test_rotations_and_shears_are_one_call_and_whole_pixels_another(photo, monkeypatch):
    sizes, sample = [], F.grid_sample

    def counted(images, grid, *, mode, **settings):
        sizes.append((mode, len(images)))
        return sample(images, grid, mode=mode, **settings)

    monkeypatch.setattr(F, "grid_sample", counted)
    names = ["shear_x", "invert", "rotate", "crop", "shear_y", "translate_x"]
    choice = torch.tensor([0, 4, 1, 2, 3, 0, 4, 5])
    apply_operations(names, photo.expand(8, -1, -1, -1), choice[:, None], torch.rand(8, 1, 3))
    assert sizes == [("bilinear", 5), ("nearest", 2)]


def test_an_operation_that_was_replaced_under_its_name_is_the_one_applied(photo, monkeypatch):
    choices, uniforms = torch.tensor([[0]]), torch.rand(1, 1, 3)
    before = apply_operations(["invert"], photo, choices, uniforms)
    torch.testing.assert_close(before, 1 - photo)
    monkeypatch.setitem(OPERATIONS, "invert", Operation(lambda images, magnitude, position: images.mul_(0.5)))
    assert torch.equal(apply_operations(["invert"], photo, choices, uniforms), photo / 2)


def test_every_thread_has_recordings_of_its_own():
    with ThreadPoolExecutor(2) as threads:
        barrier = threading.Barrier(2)
        found = list(threads.map(lambda _: (barrier.wait(), _recorded.graphs[torch.device("cpu")])[1], range(2)))
    assert found[0] is not found[1]
    assert _recorded.graphs[torch.device("cpu")] is _recorded.graphs[torch.device("cpu")]
