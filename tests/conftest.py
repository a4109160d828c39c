import signal

import pytest
import torch

from dha import ArchitectureConfig, Config

# Who starts the tests in the background, or with nohup, ignores these, and every process from there on inherits that.
for _name in ("SIGHUP", "SIGQUIT"):
    if hasattr(signal, _name):
        signal.signal(getattr(signal, _name), signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    # Begun first, so that no process is left alone with it: its tests share runs, and take longest together.
    items.sort(key=lambda item: item.path.name != "test_resume.py")


@pytest.fixture(autouse=True)
def one_thread_and_one_seed():
    # Tests work on tiny images, where a second thread costs more than it brings, and several may run side by side.
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def small():
    """A configuration that trains on digits in a second or two."""

    def make(**settings):
        architecture = ArchitectureConfig(depth=2, width=4, nodes=2)
        return Config(**{"epochs": 1, "device": "cpu", "space": "cells", "architecture": architecture, **settings})

    return make
