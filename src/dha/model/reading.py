"""Reading a model folder that nobody vouches for: JSON by its schema, and weights only where they fit the network."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from dha.errors import DhaError, shortened
from dha.files import read_bytes
from dha.ownership import LARGEST_JSON

FORMAT = 2
_LONGEST_NAME = 1000
"""Characters of a class name: NumPy keeps every string in the room of the longest."""
_KINDS: dict[str, type] = {"format": int, "classes": list, "preprocessing": dict, "genotype": dict}


def read_description(file: Path) -> dict[str, Any]:
    """Return what ``model.json`` holds, of the types and ranges that the rest of dha relies on.

    Raises:
        DhaError: if it is no JSON object, too large, of another format, or a value has another type or range.
    """
    description = json.loads(read_bytes(file, LARGEST_JSON))
    if not isinstance(description, dict):
        raise DhaError(f"{file} holds a {type(description).__name__}: expected the JSON object that dha wrote")
    for key, kind in _KINDS.items():
        if type(description.get(key)) is not kind:
            raise DhaError(f"{file}: {key} is {shortened(description.get(key))}: expected a JSON {_NAMES[kind]}")
    if description["format"] != FORMAT:
        remedy = "update dha" if description["format"] > FORMAT else "train the model again"
        raise DhaError(f"{file} has format {shortened(description['format'])}, this dha reads {FORMAT}: {remedy}")
    if type(description.get("mirrored", False)) is not bool:
        raise DhaError(f"{file}: mirrored is {shortened(description['mirrored'])}: expected true or false")
    classes = description["classes"]
    for name in classes:
        # NumPy has no class numbers beyond 64 bits.
        if type(name) is not type(classes[0]) or not (
            (isinstance(name, str) and len(name) <= _LONGEST_NAME)
            or (isinstance(name, int) and -(2**63) <= name < 2**63)
        ):
            raise DhaError(
                f"{file}: class {shortened(name)}: expected all strings of at most {_LONGEST_NAME} characters or all "
                "whole numbers of 64 bits or all booleans"
            )
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DhaError(
            f"{file}: {len(classes)} classes, {len(set(classes))} different: expected 2 or more, no two alike"
        )
    return description


def read_weights(file: Path, network: nn.Module) -> None:
    """Put the weights of a safetensors file into a network; those on the meta device take its memory.

    Raises:
        ValueError: if names, shapes or types differ from those of the network, or a weight is not finite.
        DhaError: if there is no such file, or it is far larger than the network.
    """
    if not file.is_file():
        raise DhaError(f"{file}: no such file: copy or train the model again")
    expected = network.state_dict()
    most = sum(tensor.numel() * tensor.element_size() for tensor in expected.values()) + LARGEST_JSON
    if file.stat().st_size > most:
        raise DhaError(f"{file} has {file.stat().st_size} bytes: expected the weights of the network, at most {most}")
    weights = safetensors.torch.load_file(file)
    for name in {**expected, **weights}:
        here, there = (_form(state.get(name)) for state in (weights, expected))
        if here != there:
            raise ValueError(f"{file.name}: {shortened(name)} is {here}, in the network it is {there}")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{file.name}: {shortened(name)} has values that are not finite")
    # Assigning takes the memory that was read, but parts weights that a network of somebody else's may share.
    network.load_state_dict(weights, assign=any(tensor.is_meta for tensor in expected.values()))


_NAMES = {int: "whole number", list: "array", dict: "object"}


def _form(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
