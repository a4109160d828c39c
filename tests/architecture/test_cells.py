import pytest
import torch
from torch import nn

from dha.architecture import CellNetwork, CellSearchNetwork


def trained_statistics(network, size, channels=3):
    """Move BatchNorm statistics and parameters off their initial values, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    for _ in range(3):
        network(torch.randn(8, channels, size, size, generator=generator))
    return network


@pytest.mark.parametrize(("size", "channels", "seed"), [(8, 1, 0), (13, 3, 1), (32, 3, 2), (64, 3, 3)])
def test_derived_network_computes_the_same_function(size, channels, seed):
    search = CellSearchNetwork(channels, 4, size, cells=3, channels=4, seed=seed)
    trained_statistics(search, size, channels).eval()
    derived = search.derive()
    images = torch.randn(5, channels, size, size)
    torch.testing.assert_close(derived(images), search(images), rtol=0, atol=1e-5)
    assert not any("codes" in name for name in derived.state_dict())
    search.train()
    torch.testing.assert_close(search.derive()(images), search(images), rtol=0, atol=1e-4)


def test_deriving_leaves_the_search_network_alone():
    search = trained_statistics(CellSearchNetwork(1, 3, 8, cells=3, channels=4), 8, 1).eval()
    images = torch.randn(4, 1, 8, 8)
    before = search(images)
    with torch.no_grad():
        for parameter in search.derive().parameters():
            parameter.zero_()
    assert torch.equal(search(images), before)


def test_only_the_chosen_operations_are_computed():
    search = CellSearchNetwork(1, 3, 8, cells=3, channels=4)
    search(torch.randn(4, 1, 8, 8)).sum().backward()
    chosen = {
        f"cells.{i}.nodes.{n}.{source}-{name}."
        for i, reduces in enumerate(search.reductions)
        for n, node in enumerate(search.genotype.reduction if reduces else search.genotype.normal)
        for source, name in node
    }
    for name, parameter in search.named_parameters():
        if ".nodes." in name:
            assert (parameter.grad is not None) == any(name.startswith(prefix) for prefix in chosen), name
    assert search.codes.compressed.grad is not None
    assert search.codes.compressed.grad.abs().min() > 0


def test_recovery_changes_the_network_that_runs():
    search = CellSearchNetwork(1, 3, 8, cells=3, channels=4).eval()
    images, before = torch.randn(2, 1, 8, 8), search.genotype
    with torch.no_grad():
        search.codes.compressed.neg_().add_(torch.randn(search.codes.compressed.shape))
    change = search.codes.recover(tolerance=0.0).change
    assert len(change) == 8
    assert min(change) > 0
    assert search.genotype != before
    torch.testing.assert_close(search.derive()(images), search(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(8, 8), (20, 20), (28, 14), (32, 16), (64, 16), (96, 12), (224, 14)])
def test_stem_follows_the_image_size(size, expected):
    network = CellSearchNetwork(3, 2, size, cells=1, channels=2, resolution=20)
    assert network.stem(torch.zeros(1, 3, size, size)).shape[2:] == (expected, expected)


def test_network_is_rebuilt_from_its_genotype_alone():
    derived = CellSearchNetwork(3, 4, 16, cells=4, channels=4, seed=7).derive().eval()
    again = CellNetwork(derived.genotype, 3, 4, 16).eval()
    again.load_state_dict(derived.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images), derived(images))


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_search_starts_with_what_is_cheap_on_the_older_input(nodes):
    genotype = CellSearchNetwork(3, 10, 32, cells=3, channels=4, nodes=nodes).genotype
    assert [sorted(node) for node in genotype.normal] == [[(0, "skip"), (1, "separable_3x3")]] * nodes
    assert [sorted(node) for node in genotype.reduction] == [[(0, "max_pool_3x3"), (1, "separable_3x3")]] * nodes
