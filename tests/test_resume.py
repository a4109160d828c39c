"""Runs that are killed, stopped, damaged or short of room, for real, and gone on with."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dha import DhaError, HyperparametersConfig, ImageClassifier
from dha.cli import main
from dha.data import load_source
from dha.engine import Checkpoints
from dha.fit import run
from dha.model import TrainedModel

KILLS = 20
EPOCHS = 12
ARGUMENTS = [
    "fit",
    "digits",
    f"--epochs={EPOCHS}",
    "--space=residual",
    "--device=cpu",
    "--batch_size=64",
    "--checkpoint_every=0.1",
    "--architecture.width=8",
]


@pytest.fixture(scope="module")
def processes():
    """Processes that have torch loaded when they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dha.fit", "dha.display", "dha.cli"])
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield context
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads


def begin(out, *more):
    arguments = [sys.executable, "-m", "dha", *ARGUMENTS, f"--out={out}", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process):
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def wait_for(file: Path, alive):
    while alive() and not file.exists():
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    process = processes.Process(target=main, args=([*ARGUMENTS, f"--out={out}"],))
    process.start()
    process.join()
    return out


@pytest.fixture(scope="module")
def killed(processes, tmp_path_factory):
    """A run that was killed after its sixth epoch at the earliest."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = processes.Process(target=main, args=([*ARGUMENTS, f"--out={out}"],))
    process.start()
    while not (out / "metrics.csv").exists() or len((out / "metrics.csv").read_text().splitlines()) < 7:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert (out / "checkpoint.previous.pt").exists()
    return out


@pytest.fixture
def stopped(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / "run")


def resume(out, **settings):
    return run("digits", config=ImageClassifier(**settings), out=out, resume=True)


def assert_same(out, uninterrupted, left=()):
    expected, found = (load_file(folder / "model" / "weights.safetensors") for folder in (uninterrupted, out))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    models = [json.loads((folder / "model" / "model.json").read_text()) for folder in (out, uninterrupted)]
    for model in models:
        model["results"].pop("seconds")
    assert models[0] == models[1]
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + EPOCHS
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["codes.safetensors", "config.yaml", "data.json", "left-out.csv", "metrics.csv", "model", *left]
    )


def test_a_run_killed_again_and_again_ends_with_the_same_weights(processes, tmp_path, uninterrupted):
    out, moments, kills = tmp_path / "run", random.Random(0), 0
    while True:
        process = processes.Process(target=main, args=([*ARGUMENTS, f"--out={out}", "--resume"],))
        process.start()
        # Kills count from the first checkpoint on: before it there is nothing to lose.
        wait_for(out / "checkpoint.pt", process.is_alive)
        process.join(moments.uniform(0.1, 0.8) if kills < KILLS else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills == KILLS, "the run was over before it had been killed often enough"
    assert_same(out, uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_what_there_is_and_says_how_to_go_on(number, code, tmp_path, uninterrupted):
    out = tmp_path / "run"
    process = begin(out)
    wait_for(out / "model", lambda: process.poll() is None)
    process.send_signal(number)
    time.sleep(0.01)  # Two signals at once arrive in the order of their numbers.
    process.send_signal(signal.SIGTERM)  # By somebody who cannot wait.
    returned, _, error = end(process)
    assert returned == code, error
    assert f"dha fit digits --out={out} --resume --checkpoint-every=0.1" in error
    assert "Traceback" not in error
    images = load_source("digits").train.images[:10]
    assert TrainedModel.load(out / "model").probabilities(images).shape == (10, 10)
    if number == signal.SIGINT:
        resume(out)
        assert_same(out, uninterrupted)


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


class Payload:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("damage", [truncated, flipped, lambda content: b""])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, stopped, uninterrupted):
    file = stopped / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"checkpoint.pt' is damaged .*: it is now 'checkpoint.pt.damaged'"):
        resume(stopped)
    assert_same(stopped, uninterrupted, left=["checkpoint.pt.damaged"])


def test_without_a_sound_checkpoint_the_run_is_not_gone_on_with(stopped):
    for file in stopped.glob("checkpoint*"):
        file.write_bytes(truncated(file.read_bytes()))
    with pytest.raises(DhaError, match=r"damaged.*No checkpoint is left"):
        resume(stopped)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    trap, checkpoints = tmp_path / "trap", Checkpoints(tmp_path)
    for content in (pickle.dumps(Payload(trap)), _saved(Payload(trap))):
        for file in checkpoints.files:
            file.write_bytes(b"dha checkpoint 3\n" + content + hashlib.sha256(content).digest())
        with pytest.raises(DhaError, match="damaged"):
            checkpoints.load()
    assert not trap.exists()
    torch.load(io.BytesIO(_saved(Payload(trap))), weights_only=False)
    assert trap.is_dir(), "the payload works where it is let in"


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    out = tmp_path / "run"
    process = begin(out, "--epochs=1000")
    wait_for(out / "checkpoint.pt", lambda: process.poll() is None)
    with pytest.raises(DhaError, match=r"run' is in use by another run"):
        resume(out)
    process.kill()
    end(process)


@contextmanager
def room_for(size):
    """No file grows beyond so many bytes: writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_checkpoints_but_not_the_run(stopped, uninterrupted):
    checkpoint = (stopped / "checkpoint.pt").read_bytes()
    with (
        room_for(len(checkpoint) // 2),
        pytest.warns(RuntimeWarning, match=r"checkpoint.pt' cannot be written \(File too large\)"),
    ):
        resume(stopped)
    assert_same(stopped, uninterrupted)


def test_a_model_that_cannot_be_written_is_named_and_not_lost(stopped, uninterrupted):
    weights = (stopped / "model" / "weights.safetensors").stat().st_size
    with (
        room_for(weights // 2),
        pytest.warns(RuntimeWarning, match="cannot be written"),
        pytest.raises(DhaError, match=r"model' cannot be written \(File too large\): make room and resume the run"),
    ):
        resume(stopped)
    assert not list(stopped.glob(".*")), "no partial files are left"
    assert TrainedModel.load(stopped / "model"), "the model of before the disk was full is still there"
    resume(stopped)
    assert_same(stopped, uninterrupted)


def test_resuming_takes_the_settings_of_the_run_and_refuses_others(stopped, uninterrupted):
    with pytest.raises(DhaError, match=r"^batch_size=32: the run was begun with 64"):
        resume(stopped, batch_size=32)
    with pytest.raises(DhaError, match=r"^learn='none': the run was begun with 'architecture,"):
        resume(stopped, learn="none")
    with pytest.raises(DhaError, match=r"^hyperparameters.learn='momentum': the run was begun with 'learning_rate,"):
        resume(stopped, hyperparameters=HyperparametersConfig(learn=["momentum"]))
    images = load_source("digits").train
    with pytest.raises(DhaError, match="begun with other images"):
        run(
            255 - images.images.permute(0, 2, 3, 1).numpy(),
            images.labels.numpy(),
            config=ImageClassifier(),
            out=stopped,
            resume=True,
        )
    resume(stopped, epochs=EPOCHS)
    assert_same(stopped, uninterrupted)
    with pytest.raises(DhaError, match=r"is over: its model is in"):
        resume(stopped)


def test_a_budget_counts_the_time_before_the_kill(processes, tmp_path):
    out = tmp_path / "run"
    arguments = [a for a in ARGUMENTS if "epochs" not in a] + [f"--out={out}", "--budget=8s"]
    process = processes.Process(target=main, args=(arguments,))
    process.start()
    began = time.monotonic()
    wait_for(out / "checkpoint.pt", process.is_alive)
    process.join(4 - (time.monotonic() - began))
    process.kill()
    process.join()
    again = time.monotonic()
    result = resume(out)
    assert time.monotonic() - again < 7
    assert 6 < result.seconds < 10
    assert result.history[-1]["seconds"] > 4
    rates = [row["scheduled_learning_rate"] for row in result.history]
    assert rates[-1] < 0.05 * max(rates), "the schedule reaches its end"
