"""Rows of metrics as checkpoints hold them: compressed once, so that keeping a state does not grow with the epochs."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = 1000
"""Rows in a block, of some 20 kB."""


def packed(rows: list[dict[str, Any]], blocks: list[Tensor]) -> dict[str, Any]:
    """Return rows for a checkpoint.

    Args:
        rows: all of them, none of which changes any more.
        blocks: those that were full before, compressed; any that are full now are added.
    """
    for first in range(len(blocks) * BLOCK, len(rows) - BLOCK + 1, BLOCK):
        content = zlib.compress(json.dumps(rows[first : first + BLOCK]).encode())
        blocks.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return {"blocks": list(blocks), "rows": rows[len(blocks) * BLOCK :]}


def unpacked(state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Return the rows, and the blocks of those that are full, of what ``packed`` returned.

    Raises:
        ValueError: if a block is damaged.
    """
    rows: list[dict[str, Any]] = []
    for block in state["blocks"]:
        try:
            rows += json.loads(zlib.decompress(block.numpy().tobytes()))
        except zlib.error as error:
            raise ValueError(f"rows of metrics are damaged, {error}") from error
    return rows + list(state["rows"]), list(state["blocks"])
