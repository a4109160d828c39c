import copy

import torch

from dha.engine import make_fabric
from dha.skipping import SkippedSteps

FINE, BROKEN = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])


def test_a_step_is_sound_if_all_its_losses_are_finite():
    skipped = SkippedSteps(make_fabric("cpu", "32", 8))
    sound = [bool(skipped.sound(losses)) for losses in (FINE, BROKEN, FINE, torch.tensor([torch.inf]))]
    assert sound == [True, False, True, False]
    assert int(skipped.total) == 2


def test_the_host_hears_one_look_late():
    skipped = SkippedSteps(make_fabric("cpu", "32", 8))
    seen = []
    for losses in (BROKEN, BROKEN, FINE, BROKEN, FINE, FINE):
        skipped.sound(losses)
        seen.append(skipped.look())
    assert seen == [0, 1, 1, 0, 1, 0]
    assert skipped.recently == 0


def test_its_state_goes_on_where_it_was():
    first, second = (SkippedSteps(make_fabric("cpu", "32", 8)) for _ in range(2))
    first.sound(BROKEN)
    first.look()
    first.sound(BROKEN)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (int(second.total), second.recently) == (2, 0)
    assert [skipped.look() for skipped in (first, second)] == [1, 1]
    assert [skipped.look() for skipped in (first, second)] == [1, 1]
