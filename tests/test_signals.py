import os
import signal

import pytest

from dha.signals import ENDING, EndBySignal, Ended, Stop


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_every_ending_signal_is_noted_and_a_second_one_does_not_end_what_is_being_saved(number, capfd):
    before = signal.getsignal(number)
    with Stop(told=True) as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == number
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("saves its state") == 1


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_before_there_is_anything_to_save_unwinds_and_a_second_one_does_not_disturb_that(number):
    def interrupted():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            tidied.append(True)

    tidied = []
    with EndBySignal(), pytest.raises(Ended) as ended:
        interrupted()
    assert ended.value.signal == number
    assert tidied


def test_hangups_that_are_ignored_stay_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop, EndBySignal():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_who_does_not_listen_changes_no_handler():
    before = [signal.getsignal(number) for number in ENDING]
    with Stop(listen=False):
        assert [signal.getsignal(number) for number in ENDING] == before
