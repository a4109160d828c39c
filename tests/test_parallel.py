"""Several processes that train one network, on one machine, against one process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from dha import AugmentationConfig, Config
from dha.augmentation import AugmentationPolicy
from dha.fit import run

NETWORK = """
from torch import nn
from dha.architecture import SparseChoice

def make(channels, classes):
    def block():
        candidates = {"wide": nn.Conv2d(8, 8, 3, padding=1), "point": nn.Conv2d(8, 8, 1), "same": nn.Identity()}
        return SparseChoice(candidates, start=["wide"])

    layers = nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), block(), nn.ReLU(), block(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(512, classes))
"""


@pytest.fixture
def network(tmp_path):
    """A network without BatchNorm, whose statistics would be those of half a batch."""
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}:make"


def begin(launcher, out, network, *more):
    arguments = [sys.executable, *launcher, "-m", "dha", "fit", "digits", f"--out={out}", f"--network={network}"]
    arguments += ["--device=cpu", "--batch_size=64", "--every=4", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True)


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


# Operations that round to no bytes or whole pixels: with all operations, even runs of one process end 7e-3 apart when
# their weights begin 2e-7 apart, because rounding decides.
SMOOTH = ("identity", "auto_contrast", "solarize", "contrast", "brightness", "sharpness", "horizontal_flip")


def test_two_processes_learn_what_one_learns(network, tmp_path):
    start = tmp_path / "smooth.json"
    AugmentationPolicy(SMOOTH, identity_probability=0.5).save(start)
    settings = f"--augmentation.start={start}", "--class-weights=balanced"
    process = begin(TORCHRUN, tmp_path / "two", network, "--epochs=2", *settings)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert out.count("test accuracy") == 1, "one of them speaks"
    augmentation = AugmentationConfig(start=str(start))
    config = Config(network=network, device="cpu", batch_size=64, every=4, epochs=2, augmentation=augmentation)
    config.class_weight = "balanced"
    one = run("digits", config=config, out=tmp_path / "one")
    assert len(one.history) == 2
    weights = [load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=0, atol=1e-4)
    codes = [load_file(tmp_path / name / "codes.safetensors") for name in ("one", "two")]
    assert torch.equal(codes[0]["0.chosen"], codes[1]["0.chosen"])
    torch.testing.assert_close(codes[1]["0.compressed"], codes[0]["0.compressed"], rtol=0, atol=1e-4)
    policies = [json.loads((tmp_path / name / "model" / "policy.json").read_text()) for name in ("one", "two")]
    logits = [torch.tensor(policy["logits"]) for policy in policies]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",") for name in ("one", "two")]
    assert float(rows[1][2]) == pytest.approx(float(rows[0][2]), abs=1e-4), "the training loss is that of all images"


def test_the_loss_of_a_process_ends_the_run_which_goes_on_with_another_number(network, tmp_path):
    out = tmp_path / "run"
    process = begin(TORCHRUN, out, network, "--epochs=12")
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9" in error
    done = len((out / "metrics.csv").read_text().splitlines()) - 1
    assert done < 12
    result = run("digits", config=Config(network=network), out=out, resume=True)
    assert result.history[-1]["epoch"] == len(result.history) > done
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9


def test_a_batch_that_cannot_be_shared_is_named(network, tmp_path):
    process = begin([], tmp_path / "run", network, "--epochs=1", "--batch_size=63", "--devices=2")
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--batch-size=63: 2 processes share every batch equally" in error
