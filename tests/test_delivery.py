"""Disks that are full, some for real, and the final model that a run was for."""

import errno
import os
import shutil
import subprocess
import tempfile

import pytest
import torch

from dha import DhaError
from dha.architecture import plain_network
from dha.cli import main
from dha.data import Preprocessing
from dha.delivery import deliver
from dha.engine import Checkpoints
from dha.model import TrainedModel

IMAGES = ".dha-images/0123456789abcdef.u8"


@pytest.fixture
def model():
    genotype = {"space": "residual", "blocks": [["skip"]] * 3, "width": 4, "depth": 1, "resolution": 8}
    network = plain_network(genotype, 1, 2, 8)
    return TrainedModel(network, ("a", "b"), Preprocessing(8, 1, (0.3,), (0.4,)), network.genotype, {"final": True})


def size_of(model):
    return sum(map(len, model.contents().values()))


def used(folder):
    """Return the bytes of a folder, those of whole blocks on tmpfs and of folders left out."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


class Disk:
    """A folder with room for so many bytes, as far as models and checkpoints are written to it."""

    def __init__(self, folder, monkeypatch, elsewhere=True):
        self.folder, self.room = folder, 0
        folder.mkdir()
        self.temporary = folder.parent / "temporary"
        self.temporary.mkdir()
        monkeypatch.setattr(tempfile, "mkdtemp", self.mkdtemp)
        monkeypatch.setattr("dha.model.trained.replaced_folder", self.replaced)
        usage = shutil.disk_usage(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=self.room - used(folder)))
        self.elsewhere = elsewhere

    def mkdtemp(self, prefix):
        if not self.elsewhere:
            raise OSError(errno.ENOSPC, "No space left on device")
        (self.temporary / prefix).mkdir()
        return str(self.temporary / prefix)

    def replaced(self, folder, names):
        from dha.files import replaced_folder

        return Writing(self, replaced_folder(folder, names), folder)


class Writing:
    def __init__(self, disk, inner, folder):
        self.disk, self.inner, self.folder = disk, inner, folder

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *error):
        if (
            error[0] is None
            and self.folder.is_relative_to(self.disk.folder)
            and used(self.disk.folder) > self.disk.room
        ):
            full = OSError(errno.ENOSPC, "No space left on device")
            self.inner.__exit__(OSError, full, None)
            raise full
        return self.inner.__exit__(*error)


@pytest.fixture
def run_with(model, monkeypatch, tmp_path):
    """Make the folder of a run with two checkpoints, images and an interim model on a disk that is full but for some
    bytes, and hand over the final model.
    """

    def make(free, elsewhere=True):
        disk = Disk(tmp_path / "run", monkeypatch, elsewhere)
        disk.room = 10**9
        for place in (IMAGES, "metrics.csv"):
            (disk.folder / place).parent.mkdir(exist_ok=True)
            (disk.folder / place).write_bytes(b"epoch,0" * 100)
        interim = TrainedModel(model.network, model.classes, model.preprocessing, model.genotype, {"final": False})
        interim.save(disk.folder / "model")
        checkpoints = Checkpoints(disk.folder)
        for number in range(2):
            checkpoints.save({"weights": torch.full((5000,), float(number))})
        disk.room = used(disk.folder) + free
        return disk, checkpoints

    return make


def test_with_room_the_model_is_written_and_what_the_run_needed_is_removed(run_with, model):
    disk, checkpoints = run_with(free=10**6)
    assert deliver(disk.folder, model, checkpoints) == disk.folder / "model"
    assert sorted(os.listdir(disk.folder)) == ["metrics.csv", "model"]
    assert TrainedModel.load(disk.folder / "model").learned["final"]
    assert deliver(None, model, Checkpoints(None)) is None


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("lacking", [100, 20_000, 30_000])
def test_a_full_disk_makes_room_for_the_model_by_the_runs_own_older_files(run_with, model, lacking, elsewhere):
    disk, checkpoints = run_with(free=size_of(model) - lacking, elsewhere=elsewhere)
    assert deliver(disk.folder, model, checkpoints) == disk.folder / "model"
    assert TrainedModel.load(disk.folder / "model").learned["final"]
    assert not list(disk.temporary.iterdir()), "nothing is left elsewhere"
    assert sorted(os.listdir(disk.folder)) == ["metrics.csv", "model"]


def test_without_any_room_the_model_is_written_elsewhere_and_that_is_said(run_with, model):
    disk, checkpoints = run_with(free=0)
    disk.room = 0
    with pytest.warns(RuntimeWarning, match=r"model' cannot be written \(No space left on device\): the model is in '"):
        place = deliver(disk.folder, model, checkpoints)
    assert place == disk.temporary / "dha-model-"
    assert place is not None
    assert TrainedModel.load(place).learned["final"]


def test_what_the_run_can_be_resumed_from_stays_while_the_model_is_nowhere(run_with, model):
    disk, checkpoints = run_with(free=0, elsewhere=False)
    disk.room = 0
    with pytest.raises(DhaError, match=r"model' cannot be written \(No space left on device\): make room and resume"):
        deliver(disk.folder, model, checkpoints)
    assert (disk.folder / "checkpoint.pt").exists()
    assert TrainedModel.load(disk.folder / "model").learned["final"] is False


def test_a_foreign_file_in_the_place_of_the_model_sends_it_elsewhere(run_with, model):
    disk, checkpoints = run_with(free=10**6)
    (disk.folder / "model" / "thesis.txt").write_text("mine")
    with pytest.warns(RuntimeWarning, match=r"holds 'thesis.txt', which is no part of a model.*: the model is in"):
        place = deliver(disk.folder, model, checkpoints)
    assert place is not None
    assert TrainedModel.load(place).learned["final"]
    assert (disk.folder / "model" / "thesis.txt").read_text() == "mine"


def test_the_command_line_tells_of_a_model_elsewhere_by_its_exit_code(tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "dha-model-x"
    monkeypatch.setattr("dha.fit.deliver", lambda *_: elsewhere)
    arguments = ["digits", f"--out={tmp_path / 'run'}", "--epochs=1", "--device=cpu", "--architecture.width=4"]
    assert main(["fit", *arguments, "--learn=none"]) == 2
    assert f"model: {elsewhere}" in capsys.readouterr().out


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of so many kilobytes, which takes the rights for it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "dha", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_for_real_costs_checkpoints_and_not_the_model(disk, model):
    folder, needed = disk(96), size_of(model)
    checkpoints = Checkpoints(folder)
    checkpoints.save({"weights": torch.zeros(4000)})
    assert (folder / "checkpoint.pt").exists()
    with open(folder / "metrics.csv", "wb") as file:
        free = shutil.disk_usage(folder).free
        file.write(bytes(max(0, free - needed // 2)))
    weights = model.network.state_dict()
    assert deliver(folder, model, checkpoints) == folder / "model"
    found = TrainedModel.load(folder / "model").network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert sorted(os.listdir(folder)) == ["metrics.csv", "model"]


def test_a_new_checkpoint_finds_room_where_the_one_before_the_last_lies(disk):
    folder = disk(48)
    checkpoints = Checkpoints(folder)
    for number in range(3):
        checkpoints.save({"weights": torch.full((4000,), float(number))})
    state = Checkpoints(folder).load()
    assert state is not None
    assert state["weights"][0].item() == 2
