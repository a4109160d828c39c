import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dha import DhaError
from dha.architecture import GivenGenotype, Size, given_network, plain_network
from dha.data import Preprocessing
from dha.model import TrainedModel

RESIDUAL = {"space": "residual", "blocks": [["pair_3x3"], ["skip"], ["skip"]], "width": 4, "depth": 1, "resolution": 8}
CELLS = {
    "space": "cells",
    "normal": [[[0, "skip"], [1, "separable_3x3"]]],
    "reduction": [[[0, "skip"], [1, "skip"]]],
    "cells": 1,
    "channels": 4,
    "resolution": 8,
}


def saved(folder: Path, genotype: dict[str, Any]) -> Path:
    network = plain_network(genotype, 1, 2, 8)
    TrainedModel(network, ("a", "b"), Preprocessing(8, 1, (0.3,), (0.4,)), network.genotype).save(folder)
    return folder


def tamper(folder: Path, *path: str, value: Any) -> None:
    file = folder / "model.json"
    description = json.loads(file.read_text())
    inner = description
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(description))


@pytest.mark.parametrize("genotype", [RESIDUAL, CELLS], ids=["residual", "cells"])
def test_a_model_is_read_to_the_bit(genotype: dict[str, Any], tmp_path: Path):
    images = torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)
    model = TrainedModel.load(saved(tmp_path / "m", genotype))
    model.save(tmp_path / "again")
    assert not any(tensor.is_meta for tensor in model.network.state_dict().values())
    assert torch.equal(TrainedModel.load(tmp_path / "again").probabilities(images), model.probabilities(images))


@pytest.mark.parametrize(
    ("genotype", "path", "value", "message"),
    [
        (RESIDUAL, ("format",), True, "format is True: expected a JSON whole number"),
        (RESIDUAL, ("format",), 3, "has format 3, this dha reads 2: update dha"),
        (RESIDUAL, ("format",), 1, "has format 1, this dha reads 2: train the model again"),
        (RESIDUAL, ("classes",), "ab", "classes is 'ab': expected a JSON array"),
        (RESIDUAL, ("classes",), ["a", 1], "class 1: expected all strings .* or all whole numbers"),
        (RESIDUAL, ("classes",), [0, True], "class True"),
        (RESIDUAL, ("classes",), [0, 2**64], "class 18446744073709551616"),
        (RESIDUAL, ("classes",), ["a", "a"], "2 classes, 1 different"),
        (
            RESIDUAL,
            ("classes",),
            ["a", "b", "c"],
            r"head\.weight.* \(2, 32\), in the network it is float32 \(3, 32\)",
        ),
        (RESIDUAL, ("preprocessing",), None, "preprocessing is None: expected a JSON object"),
        (RESIDUAL, ("preprocessing", "image_size"), 10**9, "image_size is 1000000000; pass 4 to 2048"),
        (RESIDUAL, ("preprocessing", "image_size"), "8", "image_size of the preprocessing is '8'; pass a whole number"),
        (RESIDUAL, ("preprocessing", "std"), [float("nan")], "std is .*finite"),
        (RESIDUAL, ("preprocessing", "mean"), [1e308], "mean is .*at most 1"),
        (RESIDUAL, ("preprocessing", "std"), [1e-320], "std is .*above 0"),
        (RESIDUAL, ("preprocessing", "mean"), [0.5] * 10**6, r"mean has 1000000 values \(0.5.{,80}; pass one"),
        (RESIDUAL, ("genotype", "blocks"), [["pair_3x3"] * 20_000, ["skip"], ["skip"]], "a candidate twice in block"),
        (RESIDUAL, ("genotype", "blocks"), ["a" * 10**6], "a candidate twice in block"),
        (RESIDUAL, ("classes",), ["a", "b" * 1001], "class 'bbb.{,90}: expected all strings of at most 1000"),
        (RESIDUAL, ("preprocessing", "mean"), [float("inf")], "mean is .*finite"),
        (RESIDUAL, ("genotype", "width"), float("inf"), "inf is no whole number"),
        (RESIDUAL, ("genotype", "width"), "4", "'4' is no whole number"),
        (RESIDUAL, ("genotype", "depth"), 1000, "1..100"),
        (RESIDUAL, ("genotype", "width"), 8, r"is float32 \(4.*, in the network it is float32 \(8"),
        (RESIDUAL, ("genotype", "blocks"), [["../../weights"]] * 3, "'../../weights'.*expected some of pair_3x3"),
        (RESIDUAL, ("genotype", "space"), "/etc/passwd", "space '/etc/passwd': this dha knows cells"),
        (CELLS, ("genotype", "normal"), [[[0, "skip"]] * 2], "2 inputs of node 0, where 1 or 2 different ones"),
        (CELLS, ("genotype", "normal"), [[]], "0 inputs of node 0"),
        (CELLS, ("genotype", "cells"), 1.5, "1.5 is no whole number"),
    ],
)
def test_tampered_descriptions_are_refused(
    genotype: dict[str, Any], path: tuple[str, ...], value: Any, message: str, tmp_path: Path
):
    folder = saved(tmp_path / "m", genotype)
    tamper(folder, *path, value=value)
    with pytest.raises(DhaError, match=message):
        TrainedModel.load(folder)


