import hashlib
import io
import os

import pytest
import torch

from dha import DhaError
from dha.engine import Checkpoints
from dha.engine.checkpoints import MAGIC


def test_what_is_kept_is_a_copy_and_so_is_what_comes_back(tmp_path):
    weight = torch.ones(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"weights": [weight], "pair": (1, weight)}, write=False)
    weight.fill_(2.0)
    first = checkpoints.latest()
    assert first["weights"][0].tolist() == [1.0] * 3
    assert isinstance(first["pair"], tuple)
    first["weights"][0].fill_(3.0)
    assert checkpoints.latest()["weights"][0].tolist() == [1.0] * 3
    assert not list(tmp_path.iterdir()), "only in memory"


def test_the_sum_is_that_of_what_was_written(tmp_path):
    Checkpoints(tmp_path).save({"weight": torch.arange(1000.0)})
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    assert content[-32:] == hashlib.sha256(content[len(b"dha checkpoint 3\n") : -32]).digest()
    file.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(DhaError, match="checksum"):
        Checkpoints(tmp_path).load()


def written(folder, *numbers):
    for number in numbers:
        Checkpoints(folder).save({"number": torch.tensor(number)})
    return Checkpoints(folder)


def test_a_damaged_file_is_set_aside_and_never_takes_the_place_of_a_good_one(tmp_path):
    checkpoints = written(tmp_path, 1, 2)
    newest = checkpoints.files[0]
    newest.write_bytes(newest.read_bytes()[:-10])
    damaged = newest.read_bytes()
    (tmp_path / "checkpoint.pt.damaged").write_text("of before")
    with pytest.warns(RuntimeWarning, match=r"checkpoint.pt' is damaged .*: it is now 'checkpoint.pt.damaged1'"):
        state = checkpoints.load()
    assert state is not None
    assert state["number"] == 1
    assert (tmp_path / "checkpoint.pt.damaged1").read_bytes() == damaged
    checkpoints.save({"number": torch.tensor(3)})
    assert checkpoints.load(set_aside=False) == {"number": torch.tensor(3)}
    newest.unlink()  # As if the process was killed between the two renames of the next one.
    assert checkpoints.load() == {"number": torch.tensor(1)}


def test_several_processes_read_a_damaged_file_without_touching_it(tmp_path):
    checkpoints = written(tmp_path, 1, 2)
    checkpoints.files[0].write_bytes(b"")
    assert checkpoints.load(set_aside=False) == {"number": torch.tensor(1)}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_checkpoint_of_another_version_is_named_as_such(tmp_path):
    checkpoints = written(tmp_path, 1)
    (file,) = (file for file in checkpoints.files if file.exists())
    file.write_bytes(file.read_bytes().replace(b"dha checkpoint 3", b"dha checkpoint 2", 1))
    with pytest.raises(DhaError, match=r"another version of dha wrote it: go on with that version"):
        checkpoints.load()


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "list", "expanded"])
def test_files_that_are_no_checkpoint_are_refused_at_once(kind, tmp_path):
    checkpoints = written(tmp_path, 1)
    file = checkpoints.files[0]
    if kind in ("pipe", "device", "sparse"):
        file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "sparse":
        file.touch()
        os.truncate(file, 2**43)
    else:
        buffer = io.BytesIO()
        torch.save([1] if kind == "list" else {"x": torch.zeros(1).expand(2**45)}, buffer)
        file.write_bytes(MAGIC + buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(DhaError, match=r"regular file|bytes: expected|holds a list|claims the shape"):
        checkpoints.load()


def test_a_file_that_cannot_be_read_for_a_moment_is_not_taken_for_damaged(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"a": 1})

    def refused(file, most):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("dha.engine.checkpoints.read_bytes", refused)
    with pytest.raises(DhaError, match=r"checkpoint\.pt' cannot be read .*resume again"):
        checkpoints.load(set_aside=True)
    assert (tmp_path / "checkpoint.pt").exists()
