import os
import sys

import pytest

from dha import HyperparametersConfig
from dha.display import Display, summary
from dha.fit import run


def test_summary_tells_what_a_person_wants_to_know(small, tmp_path):
    config = small(epochs=2, hyperparameters=HyperparametersConfig(learn="learning_rate,momentum"))
    result = run("digits", config=config, out=tmp_path)
    text = summary(result)
    assert f"test accuracy: {100 * (result.test_accuracy or 0):.2f} %" in text
    assert str(tmp_path / "model") in text
    assert "learning rate: 0.2 -> " in text
    assert "momentum: 0.9 -> " in text
    assert "label smoothing" not in text, "not learned"
    assert str(result.model.genotype) in text
    assert "mirror image" not in text
    result.model.mirrored = True
    assert "predicts from: image and mirror image" in summary(result)


def test_display_shows_the_metrics_of_the_latest_epoch(small, capsys):
    with Display() as display:
        run("digits", config=small(epochs=2), watch=display.update)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "epoch 1" in shown
    assert "validation" in shown


def test_a_display_that_cannot_be_written_raises_nothing(monkeypatch):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Display() as display:
            display.update(0.5, {})
            display.update(1.0, {})
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_an_error_ends_a_display_without_a_line(capsys):
    def fail():
        with Display() as display:
            display.update(0.5, {})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().err == ""
