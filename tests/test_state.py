import pytest

from dha.data import Preprocessing, load_source, measure, split
from dha.engine import Budget, make_fabric
from dha.prepare import prepare, resolve
from dha.state import Position, RunState


def begun(config):
    """Return the state of a run on digits before its first step."""
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    fabric, preprocessing = make_fabric("cpu", "32", 8), Preprocessing(8, 1, *measure(splits.train))
    config = resolve(config, splits, preprocessing, fabric)
    batches, everything, validation, joint = prepare(splits, preprocessing, config, fabric)
    return RunState(
        config, "", joint, batches, everything, validation, Budget(seconds=None, steps=9, started=0.0), Position(0)
    )


def test_what_is_decided_while_a_run_goes_on_is_kept(small):
    state, again = begun(small(space="residual")), begun(small(space="residual"))
    state.position.mirrored, state.joint.every = True, 72
    state.joint.optimizer.slow_down(0.5)
    again.load_state_dict(state.state_dict()["run"])
    assert (again.position.mirrored, again.joint.every) == (True, 72)
    peak = again.joint.hyper.peaks[0]
    assert peak.start == peak.value == state.joint.hyper.peaks[0].value
    assert peak.value.item() == pytest.approx(0.1)
