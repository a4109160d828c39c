from typing import Any

import numpy as np
import pytest
import torch

from dha.data.labels import Labels, check_labels, encode, find_classes
from dha.errors import DhaError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 1], [3, 1]),
        (("b", "a"), ["b", "a"]),
        (np.array([3, 1], dtype=np.uint8), [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        (np.array(["b", "a"], dtype=object), ["b", "a"]),
        ([np.int64(3), 1], [3, 1]),
        ([True, False], [True, False]),
        (np.array([True, False]), [True, False]),
        (np.array([2.0, 1.0]), [2, 1]),
        ([2.0, np.float32(1)], [2, 1]),
        (np.array([2, 1], dtype=np.uint64), [2, 1]),
    ],
)
def test_whole_numbers_and_strings_are_taken(labels: Any, expected: list[Any]):
    checked = check_labels(labels, 2, "labels").tolist()
    assert checked == expected
    assert [type(label) for label in checked] == [type(label) for label in expected]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], "y are 3, but there are 2 images"),
        ([[1], [2]], r"y have shape \(2, 1\); pass a 1-D array"),
        ([[1], [2, 3]], r"y\[0\] is \[1\] \(list\)"),
        (np.array([0.0, np.nan]), r"y\[1\] is missing \(nan\); label this image"),
        (["a", None], r"y\[1\] is missing \(None\)"),
        ([0.5, 1.0], r"y\[0\] is 0\.5 \(float\); pass whole numbers \(\.astype\(int\)\)"),
        (["a", 1], "y mix strings and numbers"),
        ([True, 2], "y mix numbers and booleans"),
        (np.array([1, 2**63], dtype=np.uint64), r"y\[1\] is 9223372036854775808; pass whole numbers of 64 bits"),
        (["a", "a\0"], r"y\[1\] is 'a\\x00'; leave out the character of code 0"),
        (["a", "b" * 10**6], r"y\[1\] has 1000000 characters \('bbbbbbbbbbbbbbbbbbbb'\.\.\.\); pass at most 1000"),
        ([b"a", b"b"], r"y\[0\] is b'a' \(bytes\)"),
        (7, r"y have shape \(\)"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str):
    with pytest.raises(DhaError, match=message):
        check_labels(labels, 2, "y")


def test_booleans_come_back_as_booleans():
    assert find_classes(Labels.of(check_labels([True, False, True], 3, "y"))) == (False, True)
    assert [type(name) for name in find_classes(Labels.of(np.array([True, False])))] == [bool, bool]


@pytest.mark.parametrize("values", [["b", "c", "b", "a", "b"], [7, 300, 7, -1, 7]])
def test_labels_of_chunks_are_those_of_the_whole(values: list[Any]):
    whole, chunks = np.array(values), [np.array(values[:2]), np.array(values[2:3]), np.array(values[3:])]
    for labels in (Labels.of(whole), Labels.of(iter(chunks))):
        assert len(labels) == 5
        assert labels.numbers.dtype == np.int32
        assert labels.values.tolist() == sorted(set(values))
        assert labels.values[labels.numbers].tolist() == values
    assert len(Labels.of(iter([]))) == 0


def test_numbers_in_errors_begin_where_they_are_told():
    with pytest.raises(DhaError, match=r"y\[11\] is missing"):
        check_labels(["a", None], 2, "y", first=10)


def test_classes_are_sorted_python_values():
    classes = find_classes(Labels.of(np.array([10, 2, 10, 2, 7], dtype=np.uint8)))
    assert classes == (2, 7, 10)
    assert all(type(name) is int for name in classes)
    assert find_classes(Labels.of(np.array(["pear", "fig", "pear"]))) == ("fig", "pear")


def test_declared_order_wins_and_absent_classes_are_left_out():
    assert find_classes(Labels.of(np.array(["a", "z", "a"])), ["z", "m", "a"]) == ("z", "a")


def test_encode_numbers_by_place():
    assert encode(Labels.of(np.array(["b", "c", "b", "a"])), ("c", "a", "b"), "data", "model").tolist() == [2, 0, 2, 1]
    assert encode(Labels.of(np.array([7, 3], dtype=np.uint8)), (3, 7), "data", "model").tolist() == [1, 0]


def test_encode_names_the_unknown_class():
    with pytest.raises(
        DhaError, match=r"class 'd' in the test part is not among the 2 classes of the model \('a', 'b'\)"
    ):
        encode(Labels.of(np.array(["a", "d"])), ("a", "b"), "the test part", "the model")


def test_arrays_of_a_type_that_no_label_has_are_refused():
    pairs = np.zeros(2, dtype="<f4,U1")
    pairs["f1"].view(np.uint32)[:] = 2**21
    for labels in (pairs, np.zeros(2, dtype=complex)):
        with pytest.raises(DhaError, match=r"y have the type .*; pass whole numbers"):
            check_labels(labels, 2, "y")
    with pytest.raises(DhaError, match="y hold characters that do not exist"):
        check_labels(np.full(2, 2**21, dtype=np.uint32).view("<U1"), 2, "y")


def test_arrays_of_strings_that_a_model_cannot_hold_are_refused():
    with pytest.raises(DhaError, match=r"y\[1\] has 1001 characters"):
        check_labels(np.array(["a", "b" * 1001]), 2, "y")
