import json

import pytest
import torch
from torch import nn

from dha.architecture import (
    BlockGenotype,
    Size,
    SparseChoice,
    derive,
    plain_network,
    recover,
    search_network,
    sparse_codes,
)
from dha.errors import DhaError

SIZE = Size(4, 2, 40)


def blocks(network):
    assert isinstance(network.genotype, BlockGenotype)
    return network.genotype.blocks


def searching(space, channels, image_size, **settings):
    """A search network with random codes and BatchNorms that are off their initial values, in evaluation mode."""
    network = search_network(space, channels, 5, image_size, SIZE, **settings)
    generator = torch.Generator().manual_seed(5)
    codes = sparse_codes(network)
    with torch.no_grad():
        for code in codes:
            code.compressed.copy_(torch.randn(code.compressed.shape, generator=generator))
        recover(codes, tolerance=0.0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.9
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
        for _ in range(2):
            network(torch.randn(8, channels, image_size, image_size, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    ("size", "channels", "gradient"),
    [(8, 1, "one_step"), (13, 3, "implicit"), (32, 3, "implicit"), (64, 3, "one_step")],
)
@pytest.mark.parametrize(("space", "choose"), [("residual", 1), ("residual", 2), ("mobile", 1)])
def test_derived_and_rebuilt_networks_compute_the_same_function(space, choose, size, channels, gradient):
    search = searching(space, channels, size, choose=choose, gradient=gradient, seed=size)
    derived = derive(search)
    images = torch.randn(4, channels, size, size)
    torch.testing.assert_close(derived(images), search(images), rtol=0, atol=1e-5)
    assert not sparse_codes(derived)

    rebuilt = plain_network(json.loads(json.dumps(search.genotype.to_dict())), channels, 5, size).eval()
    rebuilt.load_state_dict(derived.state_dict())
    assert rebuilt.genotype == search.genotype
    assert torch.equal(rebuilt(images), derived(images))


@pytest.mark.parametrize("space", ["residual", "mobile"])
def test_a_derived_network_trains_on_without_the_search_network(space):
    search = searching(space, 1, 8).train()
    derived = derive(search)
    assert derived.training
    images, before = torch.randn(4, 1, 8, 8), derive(search.eval())(torch.zeros(2, 1, 8, 8))
    derived(images).sum().backward()
    assert all(parameter.grad is not None for parameter in derived.parameters())
    with torch.no_grad():
        for parameter in derived.parameters():
            parameter.zero_()
    assert torch.equal(derive(search)(torch.zeros(2, 1, 8, 8)), before)


@pytest.mark.parametrize(
    ("space", "reference"),
    [
        ("residual", ["pair_3x3", "pair_3x3", "skip", "pair_3x3", "single_5x5", "pair_3x3"]),
        ("mobile", ["k3_e3"] * 11),
    ],
)
def test_a_search_starts_from_the_reference_with_dictionaries_of_its_own(space, reference):
    network = search_network(space, 3, 5, 8, SIZE._replace(depth=2), choose=1)
    assert [name for block in blocks(network) for name in block] == reference
    dictionaries = [code.dictionary for code in sparse_codes(network)]
    pairs = [(a, b) for i, a in enumerate(dictionaries) for b in dictionaries[:i] if a.shape == b.shape]
    assert pairs
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_a_layer_of_the_mobile_space_is_one_candidate():
    assert {len(block) for block in blocks(search_network("mobile", 3, 5, 8, SIZE, choose=3))} == {1}


def test_genotype_reads_as_people_write_architectures():
    text = str(BlockGenotype("residual", (("pair_3x3", "skip"), ("inverted_3x3",)), 16, 1, 40))
    assert text.splitlines() == [
        "residual network, 16 channels, depth 1",
        "  block 0: pair_3x3 + skip",
        "  block 1: inverted_3x3",
    ]


RESIDUAL = {"space": "residual", "width": 2, "depth": 1, "resolution": 40, "blocks": [["skip"]] * 3}
MOBILE = {"space": "mobile", "width": 2, "depth": 1, "resolution": 40, "blocks": [["k3_e3"]] * 6}


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        ({**RESIDUAL, "space": "spiral"}, "'spiral': this dha knows cells, residual, mobile"),
        ({**RESIDUAL, "space": ["mobile"]}, "this dha knows"),
        ({"space": "residual"}, "not a genotype of blocks"),
        ({**RESIDUAL, "blocks": None}, "not a genotype of blocks"),
        ({**RESIDUAL, "width": "wide"}, "not a genotype of blocks"),
        ({**RESIDUAL, "width": 0}, r"\[0, 1, 40\]: expected 1..4096"),
        ({**RESIDUAL, "depth": 1001}, "1001"),
        ({**MOBILE, "resolution": 3}, r"\[2, 1, 3\]"),
        ({**RESIDUAL, "blocks": [["skip"]] * 2}, "block None"),
        ({**MOBILE, "blocks": [["k3_e3"]] * 5}, "block None"),
        ({**RESIDUAL, "blocks": [["skip"]] * 4}, "4 blocks: expected 3"),
        ({**MOBILE, "blocks": [["k3_e3"]] * 7}, "7 blocks: expected 6"),
        ({**RESIDUAL, "blocks": [["skip"], [], ["skip"]]}, r"block \(\)"),
        ({**RESIDUAL, "blocks": [["skip"], ["skip", "k3_e3"], ["skip"]]}, "expected some of pair_3x3"),
        ({**RESIDUAL, "blocks": [["skip"], ["skip", "skip"], ["skip"]]}, "twice"),
        # The first layer of a stage changes the number of channels: it cannot be skipped.
        ({**MOBILE, "blocks": [["skip"]] + [["k3_e3"]] * 5}, r"'skip'.*expected some of k3_e6"),
    ],
)
def test_tampered_genotype_is_refused(genotype, message):
    with pytest.raises(DhaError, match=message):
        plain_network(genotype, 3, 5, 64)


def test_untampered_genotypes_are_not_refused():
    for genotype in (RESIDUAL, MOBILE):
        assert blocks(plain_network(genotype, 3, 5, 64)) == tuple(map(tuple, genotype["blocks"]))


def test_unknown_space_is_refused_before_a_search():
    with pytest.raises(DhaError, match="spiral"):
        search_network("spiral", 3, 5, 8, SIZE)


def test_blocks_are_counted_where_they_are_chosen():
    network = search_network("residual", 3, 5, 8, SIZE)
    assert len(blocks(network)) == sum(isinstance(m, SparseChoice) for m in network.modules()) == 6
