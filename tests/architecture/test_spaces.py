import pytest
import torch
from torch import nn

from dha import DhaError
from dha.architecture import SIZES, Size, derive, plain_network, search_network


@pytest.mark.parametrize("start", ["light", "heavy", "random"])
@pytest.mark.parametrize("space", SIZES)
def test_a_genotype_makes_the_network_that_was_derived_again(space, start):
    search = search_network(space, 3, 5, 16, Size(4, 2, 16), nodes=2, start=start, seed=3)
    search(torch.randn(4, 3, 16, 16))
    plain = derive(search.eval())
    again = plain_network(search.genotype.to_dict(), 3, 5, 16).eval()
    again.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images), plain(images))
    torch.testing.assert_close(plain(images), search(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("space", SIZES)
def test_the_start_depends_on_the_seed_where_it_is_random(space):
    def genotype(start, seed):
        return search_network(space, 3, 5, 16, Size(4, 2, 16), nodes=2, start=start, seed=seed).genotype

    assert genotype("random", 0) == genotype("random", 0)
    assert len({str(genotype("random", seed)) for seed in range(5)}) > 1
    assert len({tuple(sorted(str(genotype("light", seed)).split())) for seed in range(5)}) == 1, "but for the order"


def test_unknown_spaces_are_named():
    with pytest.raises(DhaError, match="space 'dense': this dha knows cells, residual, mobile"):
        search_network("dense", 3, 5, 16, Size(4, 2, 16))
    genotype = search_network("residual", 3, 5, 16, Size(4, 1, 16)).genotype.to_dict()
    with pytest.raises(DhaError, match="space 'dense'"):
        plain_network({**genotype, "space": "dense"}, 3, 5, 16)


@pytest.mark.parametrize("space", ["cells", "residual", "mobile"])
@pytest.mark.parametrize("plain", [False, True])
def test_gradients_reach_batch_norms_as_these_take_them_fastest(space, plain):
    network = search_network(space, 3, 10, 32, Size(8, 3, 32))
    network = (derive(network) if plain else network).to(memory_format=torch.channels_last)  # pyright: ignore
    seen = []

    def watch(module, inputs, output):
        output.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last)))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(watch)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network(images).square().sum().backward()
    assert len(seen) >= 7
    assert all(seen)
