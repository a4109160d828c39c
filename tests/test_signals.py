import os
import signal
import subprocess
import sys
import time

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


def test_a_late_signal_ends_a_process_that_does_not_end_by_the_first():
    code = """
import dha.signals, time
dha.signals.PATIENCE = 0.2
with dha.signals.EndBySignal():
    said = False
    while True:
        try:
            if not said:
                said = True
                print("ready", flush=True)
            time.sleep(0.05)
        except dha.signals.Ended:
            print("swallowed", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "swallowed\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
