import copy

import pytest
import torch

from dha.architecture import Recovery, Size, SparseCodes, recover, search_network, sparse_codes


def codes_of_several_kinds(gradient):
    return [
        SparseCodes([2, 3, 4, 5], 7, choose=2, size=7, penalty=0.1, gradient=gradient, seed=1),
        SparseCodes([7], 1, choose=1, size=4, penalty=0.3, gradient=gradient, seed=2),
        SparseCodes([2], 1, choose=2, size=1, penalty=0.02, gradient=gradient, seed=3),
        SparseCodes([6], 1, choose=3, size=9, penalty=0.05, gradient=gradient, seed=4),
    ]


def moved(codes):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for c in codes:
            c.compressed.copy_(torch.randn(c.compressed.shape, generator=generator))
    return codes


@pytest.mark.parametrize("gradient", ["one_step", "implicit"])
def test_recovering_all_at_once_is_recovering_each(gradient):
    together = moved(codes_of_several_kinds(gradient))
    alone = copy.deepcopy(together)
    recoveries = recover(together, tolerance=0.5)
    assert len(recoveries) == len(alone)
    for all_at_once, mine, one in zip(recoveries, together, alone, strict=True):
        own = one.recover(tolerance=0.5)
        assert isinstance(all_at_once, Recovery)
        assert all_at_once.change == pytest.approx(own.change, abs=1e-6)
        assert all_at_once.frozen == own.frozen
        torch.testing.assert_close(mine.code, one.code, rtol=0, atol=1e-6)
        assert mine.choices() == one.choices()
        torch.testing.assert_close(mine.weights(), one.weights(), rtol=0, atol=1e-5)


def test_frozen_nodes_keep_code_and_choice():
    codes = codes_of_several_kinds("one_step")
    codes[0].frozen[1:3] = True
    codes[1].frozen[:] = True
    before = copy.deepcopy(codes)
    recoveries = recover(moved(codes), tolerance=0.0)
    assert recoveries[0].frozen == [False, True, True, False]
    assert recoveries[1] == Recovery([0.0], [True])
    for node in (1, 2):
        assert recoveries[0].change[node] == 0
        assert torch.equal(codes[0].code[node], before[0].code[node])
        assert codes[0].choices()[node] == before[0].choices()[node]
    assert codes[1].choices() == before[1].choices()
    assert codes[0].choices() != before[0].choices()
    assert min(recoveries[0].change[0], recoveries[3].change[0]) > 0


def test_what_rests_freezes():
    codes = codes_of_several_kinds("one_step")
    with torch.no_grad():
        codes[1].compressed.neg_()
    recoveries = recover(codes, tolerance=1e-3)
    assert [all(r.frozen) for r in recoveries] == [True, False, True, True]
    assert all(all(r.frozen) for r in recover(codes, tolerance=1e-3))


def test_codes_of_a_network_are_found_and_change_what_runs():
    network = search_network("mobile", 1, 3, 8, Size(4, 2, 224)).eval()
    codes, images, before = sparse_codes(network), torch.randn(2, 1, 8, 8), network.genotype
    assert len(codes) == 11
    with torch.no_grad():
        logits = network(images)
        recover(moved(codes), tolerance=0.0)
        assert network.genotype != before
        assert not torch.equal(network(images), logits)
