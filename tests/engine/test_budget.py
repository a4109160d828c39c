import time

import pytest

from dha.engine import Budget


def test_steps_count_when_there_is_no_time_limit():
    budget = Budget(seconds=None, steps=4, started=time.monotonic())
    seen = []
    for _ in range(5):
        seen.append(budget.progress())
        budget.advance()
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_time_counts_from_the_start_of_training_to_the_closing(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    # The run began 10 s ago, so 90 s of its 100 are left; 20 of them belong to the closing.
    budget = Budget(seconds=100, steps=0, started=90.0)
    budget.closing = 20.0
    assert budget.progress() == 0
    now = 135.0
    assert budget.progress() == pytest.approx(0.5)
    now = 170.0
    assert budget.progress() == 1
    budget.closing = 1e9
    assert budget.progress() == 1, (
        "never more than a part of the budget is kept for the closing, and never less than none"
    )


def test_a_budget_that_is_over_before_training_begins_ends_at_once():
    assert Budget(seconds=1, steps=0, started=time.monotonic() - 5).progress() == 1
