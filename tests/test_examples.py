import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").rglob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_learns(script, capsys, monkeypatch):
    from dha.architecture import OPERATIONS

    assert len(script.read_text().splitlines()) < 70
    before = dict(OPERATIONS)
    monkeypatch.setattr(sys, "argv", [str(script)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        OPERATIONS.clear()
        OPERATIONS.update(before)
    accuracy = float(capsys.readouterr().out.rsplit("test accuracy: ", 1)[1].split(" %")[0])
    assert accuracy > 60
