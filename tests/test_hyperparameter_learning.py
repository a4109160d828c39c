import pytest
import torch
from torch import nn

from dha import Config, HyperparametersConfig
from dha.engine import make_fabric
from dha.hyperparameter_learning import BACKBONE, BOXES, HyperparameterLearning
from dha.hyperparameters import LearnedAdamW, LearnedMuon, LearnedSGD


def learning(split=False, learn="hyperparameters", **settings):
    config = Config(learn=learn, hyperparameters=HyperparametersConfig(**settings))
    return HyperparameterLearning(config, make_fabric("cpu", "32", 8), split)


def test_nothing_moves_in_the_warm_up_and_then_as_the_schedule_falls():
    hyper = learning(rate=4.0, warmup=0.2)
    assert [hyper.rate(progress) for progress in (0.0, 0.1, 0.199)] == [0, 0, 0]
    assert hyper.rate(0.2) == pytest.approx(4.0)
    assert hyper.rate(0.6) == pytest.approx(2.0)
    assert hyper.rate(1.0) == pytest.approx(0.0, abs=1e-9)
    assert learning(rate=4.0, warmup=0.0).rate(0.0) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["auto", "sgd", "muon", "adamw"])
@pytest.mark.parametrize("split", [False, True])
def test_each_group_starts_with_values_of_its_own(name, split):
    hyper = learning(split, optimizer=name)
    rate, decay = hyper.settings.starts()
    starts = [BACKBONE * rate, rate] if split else [rate]
    assert [peak.value.item() for peak in hyper.peaks] == pytest.approx(starts)
    assert [value.value.item() for value in hyper.decays] == pytest.approx([decay] * len(starts))
    assert [(peak.low, peak.high) for peak in hyper.peaks] == [BOXES[hyper.kind][0]] * len(starts)
    groups = [[nn.Parameter(torch.ones(2))] for _ in starts]
    optimizer = hyper.optimizer(groups)
    assert type(optimizer) is {"sgd": LearnedSGD, "adamw": LearnedAdamW}.get(name, LearnedMuon)
    assert optimizer.peaks == hyper.peaks
    assert optimizer.decays == hyper.decays


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_steps_are_made_orthogonal_in_the_precision_of_the_run(precision, dtype):
    hyper = HyperparameterLearning(Config(), make_fabric("cpu", precision, 8), split=False)
    optimizer = hyper.optimizer([[nn.Parameter(torch.ones(2, 2, 1, 1))]])
    assert isinstance(optimizer, LearnedMuon)
    assert optimizer.dtype == dtype


@pytest.mark.parametrize("learn", ["none", "architecture,augmentation"])
def test_what_is_not_learned_is_held_where_it_starts(learn):
    hyper = learning(learn=learn, weight_decay=0.003)
    assert hyper.learned == ()
    hyper.decays[0].move(torch.tensor(1.0), 1.0)
    assert hyper.decays[0].value.item() == pytest.approx(0.003)
