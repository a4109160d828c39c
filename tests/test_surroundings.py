"""What machines do to runs, for real: clocks that jump, folders that cannot be written to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dha import ArchitectureConfig, Config, DhaError
from dha.fit import run

SHIM = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long days(void) { static long calls; return 86400 * (++calls % 2 ? calls % 1000 : -(calls % 1000)); }

int clock_gettime(clockid_t id, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += days();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    long result = syscall(SYS_gettimeofday, now, zone);
    now->tv_sec += days();
    return result;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""A library whose wall clock jumps by days, to and fro, at every look."""


@pytest.fixture(scope="module")
def jumping(tmp_path_factory):
    """The environment of a process whose clock jumps."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "jump.c").write_text(SHIM)
    library = folder / "jump.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "jump.c"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    looks = "import time; a, b = time.time(), time.time(); print(abs(b - a) > 80000)"
    done = subprocess.run([sys.executable, "-c", looks], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", "the clock does not jump"
    return environment


def test_a_clock_that_jumps_changes_nothing(jumping, tmp_path):
    architecture = ArchitectureConfig(width=8)
    config = Config(epochs=2, architecture=architecture, checkpoint_every=0.1, device="cpu")
    run("digits", config=config, out=tmp_path / "steady")
    arguments = ["fit", "digits", "--epochs=2", "--architecture.width=8", "--checkpoint-every=0.1", "--device=cpu"]
    command = [sys.executable, "-m", "dha", *arguments, f"--out={tmp_path / 'jumping'}"]
    subprocess.run(command, env=jumping, capture_output=True, check=True)
    weights, seconds = [], []
    for out in (tmp_path / "steady", tmp_path / "jumping"):
        weights.append(load_file(out / "model" / "weights.safetensors"))
        seconds.append([float(row.split(",")[1]) for row in (out / "metrics.csv").read_text().splitlines()[1:]])
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    assert 0 < seconds[1][0] < seconds[1][1] < 100 * seconds[0][1], "durations are read from another clock"


def test_a_folder_that_cannot_be_written_to_is_named_before_training(tmp_path, small):
    if os.geteuid() == 0:
        # No permission stops root; but nobody makes folders here.
        folder = Path("/sys/dha")
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        folder = tmp_path / "closed" / "run"

    def watch(progress, row):
        raise AssertionError("training has begun")

    with pytest.raises(DhaError, match=rf"^out='{folder}' cannot be written to \(.+\): choose another folder"):
        run("digits", config=small(), out=folder, watch=watch)
