import hashlib

import pytest
import torch

from dha import DhaError
from dha.engine import Checkpoints


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
