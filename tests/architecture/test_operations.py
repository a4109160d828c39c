import pytest
import torch

from dha.architecture.operations import OPERATIONS, FactorizedReduce, absorb


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [2, 7, 8])
def test_shapes_and_absorption(name, stride, size):
    operation = OPERATIONS[name](6, stride)
    for _ in range(2):
        operation(torch.randn(8, 6, size, size))
    operation.eval()
    images = torch.randn(3, 6, size, size)
    before = operation(images)
    assert before.shape == (3, 6, -(-size // stride), -(-size // stride))
    absorb(operation, torch.tensor(-0.37))
    torch.testing.assert_close(operation(images), -0.37 * before)


def test_factorized_reduce_looks_at_every_pixel_of_two_by_two_blocks_diagonal():
    images = torch.rand(1, 3, 6, 6, requires_grad=True)
    FactorizedReduce(3, 4)(images).sum().backward()
    assert images.grad is not None
    used = images.grad[0].abs().sum(0) > 0
    assert used[::2, ::2].all()
    assert used[1::2, 1::2].all()


def test_seven_operations_of_the_paper():
    assert list(OPERATIONS) == [
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip",
        "separable_3x3",
        "separable_5x5",
        "dilated_3x3",
        "dilated_5x5",
    ]
