import copy

import pytest
import torch

from dha.engine import make_fabric
from dha.skipping import SkippedSteps

FINE, BROKEN = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])
GRADIENTS = [torch.ones(2, 3), torch.zeros(4)]


@pytest.fixture
def skipped():
    return SkippedSteps(make_fabric("cpu", "32", 8))


def test_a_step_is_sound_if_all_its_losses_are_finite(skipped):
    sound = [bool(skipped.sound(losses, GRADIENTS)) for losses in (FINE, BROKEN, FINE, torch.tensor([torch.inf]))]
    assert sound == [True, False, True, False]
    assert skipped.counts.tolist() == [2, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_step_whose_gradient_is_not_finite_is_not_sound(skipped, value):
    assert not skipped.sound(FINE, [torch.ones(2, 3), torch.tensor([0.0, value])])
    assert not skipped.sound(BROKEN, [torch.ones(2, 3), torch.tensor([0.0, value])])
    assert skipped.sound(FINE, GRADIENTS)
    assert skipped.counts.tolist() == [2, 1], "one of them with a finite loss"


def test_the_host_hears_one_look_late(skipped):
    seen, unseen = [], []
    for losses in (BROKEN, BROKEN, FINE, BROKEN, FINE, FINE):
        skipped.sound(losses, GRADIENTS)
        seen.append(skipped.look())
        unseen.append(skipped.unseen())
    assert seen == [0, 1, 1, 0, 1, 0]
    assert unseen == [1, 1, 0, 1, 0, 0]
    assert skipped.recently == 0


def test_its_state_goes_on_where_it_was(skipped):
    again = SkippedSteps(make_fabric("cpu", "32", 8))
    skipped.sound(BROKEN, GRADIENTS)
    skipped.look()
    skipped.sound(BROKEN, GRADIENTS)
    again.load_state_dict(copy.deepcopy(skipped.state_dict()))
    assert (int(again.counts[0]), again.recently) == (2, 0)
    assert [s.look() for s in (skipped, again)] == [1, 1]
    assert [s.look() for s in (skipped, again)] == [1, 1]


def test_after_a_reset_what_was_skipped_before_is_not_told_again(skipped):
    for _ in range(3):
        skipped.sound(BROKEN, GRADIENTS)
    skipped.look()
    skipped.reset(skipped.counts.clone())
    assert (int(skipped.counts[0]), skipped.unseen()) == (3, 0)
    assert [skipped.look() for _ in range(3)] == [0, 0, 0]
