import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dha.architecture import SIZES, CellSearchNetwork, Size, SparseChoice, derive, search_network, sparse_codes
from dha.architecture.costs import candidate_costs, count
from dha.architecture.sparse import best_on_distinct_edges


def network_of(space, side, channels=3, choose=1):
    return search_network(space, channels, 5, side, Size(8, 3 if space == "cells" else 2, 40), nodes=3, choose=choose)


def choose_at_random(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for codes in sparse_codes(network):
        scores = torch.rand(codes.real.shape, generator=generator).masked_fill(~codes.real, -1)
        codes.take(best_on_distinct_edges(scores, codes.operations, codes.choose))


def predicted(network, costs, rest):
    chosen = [codes.chosen for codes in sparse_codes(network)]
    return tuple(
        part + sum(int(getattr(cost, name).gather(1, c).sum()) for cost, c in zip(costs, chosen, strict=True))
        for part, name in zip(rest, ("parameters", "flops"), strict=True)
    )


def layer_by_layer(network, shape):
    """Multiply-adds from the shapes of weights and outputs."""
    total = 0

    def add(layer, args, output):
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    network.eval()(torch.zeros(1, *shape))
    return total


@pytest.mark.parametrize("space", SIZES)
def test_counts_are_those_of_torch(space):
    # At this size no kernel reaches over a whole image, where on a CPU its outer taps are not computed.
    network, shape = network_of(space, 40), (3, 40, 40)
    choose_at_random(network, 1)
    plain = derive(network).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(torch.zeros(1, *shape))
    assert count(plain, shape) == (sum(p.numel() for p in plain.parameters()), counter.get_total_flops() // 2)


@pytest.mark.parametrize(("side", "channels", "choose"), [(8, 1, 1), (13, 3, 2)])
@pytest.mark.parametrize("space", SIZES)
def test_costs_of_candidates_add_up_to_that_of_the_derived_network(space, side, channels, choose):
    network, shape = network_of(space, side, channels, choose), (channels, side, side)
    costs, rest = candidate_costs(network, shape)
    for seed in range(2):
        choose_at_random(network, seed)
        plain = derive(network)
        assert predicted(network, costs, rest) == count(plain, shape)
        assert predicted(network, costs, rest)[1] == layer_by_layer(plain, shape)
    assert all((getattr(c, name) >= 0).all() for c in costs for name in ("parameters", "flops"))


def test_what_is_chosen_while_counting_makes_no_difference():
    network = network_of("cells", 8)
    first = candidate_costs(network, (3, 8, 8))
    choose_at_random(network, 3)
    second = candidate_costs(network, (3, 8, 8))
    assert first[1] == second[1]
    assert all(torch.equal(getattr(first[0][0], n), getattr(second[0][0], n)) for n in ("parameters", "flops"))


def test_candidates_without_weights_and_padding():
    network = network_of("cells", 8)
    (cost,), _ = candidate_costs(network, (3, 8, 8))
    edges = cost.weightless.unflatten(1, (-1, 7))
    assert edges[0, :2].tolist() == [[True, True, True, False, False, False, False]] * 2
    # In a reduction cell the skip of an outer input is a convolution, that of a node is not.
    assert edges[4, :, 2].tolist() == [False, False, True, False]
    padding = ~sparse_codes(network)[0].real
    assert padding.any()
    assert not any(getattr(cost, name)[padding].any() for name in ("parameters", "flops", "weightless"))
    costs, _ = candidate_costs(network_of("residual", 8), (3, 8, 8))
    assert [c.weightless.tolist() for c in costs] == [[[False] * 6 + [True]]] * 6


def test_a_kind_of_cell_that_is_not_there_costs_nothing():
    network = CellSearchNetwork(1, 2, 8, cells=2, channels=4, nodes=2)
    (cost,), rest = candidate_costs(network, (1, 8, 8))
    assert not any(getattr(cost, name)[:2].any() for name in ("parameters", "flops", "weightless"))
    assert predicted(network, [cost], rest) == count(derive(network), (1, 8, 8))


def test_counting_leaves_the_network_alone():
    network = network_of("residual", 8).train()
    next(network.children()).eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    draws = torch.get_rng_state()
    candidate_costs(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), draws)


class Twice(nn.Module):
    """One choice in two places, whose second candidate holds another choice."""

    def __init__(self):
        super().__init__()
        inner = SparseChoice({"wide": nn.Conv2d(3, 3, 5, padding=2), "narrow": nn.Conv2d(3, 3, 1)}, start=["wide"])
        candidates = {"plain": nn.Conv2d(3, 3, 3, padding=1), "nested": nn.Sequential(nn.Conv2d(3, 3, 1), inner)}
        self.choice = SparseChoice(candidates, start=["nested"])
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.choice(self.choice(x)).mean((2, 3)))


def test_a_choice_inside_of_another_and_in_two_places():
    network, shape = Twice(), (3, 6, 6)
    costs, rest = candidate_costs(network, shape)
    assert predicted(network, costs, rest) == count(derive(network), shape)
    assert [c.parameters.tolist() for c in costs] == [[[228 + 1, 12 + 1]], [[84 + 1, 12 + 1]]]
    assert [c.flops.tolist() for c in costs] == [[[2 * 36 * 225, 2 * 36 * 9]], [[2 * 36 * 81, 2 * 36 * 9]]]
    network.choice.codes.take(torch.tensor([[0]]))
    assert all(a >= b for a, b in zip(predicted(network, costs, rest), count(derive(network), shape), strict=True))


class Awkward(nn.Module):
    """Has weights that two layers share, a branch that depends on values, and a tensor it does not register."""

    def __init__(self):
        super().__init__()
        self.first, self.offset = nn.Linear(12, 12), torch.ones(12)
        self.choice = SparseChoice({"tied": nn.Linear(12, 12), "skip": nn.Identity()})
        next(self.choice.candidates["tied"].children()).weight = self.first.weight

    def forward(self, x):
        x = self.first(x.flatten(1)) + self.offset
        return self.choice(x if x.sum().item() else -x)


def test_a_network_that_cannot_run_without_values_is_counted_too():
    network, shape = Awkward(), (3, 2, 2)
    (cost,), rest = candidate_costs(network, shape)
    assert rest == (144 + 12, 144)
    assert (cost.parameters.tolist(), cost.flops.tolist()) == ([[12 + 1, 1]], [[144, 0]])
    assert cost.weightless.tolist() == [[False, True]]


def test_attention_is_counted_however_a_device_computes_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    # Four projections, two products of attention, two layers; 5 tokens.
    assert count(nn.Sequential(nn.Flatten(2), layer), (5, 2, 4))[1] == 5 * 4 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16


def test_weights_under_two_names_stay_where_they_are():
    shared = nn.Conv2d(3, 3, 1, bias=False)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    assert count(network, (3, 4, 4)) == (9, 2 * 16 * 9)
    assert shared.weight.device.type == "cpu"
