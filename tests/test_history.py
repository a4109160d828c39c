import pytest
import torch

from dha.history import BLOCK, packed, unpacked


def rows(count):
    return [
        {"epoch": number, "train_loss": number / 3, "validation_loss": "", "pairs": "a>b:0.5"}
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_rows_are_those_that_were_packed(count):
    blocks = []
    state = packed(rows(count), blocks)
    assert len(state["rows"]) == count % BLOCK
    assert unpacked(state) == (rows(count), blocks)


def test_full_blocks_are_compressed_once():
    blocks, every = [], rows(2 * BLOCK + 5)
    packed(every[:BLOCK], blocks)
    (first,) = blocks
    state = packed(every, blocks)
    assert blocks[0] is first
    assert len(blocks) == 2
    assert sum(block.nbytes for block in state["blocks"]) < 40 * BLOCK
    assert unpacked(state)[0] == every


def test_a_damaged_block_is_named():
    with pytest.raises(ValueError, match="rows of metrics are damaged"):
        unpacked({"blocks": [torch.zeros(9, dtype=torch.uint8)], "rows": []})
