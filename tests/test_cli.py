import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dha import ImageClassifier
from dha.cli import main

SMALL = [
    "--epochs=1",
    "--device=cpu",
    "--space=cells",
    "--architecture.depth=2",
    "--architecture.width=4",
    "--architecture.nodes=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["fit", "digits", "--out", str(out), *SMALL, "--epochs=4", "--batch-size=32"]) == 0
    return out


def test_fit_prints_what_was_found(tmp_path, capsys):
    assert main(["fit", "digits", "--out", str(tmp_path / "run"), *SMALL]) == 0
    out = capsys.readouterr().out
    last = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert 0 <= float(last["test accuracy"].removesuffix(" %")) <= 100
    assert len(last["test accuracy"].removesuffix(" %").split(".")[1]) == 2
    assert last["model"] == str(tmp_path / "run" / "model")
    assert "node 1" in out
    assert "->" in last["learning rate"]
    assert "nats" in last["policy"]


def test_predict_names_a_class_for_every_photograph(run, tmp_path, capsys):
    pictures, targets = load_digits(return_X_y=True)
    files = []
    for index in range(20):
        file = tmp_path / f"{index}.png"
        Image.fromarray((pictures[index].reshape(8, 8) * 255 / 16).round().astype(np.uint8)).save(file)
        files.append(str(file))
    assert main(["predict", str(run / "model"), *files, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == files
    hits = [row["class"] == target for row, target in zip(rows, targets, strict=False)]
    assert sum(hits) > 10
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["probability"] == max(row["probabilities"].values())

    assert main(["predict", str(run / "model"), files[0]]) == 0
    path, name, probability = capsys.readouterr().out.strip().split("\t")
    assert (path, name) == (files[0], str(rows[0]["class"]))
    assert probability == f"{100 * rows[0]['probability']:.1f} %"


def test_a_name_with_a_line_break_is_one_row(run, tmp_path, capsys):
    file = tmp_path / "a\nb.png"
    Image.new("L", (8, 8)).save(file)
    assert main(["predict", str(run / "model"), str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_evaluate_repeats_the_test_accuracy_of_the_run(run, capsys):
    reported = json.loads((run / "model" / "model.json").read_text())["results"]["test_accuracy"]
    assert main(["evaluate", str(run / "model"), "digits", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 359
    assert result["accuracy"] == pytest.approx(reported, abs=1e-6)
    assert main(["evaluate", str(run / "model"), "digits"]) == 0
    assert f"accuracy: {100 * reported:.2f} % of 359 images" in capsys.readouterr().out


def test_settings_come_from_the_file_of_an_earlier_run_and_the_command_line_wins(run, tmp_path):
    out = tmp_path / "again"
    arguments = ["fit", "digits", "--out", str(out), "--config", str(run / "config.yaml"), "--epochs=1", "--seed=3"]
    assert main(arguments) == 0
    ours, theirs = (folder.joinpath("config.yaml").read_text().splitlines() for folder in (out, run))
    changed = {line.split(":")[0] for line, other in zip(ours, theirs, strict=True) if line != other}
    assert changed == {"epochs", "seed"}


def test_command_line_and_python_give_the_same_model(tmp_path):
    assert main(["fit", "digits", "--out", str(tmp_path / "a"), *SMALL, "--seed=5"]) == 0
    classifier = ImageClassifier(epochs=1, device="cpu", seed=5, space="cells")
    classifier.set_params(architecture__depth=2, architecture__width=4, architecture__nodes=2)
    classifier.fit("digits")
    loaded = ImageClassifier.load(tmp_path / "a" / "model").model_.network.state_dict()
    state = classifier.model_.network.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "./nowhere", "--out", "OUT"], "nowhere"),
        (["fit", "digits", "--out", "OUT", "--learn=colour"], "colour"),
        (["fit", "digits", "--out", "OUT", "--budget=soon"], "soon"),
        (["predict", "./nowhere", "x.jpg"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    arguments = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"dha {arguments[0]}: ")
    assert message in error


@pytest.mark.parametrize("text", ["seed: 1\ncolour: red\n", "architecture:\n  colour: red\n"])
def test_unknown_keys_are_errors(text, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["fit", "digits", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")]) == 2
    assert "colour" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = """
import sys, dha.cli
assert dha.cli.main(["fit", "--help"]) == 0
assert "torch" not in sys.modules
"""
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--image-size" in result.stdout
    assert time.monotonic() - began < 20


def test_models_and_parts_do_not_wait_for_what_only_runs_need():
    code = "import sys, dha.architecture, dha.augmentation, dha.hyperparameters, dha.model; print(*sys.modules); "
    code += "from dha import ImageClassifier; assert 'lightning_fabric' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"lightning_fabric", "scipy", "sklearn"}


@pytest.mark.parametrize(
    ("wished", "policy", "spins"),
    [(None, "PASSIVE", "10000"), ("ACTIVE", "ACTIVE", None), ("PASSIVE", "PASSIVE", None)],
)
def test_threads_spin_for_a_moment_unless_something_else_is_wished(wished, policy, spins):
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = kept if wished is None else {**kept, "OMP_WAIT_POLICY": wished}
    code = """
import json, os, sys, dha.cli
dha.cli.main(["--help"])
assert "torch" not in sys.modules, "it would have read them before"
json.dump([os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")], sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [policy, spins]
