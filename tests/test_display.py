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