@pytest.mark.parametrize("genotype", [{**RESIDUAL, "width": 4096}, {**CELLS, "channels": 4096}])
def test_a_shape_bomb_takes_no_memory(genotype: dict[str, Any], tmp_path: Path):
    folder = saved(tmp_path / "m", CELLS if genotype["space"] == "cells" else RESIDUAL)
    tamper(folder, "genotype", value=genotype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DhaError, match="in the network it is"):
        TrainedModel.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_weights_of_another_type_and_a_header_that_claims_more_than_there_is(tmp_path: Path):
    file = saved(tmp_path / "m", RESIDUAL) / "weights.safetensors"
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    with pytest.raises(DhaError, match=r"is float16 .* in the network it is float32"):
        TrainedModel.load(tmp_path / "m")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DhaError, match="damaged"):
        TrainedModel.load(tmp_path / "m")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, '{"format": 1e999}', "null", "\x00", '{"format": 1}'])
def test_json_that_hurts_parsers_is_refused(text: str, tmp_path: Path):
    (saved(tmp_path / "m", RESIDUAL) / "model.json").write_text(text)
    with pytest.raises(DhaError, match=r"model\.json|damaged"):
        TrainedModel.load(tmp_path / "m")


def test_a_huge_description_is_not_even_read(tmp_path: Path):
    with (saved(tmp_path / "m", RESIDUAL) / "model.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DhaError, match="1099511627776 bytes"):
        TrainedModel.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["policy.json", "model.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_special_and_huge_files_are_refused_at_once(name: str, kind: str, tmp_path: Path):
    file = saved(tmp_path / "m", RESIDUAL) / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.touch()
        os.truncate(file, 2**36)
    with pytest.raises(DhaError, match=r"regular file|not a dha model|no such file|68719476736 bytes"):
        TrainedModel.load(tmp_path / "m")


def test_model_files_behind_links_are_read(tmp_path: Path):
    folder = saved(tmp_path / "m", RESIDUAL)
    (tmp_path / "linked").mkdir()
    for file in folder.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    assert TrainedModel.load(tmp_path / "linked").classes == ("a", "b")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path):
    file = saved(tmp_path / "m", RESIDUAL) / "weights.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["head.weight"][1, 3] = value
    safetensors.torch.save_file(weights, file)
    with pytest.raises(DhaError, match=r"head.weight' has values that are not finite"):
        TrainedModel.load(tmp_path / "m")


def test_a_network_that_overflows_gives_no_probabilities(tmp_path: Path):
    file = saved(tmp_path / "m", RESIDUAL) / "weights.safetensors"
    weights = safetensors.torch.load_file(file)
    large = {name: value.fill_(1e30) if name.endswith(".weight") else value for name, value in weights.items()}
    safetensors.torch.save_file(large, file)
    with pytest.raises(DhaError, match="3 of 3 images have no finite probabilities"):
        TrainedModel.load(tmp_path / "m").probabilities(torch.full((3, 1, 8, 8), 255, dtype=torch.uint8))


def test_names_in_a_description_are_printed_as_one_line(tmp_path: Path):
    folder = saved(tmp_path / "m", RESIDUAL)
    tamper(folder, "genotype", value=GivenGenotype("x; touch PWNED\n\x1b[2J :f").to_dict())
    with pytest.raises(DhaError, match=r"--network 'x; touch PWNED\\n\\x1b\[2J :f'$") as caught:
        TrainedModel.load(folder)
    assert str(caught.value).isprintable()
    tamper(folder, "genotype", value=GivenGenotype("x" * 10**6).to_dict())
    with pytest.raises(DhaError, match="not the genotype of a given network") as caught:
        TrainedModel.load(folder)
    assert len(str(caught.value)) < 500


def test_another_function_than_that_of_the_run_is_told(tmp_path: Path):
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\ndef one(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\ntwo=one")
    network = given_network(f"{code}:one", 1, 2, 8)
    model = TrainedModel(network, ("a", "b"), Preprocessing(8, 1, (0.3,), (0.4,)), GivenGenotype(f"{code}:one"))
    model.save(tmp_path / "m")
    moved = tmp_path / "elsewhere" / "net.py"
    moved.parent.mkdir()
    moved.write_text(code.read_text())
    TrainedModel.load(tmp_path / "m", network=f"{moved}:one")
    with pytest.warns(RuntimeWarning, match=r"holds the weights of '.*net.py:one'.* taken into '.*net.py:two'"):
        TrainedModel.load(tmp_path / "m", network=f"{code}:two")


def test_a_path_in_the_genotype_is_not_followed(tmp_path: Path):
    code = tmp_path / "evil.py"
    code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'proof')!r}).touch()\ndef make(): ...\n")
    folder = saved(tmp_path / "m", RESIDUAL)
    tamper(folder, "genotype", value=GivenGenotype(f"{code}:make").to_dict())
    with pytest.raises(DhaError, match="runs no code that it names"):
        TrainedModel.load(folder)
    assert not (tmp_path / "proof").exists()
    with pytest.raises(DhaError):
        TrainedModel.load(folder, network=f"{code}:make")
    assert (tmp_path / "proof").exists(), "the code works, so the test above can fail"


def test_the_limits_leave_room_for_what_runs_make():
    for space, size in {"residual": Size(64, 3, 40), "mobile": Size(32, 4, 224)}.items():
        from dha.architecture import search_network
        from dha.architecture.choice import derive

        network = derive(search_network(space, 3, 10, 32, size))
        genotype: Any = network.genotype
        with torch.device("meta"):
            assert plain_network(genotype.to_dict(), 3, 10, 32).genotype == genotype
