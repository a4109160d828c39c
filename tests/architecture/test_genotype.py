import json

import pytest

from dha.architecture import CellSearchNetwork, Genotype
from dha.errors import DhaError

GENOTYPE = CellSearchNetwork(1, 2, 8, cells=3, channels=4, seed=2).genotype


def test_round_trip_through_json():
    assert Genotype.from_dict(json.loads(json.dumps(GENOTYPE.to_dict()))) == GENOTYPE


def test_reads_as_people_write_architectures():
    text = str(GENOTYPE)
    assert "3 cells, 4 channels" in text
    assert text.count("normal") == text.count("reduction") == 4
    assert "cell k-1" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": [[[0, "conv_9x9"], [1, "skip"]]]}, "conv_9x9"),
        ({"normal": [[[0, "skip"], [2, "skip"]]]}, "input 2 of node 0"),
        ({"cells": 10**9}, "1000000000"),
        ({"channels": 0}, "0, 20"),
        ({"reduction": None}, "genotype"),
    ],
)
def test_tampered_genotype_is_refused(change, message):
    with pytest.raises(DhaError, match=message):
        Genotype.from_dict({**GENOTYPE.to_dict(), **change})
