import pytest
import torch
from torch import nn

from dha.architecture import Scale, SparseChoice, Sum, derive, sparse_codes


def convolutions(names, channels=3):
    """Candidates that end in BatchNorm, whose statistics are off their initial values."""
    candidates = {}
    for name in names:
        norm = nn.BatchNorm2d(channels)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias)
        candidates[name] = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), norm)
        candidates[name](torch.randn(8, channels, 6, 6))
    return candidates


@pytest.mark.parametrize("choose", [1, 2])
@pytest.mark.parametrize("gradient", ["one_step", "implicit"])
def test_only_chosen_candidates_and_the_code_get_gradients(choose, gradient):
    choice = SparseChoice(convolutions("abcdef"), choose=choose, gradient=gradient, seed=1)
    choice(torch.randn(4, 3, 6, 6)).square().sum().backward()
    assert len(choice.chosen()) == len(set(choice.chosen())) == choose
    for name, candidate in choice.candidates.items():
        grads = [parameter.grad is not None for parameter in candidate.parameters()]
        assert all(grads) if name in choice.chosen() else not any(grads)
    gradient_of_code = choice.codes.compressed.grad
    assert gradient_of_code is not None
    assert gradient_of_code.abs().sum() > 0


def test_only_chosen_candidates_are_computed():
    candidates = convolutions("abc")
    choice, calls = SparseChoice(candidates, start=["b"]), []
    for name, candidate in candidates.items():
        candidate.register_forward_hook(lambda *_, name=name: calls.append(name))
    choice(torch.zeros(2, 3, 6, 6))
    assert calls == ["b"]


@pytest.mark.parametrize(
    "start",
    [
        ["a"],
        ["d"],
        ["b", "d"],
    ],
)
def test_start_names_are_honoured_at_full_weight(start):
    for seed in range(20):
        choice = SparseChoice(convolutions("abcdef"), choose=len(start), start=start, seed=seed)
        assert set(choice.chosen()) == set(start)
        # Two columns are not orthogonal, so that each has a part in the other's weight.
        torch.testing.assert_close(
            choice.codes.weights().detach(), torch.ones(1, len(start)), rtol=0, atol=1e-5 if len(start) == 1 else 0.5
        )


def test_unknown_start_name():
    with pytest.raises(ValueError, match="'z' is not in list"):
        SparseChoice(convolutions("abc"), start=["z"])


def test_candidates_that_cannot_absorb_a_weight_get_a_scale():
    candidates = {
        "conv": nn.Conv2d(3, 3, 1),
        "relu": nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()),
        "norm": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        "scale": nn.Sequential(nn.ReLU(), Scale()),
        "identity": nn.Identity(),
        "fixed": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)),
        "nothing": nn.Sequential(),
    }
    choice = SparseChoice(candidates)
    for name, candidate in choice.candidates.items():
        assert isinstance(candidate, nn.Sequential)
        assert (candidate is candidates[name]) == (name in ("norm", "scale"))
        assert isinstance(candidate[-1], nn.BatchNorm2d if name == "norm" else Scale)
    images = torch.randn(2, 3, 4, 4)
    for name in candidates:
        chosen = SparseChoice(candidates, start=[name]).eval()
        with torch.no_grad():
            chosen.codes.compressed.mul_(-0.7)
        assert chosen.codes.weights().item() != pytest.approx(1)
        torch.testing.assert_close(chosen.derive()(images), chosen(images))


class Users(nn.Module):
    """A network of someone's own, with choices at several depths."""

    def __init__(self):
        super().__init__()
        self.first = SparseChoice(convolutions("abc"), choose=2, seed=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Sequential(SparseChoice(convolutions("abcdefg"), seed=2), nn.ReLU()))
        self.shapes = nn.ModuleDict({"plain": nn.Conv2d(3, 3, 1), "chosen": SparseChoice(convolutions("ab"), seed=3)})

    def forward(self, x):
        x = self.body(x + self.first(x))
        return self.shapes["plain"](x) + self.shapes["chosen"](x)


def test_every_choice_of_a_module_is_derived():
    network, images = Users().eval(), torch.randn(4, 3, 6, 6)
    before = network(images)
    derived = derive(network)
    torch.testing.assert_close(derived(images), before, rtol=0, atol=1e-5)
    assert sum(isinstance(module, Sum) for module in derived.modules()) == 3
    assert not sparse_codes(derived)
    assert not derived.training
    with torch.no_grad():
        for parameter in derived.parameters():
            parameter.zero_()
    assert torch.equal(network(images), before)


def test_a_choice_inside_of_a_choice_and_one_in_two_places_are_derived():
    inner = SparseChoice(convolutions("ab"), seed=5)
    outer = SparseChoice({"inner": nn.Sequential(inner), **convolutions("c")}, start=["inner"], seed=6)
    network = nn.Sequential(outer, nn.ReLU(), outer).eval()
    images, derived = torch.randn(2, 3, 6, 6), derive(network)
    assert isinstance(derived, nn.Sequential)
    assert derived[0] is derived[2]
    assert not sparse_codes(derived)
    torch.testing.assert_close(derived(images), network(images))


def test_a_choice_that_is_the_whole_network_is_derived():
    choice, images = SparseChoice(convolutions("abc"), seed=4).eval(), torch.randn(2, 3, 6, 6)
    derived = derive(choice)
    assert not sparse_codes(derived)
    torch.testing.assert_close(derived(images), choice(images))
