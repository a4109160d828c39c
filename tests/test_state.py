import pytest
import torch

from dha.data import LabelledImages, Preprocessing, Splits, load_source, measure, split
from dha.engine import Budget, make_fabric
from dha.prepare import prepare, resolve
from dha.state import SAMPLES, Position, RunState, fingerprint


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
    state.joint.hyper.slow_down(1)
    again.load_state_dict(state.state_dict()["run"])
    assert (again.position.mirrored, again.joint.every) == (True, 72)
    peak = again.joint.hyper.peaks[0]
    assert peak.start == peak.value == state.joint.hyper.peaks[0].value
    assert peak.value.item() == pytest.approx(0.1)


@pytest.mark.parametrize(("count", "most"), [(100, 100), (SAMPLES, SAMPLES), (2 * SAMPLES - 1, SAMPLES)])
def test_the_fingerprint_looks_at_a_limited_number_of_images(count, most, monkeypatch):
    looked, chunks = [], LabelledImages.chunks

    def counted(images, size):
        looked.append(len(images))
        return chunks(images, size)

    monkeypatch.setattr(LabelledImages, "chunks", counted)
    images = LabelledImages(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count) % 2)
    few = images.select(torch.arange(2))
    fingerprint(Splits(train=images, validation=few, test=None, classes=(0, 1), held_out=True))
    assert looked[0] <= most
    assert looked[0] > most // 2 or looked[0] == count
