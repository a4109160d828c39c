import warnings

import pytest
import torch
from tests.emulation import EmulatedRecording

from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.prepare import prepare, resolve
from dha.rehearsal import rehearse


class SharedRecording(EmulatedRecording):
    """A recording whose results lie where the next one puts something else."""

    last = None

    def replay(self, arguments):
        if SharedRecording.last not in (None, self):
            for result in SharedRecording.last.results:
                if result is not None:
                    result.fill_(1e3)
        SharedRecording.last = self
        return super().replay(arguments)


class FailingRecording(EmulatedRecording):
    """A recording that a device refuses to make."""

    def __init__(self, function, arguments, results, pool):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def prepared(small):
    splits = split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)
    fabric, preprocessing = make_fabric("cpu", "32", 8), Preprocessing(8, 1, *measure(splits.train.images))
    config = resolve(small(), splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    joint.network.train()
    joint.passes.graphs.possible = True
    return batches, joint


@pytest.mark.parametrize(
    ("recording", "complaint"),
    [
        (EmulatedRecording, None),
        (SharedRecording, "give other results"),
        (FailingRecording, "nothing is replayed .* operation not permitted"),
    ],
)
@pytest.mark.parametrize("found", [False, True])
def test_recordings_are_used_where_they_give_what_plain_passes_give(prepared, monkeypatch, recording, complaint, found):
    monkeypatch.setattr("dha.engine.graphs.Recording", recording)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", object)
    batches, joint = prepared
    if found:
        joint.finish_search()
    images, labels = next(iter(batches))
    before = {name: value.clone() for name, value in joint.plain.state_dict().items()}
    if complaint is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rehearse(joint.passes, images / 255, labels, joint.smoothing)
    else:
        with pytest.warns(RuntimeWarning, match=complaint):
            rehearse(joint.passes, images / 255, labels, joint.smoothing)
    assert joint.passes.graphs.possible == (complaint is None)
    assert bool(joint.passes.graphs._recordings) == (complaint is None)
    for name, value in joint.plain.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(weight.grad is None for weight in joint.plain.parameters())
    losses, _ = joint.step(images, labels, progress=0.3)
    assert losses.isfinite().all()
    if not found:
        joint.finish_search()
        assert joint.passes.graphs.possible == (complaint is None), "for good"
