import pytest
import torch

from dha.architecture import DropPath, MobileNetwork, ResidualNetwork, drop_factors, drop_paths, dropping, referred
from dha.architecture.blocks import searched, written
from dha.architecture.mobile import InvertedResidual
from dha.architecture.residual import Residual


def test_factors_drop_with_their_probability_and_have_mean_one():
    uniforms = torch.rand(3, 4000)
    factors = drop_factors(uniforms, 0.2)
    assert factors.unique().tolist() == [0.0, 1.25]
    assert (factors == 0).float().mean(1).tolist() == pytest.approx([0.2] * 3, abs=0.02)
    assert (drop_factors(uniforms, 0.3)[factors == 0] == 0).all()
    assert torch.equal(drop_factors(uniforms, 0.0), torch.ones(3, 4000))


def test_a_dropped_branch_adds_nothing_and_a_kept_one_more():
    block, images = Residual(3, written([["skip"]])), torch.randn(2, 3, 4, 4)
    paths = drop_paths(block)
    with dropping(paths, torch.tensor([[0.0, 1.25]])):
        dropped, kept = block(images)
    torch.testing.assert_close(dropped, torch.relu(images[0]))
    torch.testing.assert_close(kept, torch.relu(2.25 * images[1]))
    with pytest.raises(ZeroDivisionError), dropping(paths, torch.tensor([[0.0, 0.0]])):
        raise ZeroDivisionError
    torch.testing.assert_close(block(images), torch.relu(2 * images))


def test_blocks_that_add_to_their_input_can_drop_and_models_know_nothing_of_it():
    residual = ResidualNetwork(3, 5, 16, searched(), width=2, depth=2)
    mobile = MobileNetwork(3, 5, 32, referred, width=4)
    assert len(drop_paths(residual)) == 6
    assert len(drop_paths(mobile)) == sum(m.adds for m in mobile.modules() if isinstance(m, InvertedResidual)) == 10
    assert not DropPath().state_dict()
