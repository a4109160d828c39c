import io
import os
import sys
import warnings

import pytest

from dha import DhaError
from dha.terminal import first_process, put, put_if_possible, quoted, say, show_warnings_in_one_line


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"NODE_RANK": "10"}, False),
    ],
)
def test_the_first_of_several_processes_speaks(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first


def test_a_stream_of_another_encoding_takes_what_it_can(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii"))
    put("é\udcff")
    assert raw.getvalue() == b"\\xe9\\udcff\n"


@pytest.mark.parametrize(("name", "print_"), [("stdout", put_if_possible), ("stderr", say)])
def test_streams_that_are_full_or_missing_decide_nothing(name, print_, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    print_("text")
    with open("/dev/full", "w") as stream:  # It would raise in the end if something were still to be written.
        monkeypatch.setattr(sys, name, stream)
        print_("text")


def test_results_that_cannot_be_written_are_an_error(monkeypatch):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(DhaError, match="standard output cannot be written"):
            put("text")


def test_warnings_are_lines_without_a_place_in_the_code(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", None)
    show_warnings_in_one_line()
    warnings.showwarning("two\nlines", UserWarning, "/x/y.py", 3)
    assert capsys.readouterr().err == "dha: warning: two lines\n"


def test_arguments_are_quoted_for_a_shell():
    assert [quoted(a) for a in ("a", "a b", "a'b", "a\nb")] == ["a", "'a b'", """'a'"'"'b'""", "$'a\\012b'"]
    assert quoted(os.fsdecode(b"\xff'")) == "$'\\377\\047'"


def test_a_closed_standard_output_loses_no_result_silently(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(DhaError, match="standard output is closed: give it a file or a pipe"):
        put("a result")
