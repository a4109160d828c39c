import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from dha.architecture import SparseCodes, lasso


def objective(dictionary, target, code, penalty):
    residual = dictionary @ code - target
    return 0.5 * residual @ residual + penalty * np.abs(code).sum()


@torch.no_grad()
def differences(value, point, step):
    """Return the gradient of a function of a tensor by central differences."""
    gradient = torch.zeros_like(point)
    for index in np.ndindex(*point.shape):
        point[index] += step
        above = value()
        point[index] -= 2 * step
        below = value()
        point[index] += step
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("penalty", [0.01, 0.1, 0.3])
@pytest.mark.parametrize(("size", "candidates"), [(2, 14), (7, 35), (7, 5)])
def test_lasso_reaches_the_objective_of_scikit_learn(penalty, size, candidates):
    generator = torch.Generator().manual_seed(size * candidates)
    dictionary = torch.nn.functional.normalize(
        torch.randn(8, size, candidates, generator=generator, dtype=torch.float64), dim=1
    )
    target = torch.randn(8, size, generator=generator, dtype=torch.float64)
    codes = lasso(dictionary, target, penalty)
    for a, b, z in zip(dictionary.numpy(), target.numpy(), codes.numpy(), strict=True):
        # scikit-learn divides the squared error by the number of rows.
        oracle = Lasso(alpha=penalty / size, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(a, b).coef_
        assert abs(objective(a, b, z, penalty) - objective(a, b, oracle, penalty)) < 1e-6


def test_lasso_leaves_padding_columns_at_zero():
    dictionary = torch.randn(2, 4, 6, dtype=torch.float64)
    dictionary[0, :, 3:] = 0
    code = lasso(dictionary, torch.randn(2, 4, dtype=torch.float64), 0.05)
    assert (code[0, 3:] == 0).all()
    assert code[0, :3].abs().sum() > 0


@pytest.mark.parametrize("seed", range(5))
def test_choices_are_distinct_real_edges_and_the_largest_coefficients(seed):
    codes = SparseCodes([2, 3, 4, 5], operations=7, seed=seed)
    for node, (edges, chosen) in enumerate(zip([2, 3, 4, 5], codes.choices(), strict=True)):
        assert len({edge for edge, _ in chosen}) == 2
        assert all(0 <= edge < edges and 0 <= operation < 7 for edge, operation in chosen)
        magnitude = codes.code[node].abs()
        first = chosen[0][0] * 7 + chosen[0][1]
        assert magnitude[first] == magnitude.max()
        elsewhere = magnitude.clone()
        elsewhere[chosen[0][0] * 7 : chosen[0][0] * 7 + 7] = 0
        assert magnitude[chosen[1][0] * 7 + chosen[1][1]] == elsewhere.max()


def test_every_operation_of_every_edge_can_be_chosen():
    seen = {choice for seed in range(300) for choice in SparseCodes([2], operations=7, seed=seed).choices()[0]}
    assert seen == {(edge, operation) for edge in range(2) for operation in range(7)}


def test_weight_gradient_against_finite_differences_on_a_fixed_support():
    codes = SparseCodes([2, 3], operations=4, seed=1).double()
    coefficients = torch.randn(2, 2, dtype=torch.float64)

    def value() -> torch.Tensor:
        return (coefficients * codes.weights().square()).sum()

    value().backward()
    assert codes.compressed.grad is not None
    torch.testing.assert_close(codes.compressed.grad, differences(value, codes.compressed, 1e-6), rtol=1e-5, atol=1e-8)


def test_implicit_weights_are_the_solution_of_the_lasso():
    codes = SparseCodes([4, 4], operations=5, penalty=0.1, gradient="implicit", seed=3)
    chosen = codes.code.gather(1, codes.chosen)
    support = chosen != 0
    assert support.any()
    torch.testing.assert_close(codes.weights()[support], chosen[support], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_implicit_gradient_against_finite_differences_of_the_lasso(seed):
    codes = SparseCodes([3, 4], operations=4, size=5, penalty=0.05, gradient="implicit", seed=seed).double()
    codes.recover(tolerance=0.0)
    support = codes.code.gather(1, codes.chosen) != 0
    assert support.any()
    coefficients = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * support

    def value() -> torch.Tensor:
        # Solved anew: an oracle that knows nothing of the formula of the weights.
        return (coefficients * lasso(codes.dictionary, codes.compressed.detach(), 0.05).gather(1, codes.chosen)).sum()

    (coefficients * codes.weights()).sum().backward()
    gradient = codes.compressed.grad
    assert gradient is not None
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(gradient, differences(value, codes.compressed, 1e-5), rtol=1e-3, atol=1e-4)


def test_the_search_starts_where_it_is_told():
    codes = SparseCodes([3, 3], operations=4, start=[[1, 6], [9, 2]])
    assert [sorted(node) for node in codes.choices()] == [[(0, 1), (1, 2)], [(0, 2), (2, 1)]]


def test_weights_on_the_support_are_the_code_plus_the_soft_threshold():
    codes = SparseCodes([4, 4], operations=5, penalty=0.1, seed=3)
    weights, chosen = codes.weights(), codes.code.gather(1, codes.chosen)
    support = chosen != 0
    assert support.any()
    torch.testing.assert_close(weights[support], (chosen + 0.1 * chosen.sign())[support], rtol=1e-4, atol=1e-5)


def test_recovery_follows_the_compressed_code_and_freezes_what_rests():
    codes = SparseCodes([3, 3], operations=4, seed=0)
    before = codes.choices()
    target = next(i for i in range(12) if divmod(i, 4) not in before[0])
    with torch.no_grad():
        codes.compressed[0] = 2 * codes.dictionary[0, :, target]
    recovery = codes.recover(tolerance=1e-3)
    assert recovery.change[0] > 0.1
    assert recovery.change[1] == pytest.approx(0, abs=1e-6)
    assert recovery.frozen == [False, True]
    assert codes.choices()[0][0] == divmod(target, 4)

    kept = codes.choices()[1]
    with torch.no_grad():
        codes.compressed[1] = -3 * codes.dictionary[1, :, 0]
    assert codes.recover(tolerance=0.0).change[1] == 0
    assert codes.choices()[1] == kept


def test_frozen_nodes_get_no_gradient():
    codes = SparseCodes([2, 2], operations=3)
    codes.frozen[1] = True
    codes.weights().sum().backward()
    codes.stop_frozen_gradients()
    assert codes.compressed.grad is not None
    assert codes.compressed.grad[0].abs().sum() > 0
    assert (codes.compressed.grad[1] == 0).all()


def test_seed_decides_dictionaries_and_codes():
    one, two, other = SparseCodes([2], 7, seed=4), SparseCodes([2], 7, seed=4), SparseCodes([2], 7, seed=5)
    assert torch.equal(one.dictionary, two.dictionary)
    assert torch.equal(one.compressed, two.compressed)
    assert not torch.equal(one.dictionary, other.dictionary)
    torch.testing.assert_close(one.dictionary.norm(dim=1), torch.ones(1, 14))


def test_a_node_cannot_choose_more_edges_than_it_has():
    with pytest.raises(ValueError, match="1 edges cannot choose 2"):
        SparseCodes([1, 2], operations=3)
