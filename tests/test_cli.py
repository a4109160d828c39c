import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dha import ImageClassifier, __version__
from dha.cli import main, resuming
from dha.errors import DataWarning
from dha.options import parse

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


def test_fit_prints_what_was_found_and_names_the_folder_of_a_run_that_has_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SMALL, "digits"]) == 0
    out = capsys.readouterr().out
    last = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert 0 <= float(last["test accuracy"].removesuffix(" %")) <= 100
    assert len(last["test accuracy"].removesuffix(" %").split(".")[1]) == 2
    assert (last["out"], last["model"]) == ("runs/digits-1", "runs/digits-1/model")
    assert (tmp_path / "runs" / "digits-1" / "model" / "model.json").is_file()
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


WRONG = [
    [],
    ["fti"],
    ["fit"],
    ["fit", "digits", "--epoch=3"],
    ["fit", "digits", "--epochs=0"],
    ["fit", "digits", "--budget=soon"],
    ["fit", "digits", "--device=gpu"],
    ["fit", "digits", "--class-weights=nowhere.csv"],
    ["fit", "digits", "--network=nowhere.py:make"],
    ["fit", "digits", "--augmentation.start=nowhere.json"],
    ["fit", "digits", "--config=nowhere.yaml"],
    ["fit", "./nowhere"],
    ["fit", "digits", "--out=/proc/nowhere/run"],
    ["fit", "digits", "--out=taken"],
    ["fit", "digits", "--resume"],
    ["predict", "nowhere", "x.png"],
    ["predict", "model", "nowhere.png"],
    ["predict", "model", "taken", "nowhere.png", "--on-bad-image=error"],
    ["evaluate", "nowhere", "digits"],
]


def test_help_and_what_is_wrong_without_an_image_do_not_wait_for_torch(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    (tmp_path / "model").mkdir()
    for name in ("model.json", "weights.safetensors"):
        (tmp_path / "model" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    code = f"""
import sys, time, dha.cli
assert dha.cli.main(["fit", "--help"]) == 0
assert dha.cli.main(["--version"]) == 0
for words in {WRONG!r}:
    assert dha.cli.main(words) == 2, words
assert "torch" not in sys.modules
"""
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--image-size" in result.stdout
    assert f"\ndha {__version__}\n" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == len(WRONG), "an error is a line"
    assert all(line.startswith("dha") for line in lines)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


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


def pictures(folder, count):
    files = []
    for index in range(count):
        files.append(str(folder / f"{index}.png"))
        Image.new("L", (8, 8), index).save(files[-1])
    return files


def test_a_file_that_cannot_be_read_costs_only_itself(run, tmp_path, capsys):
    good, bad = pictures(tmp_path, 3), tmp_path / "bad.png"
    bad.write_text("no image")
    files = [good[0], str(bad), *good[1:], str(tmp_path / "nowhere.png")]
    assert main(["predict", str(run / "model"), *files, "--json"]) == 2
    shown = capsys.readouterr()
    assert [json.loads(line)["image"] for line in shown.out.splitlines()] == good
    for name, line in zip(("bad.png", "nowhere.png", "2 of 5"), shown.err.splitlines(), strict=True):
        assert name in line

    assert main(["predict", "--on-bad-image=error", str(run / "model"), *files[:-1]]) == 2
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3, "what was read is predicted"
    assert len(shown.err.splitlines()) == 1


def test_a_device_of_a_model_is_one_of_this_machine(run, tmp_path, capsys):
    files = pictures(tmp_path, 1)
    assert main(["predict", str(run / "model"), *files, "--device=auto"]) == 0
    for name in ("gpu", "cuda:99"):
        assert main(["predict", str(run / "model"), *files, f"--device={name}"]) == 2
        assert f"--device='{name}'" in capsys.readouterr().err


def test_names_that_no_encoding_knows_are_printed_as_they_can_be(run, tmp_path, capsys):
    (file,) = pictures(tmp_path, 1)
    os.rename(file, name := os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.png"))
    for more in ([], ["--json"]):
        assert main(["predict", str(run / "model"), name, *more]) == 0
        assert capsys.readouterr().out.split("\t")[0].count("x\\udcff.png") == 1


def test_predictions_that_nobody_reads_end_quietly(run, tmp_path, capsys, monkeypatch):
    files = pictures(tmp_path, 1)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["predict", str(run / "model"), *files]) == 141
    assert capsys.readouterr().err == ""
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["predict", str(run / "model"), *files]) == 2
    assert "standard output cannot be written" in capsys.readouterr().err


def failing(monkeypatch, error):
    def load(*arguments, **settings):
        raise error

    monkeypatch.setattr("dha.fit.load_source", load)


def test_what_was_not_foreseen_is_a_line_and_a_traceback_in_a_file(tmp_path, capsys, monkeypatch):
    failing(monkeypatch, RuntimeError("two\nlines"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["fit", "digits", "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "unforeseen RuntimeError: two lines; please report it" in line
    (file,) = tmp_path.glob("dha-error-*.txt")
    assert str(file) in line
    assert "in load\n    raise error" in file.read_text()
    assert main(["fit", "digits", "--debug", "--out", str(tmp_path / "run")]) == 1
    assert "in load\n    raise error" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1, "neither a second file nor a folder of the run"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "the memory does not suffice"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            "the memory does not suffice (CUDA out of memory. Tried)",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "the memory does not suffice"),
        (RuntimeError("can't start new thread"), "the system allows no more threads"),
        (PermissionError(13, "Permission denied", "x\n.png"), "'x\\n.png': Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_a_line_and_exit_code_2(error, message, tmp_path, capsys, monkeypatch):
    failing(monkeypatch, error)
    assert main(["fit", "digits", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_while_images_are_read_leaves_nothing_behind(number, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dha.fit.load_source", lambda *a, **b: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main(["fit", "digits", "--out", str(tmp_path / "run")]) == 128 + number
    assert capsys.readouterr().err == f"dha fit: interrupted by signal {number:d}\n"
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) == before


def test_the_command_that_goes_on_names_what_the_folder_does_not_hold():
    words = ["--out=my runs/é", "--devices=2", "--cache", "disk", "--network=net.py:f", "--seed=3", "--", "--a\udcff"]
    values = parse("fit", words)
    command = resuming(values)
    assert command.endswith("fit '--out=my runs/é' --resume --cache=disk --devices=2 --network=net.py:f -- $'--a\\377'")
    script = f'set -- {command}; printf %s "${{@: -1}}"'
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout == b"--a\xff"


def test_evaluate_leaves_out_what_cannot_be_read_if_it_is_told_to(run, tmp_path, capsys):
    pictures(tmp_path, 3)
    (tmp_path / "1.png").write_text("no image")
    (tmp_path / "table.csv").write_text("path,label\n0.png,0\n1.png,0\n2.png,0\n")
    words = ["evaluate", str(run / "model"), str(tmp_path / "table.csv")]
    assert main(words) == 2
    assert "1.png" in capsys.readouterr().err
    with pytest.warns(DataWarning, match=r"1 images could not be read and are left out: .*1\.png"):
        assert main([*words, "--on-bad-image=skip", "--device=cpu"]) == 0
    assert "% of 2 images" in capsys.readouterr().out
