import pytest
import torch
from tests.emulation import EmulatedRecording

from dha.engine import Graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_every_call_does_what_the_function_does(device):
    graphs, total = Graphs(possible=device == "cuda"), torch.zeros((), device=device)
    weight = torch.ones(3, device=device, requires_grad=True)

    def function(x):
        total.add_(x.sum())
        loss = (weight * x).square().sum()
        return [loss.detach(), None, *torch.autograd.grad(loss, weight)]

    for number in range(1, 6):
        x = torch.arange(3.0, device=device) * number
        loss, nothing, gradient = graphs(function, x)
        assert loss is not None
        assert loss.item() == 5 * number**2
        assert nothing is None
        assert gradient is not None
        assert gradient.tolist() == [0, 2 * number**2, 8 * number**2]
        assert total.item() == sum(3 * n for n in range(1, number + 1)), "once per call, also when it is recorded"


def test_results_of_a_shape_are_always_at_the_same_place(monkeypatch):
    monkeypatch.setattr("dha.engine.graphs.Recording", EmulatedRecording)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", object)
    graphs, weight, seen = Graphs(possible=True), torch.ones(3, requires_grad=True), []

    def gradient(x):
        return list(torch.autograd.grad((x * weight).sum(), weight))

    for images in (2, 4, 2, 4, 4, 2):  # as they are, recorded, replayed
        (found,) = graphs(gradient, torch.ones(images, 3))
        assert found is not None
        assert found.tolist() == [images] * 3
        seen.append(found)
    assert all(found is seen[0] for found in seen), "where another recording looks for it"


@needs_gpu
def test_shapes_are_recorded_apart_and_forgotten_together():
    graphs, factor = Graphs(possible=True), 2.0

    def function(x):
        return [x * factor]

    def calls():
        results = [graphs(function, torch.ones(n, device="cuda")) for _ in range(3) for n in (1, 2)]
        return [tensor.tolist() for (tensor,) in results if tensor is not None]

    assert calls() == 3 * [[2.0], [2.0, 2.0]]
    factor = 3.0
    assert calls() == 3 * [[2.0], [2.0, 2.0]], "what is on the host is recorded, too"
    graphs.forget()
    assert calls() == 3 * [[3.0], [3.0, 3.0]]
