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


def test_a_run_gone_on_with_counts_what_was_used_before(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = Budget(seconds=100, steps=0, started=90.0)
    first.closing = 20.0
    now = 135.0
    state = first.state_dict()
    assert state["used"] == 45
    # Hours later, in another process, which needs 5 s to begin: 30 s are left before the closing.
    now = 10_005.0
    again = Budget(seconds=100, steps=0, started=10_000.0)
    again.closing = 20.0
    again.load_state_dict(state)
    assert again.used() == 50
    assert again.progress() == pytest.approx(0.5)
    now += 15
    assert again.progress() == pytest.approx(0.75)
    now += 15
    assert again.progress() == 1


def test_going_back_takes_back_steps_but_not_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = Budget(seconds=100, steps=0, started=0.0)
    budget.closing = 0.0
    budget.advance()
    state = budget.state_dict()
    now = 50.0
    budget.advance()
    budget.load_state_dict(state, clock=False)
    assert budget.progress() == pytest.approx(0.5)
    assert budget.taken == 1
