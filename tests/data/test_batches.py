from itertools import islice

import pytest
import torch

from dha.data import Batches, LabelledImages, sequential
from dha.errors import DhaError

CPU = torch.device("cpu")


def numbered(count: int) -> LabelledImages:
    labels = torch.arange(count)
    return LabelledImages(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), labels)


def batches(count: int, batch_size: int, *, seed: int = 0, drop_last: bool = False) -> Batches:
    return Batches(numbered(count), batch_size, torch.Generator().manual_seed(seed), CPU, drop_last)


def order(epoch: Batches) -> list[int]:
    return [number for _, labels in epoch for number in labels.tolist()]


def test_an_epoch_has_every_image_once_with_its_label():
    epoch = batches(10, 4)
    sizes = []
    for images, labels in epoch:
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert images.shape[1:] == (3, 2, 2)
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
        sizes.append(len(labels))
    assert sizes == [4, 4, 2]
    assert len(epoch) == 3
    assert sorted(order(epoch)) == list(range(10))


def test_epochs_are_shuffled_differently_and_reproducibly():
    first, second = batches(50, 8, seed=3), batches(50, 8, seed=3)
    epochs = [order(first), order(first)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(50))
    assert epochs == [order(second), order(second)]
    assert epochs[0] != order(batches(50, 8, seed=4))


@pytest.mark.parametrize(("count", "expected"), [(10, [4, 4]), (8, [4, 4]), (3, [3]), (4, [4])])
def test_drop_last_leaves_out_the_smaller_batch_but_never_all(count: int, expected: list[int]):
    epoch = batches(count, 4, drop_last=True)
    assert [len(labels) for _, labels in epoch] == expected
    assert len(epoch) == len(expected)


@pytest.mark.parametrize("processes", [1, 2])
def test_several_batches_come_at_once_in_the_same_order(processes):
    def of(rank: int, together: int) -> Batches:
        generator = torch.Generator().manual_seed(0)
        return Batches(numbered(27), 4, generator, CPU, True, (rank, processes), together)

    for rank in range(processes):
        one, several = of(rank, 1), of(rank, 4)
        assert len(one) == len(several) == 6
        assert [len(labels) for _, labels in several] == [16 // processes, 8 // processes]
        order(one)
        assert order(one) == order(several), "the second epoch"


def test_an_epoch_goes_on_behind_the_batches_that_came_at_once():
    first = Batches(numbered(27), 4, torch.Generator().manual_seed(0), CPU, True, together=4)
    expected = order(first)
    again = Batches(numbered(27), 4, torch.Generator().manual_seed(0), CPU, True, together=4)
    next(iter(again))
    state = again.state_dict()
    assert state["taken"] == 4
    resumed = Batches(numbered(27), 4, torch.Generator(), CPU, True, together=4)
    resumed.load_state_dict(state)
    assert order(resumed) == expected[16:]


def test_forever_goes_on_with_full_epochs():
    drawn = [labels.tolist() for _, labels in islice(batches(6, 4).forever(), 6)]
    epochs = [drawn[i] + drawn[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_sequential_keeps_the_order():
    drawn = list(sequential(numbered(10), 4, CPU))
    assert [len(labels) for _, labels in drawn] == [4, 4, 2]
    assert [n for _, labels in drawn for n in labels.tolist()] == list(range(10))
    assert torch.equal(torch.cat([images for images, _ in drawn]), numbered(10).images)


def test_no_images_and_no_size_are_refused():
    with pytest.raises(DhaError, match="no images to make batches of"):
        batches(0, 4)
    with pytest.raises(DhaError, match="batch_size is 0; pass at least 1"):
        batches(4, 0)
    with pytest.raises(DhaError, match="batch_size is -2"):
        sequential(numbered(3), -2, CPU)


def test_an_epoch_goes_on_where_its_state_was_saved():
    whole, first = batches(10, 3), batches(10, 3)
    expected = order(whole) + order(whole)
    begun = [number for _, labels in islice(first, 2) for number in labels.tolist()]
    state, other = first.state_dict(), batches(10, 3, seed=9)
    other.load_state_dict(state)
    assert begun + order(other) + order(other) == expected
    assert begun + order(first) + order(first) == expected, "and so it does without"


def test_the_state_holds_no_order_of_the_images():
    epoch = batches(1000, 10)
    next(iter(epoch))
    assert set(epoch.state_dict()) == {"generator", "taken"}
    assert epoch.state_dict()["taken"] == 1


def test_images_of_another_device_are_read_ahead():
    data, meta = numbered(10), torch.device("meta")
    drawn = iter(Batches(data, 4, torch.Generator().manual_seed(0), meta, True))
    assert [(images.device, images.shape) for images, _ in drawn] == [(meta, (4, 3, 2, 2))] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_stay_on_the_host_reach_the_gpu_from_pinned_memory():
    data, gpu = numbered(100), torch.device("cuda")
    assert data.read(torch.arange(3), pinned=True)[0].is_pinned()
    expected = Batches(data, 8, torch.Generator().manual_seed(0), CPU, True)
    drawn = Batches(data, 8, torch.Generator().manual_seed(0), gpu, True)
    for (images, labels), (known, numbers) in zip(drawn, expected, strict=True):
        assert images.is_cuda
        assert torch.equal(images.cpu(), known)
        assert torch.equal(labels.cpu(), numbers)
