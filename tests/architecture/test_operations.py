import pytest
import torch

from dha.architecture.operations import OPERATIONS, FactorizedReduce, absorb, weighted


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


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_weighted_operation_is_the_operation_times_the_weight(name, stride):
    operation, images = OPERATIONS[name](6, stride).double(), torch.randn(8, 6, 8, 8).double().requires_grad_()
    for parameter in operation.parameters():
        parameter.data.normal_()
    weight = torch.tensor(-0.37).double().requires_grad_()
    wanted = [images, weight, *operation.parameters()]
    state, ends = {n: v.clone() for n, v in operation.state_dict().items()}, []
    for output in (lambda: weight * operation(images), lambda: weighted(operation, images, weight)):
        operation.load_state_dict(state)
        outputs = output()
        # Any function of what comes out that is not linear.
        gradients = torch.autograd.grad(outputs.sin().sum(), wanted)
        ends.append([outputs, *gradients, *(buffer.clone() for buffer in operation.buffers())])
    for ours, theirs in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(ours, theirs)


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
