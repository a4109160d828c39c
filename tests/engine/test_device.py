import logging

import pytest
import torch

from dha import DhaError
from dha.engine import HostCopy, make_fabric, precision_of, present_device, set_precision


def test_automatic_choice_is_a_device_of_this_machine():
    fabric = make_fabric("auto", "auto", image_size=8)
    assert torch.ones(2, device=fabric.device).sum() == 2


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_forward_pass(precision, dtype):
    fabric = make_fabric("cpu", precision, image_size=8)
    with fabric.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_precision_can_be_changed_before_networks_are_set_up():
    fabric, network, dtypes = make_fabric("cpu", "32", image_size=8), torch.nn.Linear(2, 2), []
    network.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    for precision in ("bf16", "bf16", "32"):
        set_precision(fabric, precision)
        assert precision_of(fabric) == precision
        output = fabric.setup_module(network)(torch.ones(1, 2))
        assert isinstance(output, torch.Tensor)
        assert output.dtype == torch.float32
        with fabric.autocast():
            network(torch.ones(1, 2))
    assert dtypes == [torch.bfloat16] * 4 + [torch.float32] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_named_with_those_that_are_there():
    with pytest.raises(DhaError, match=r"device='cuda'.*cpu"):
        make_fabric("cuda", "auto", image_size=8)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
)
def test_host_copy_holds_the_values(device):
    values = torch.arange(5.0, device=device)
    copy = HostCopy(values).wait()
    assert copy.device.type == "cpu"
    assert copy.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0x", "mps:9", "cuda:99", "", "cpu:1"])
def test_devices_that_are_not_here_are_named(name):
    with pytest.raises(DhaError, match=f"^device='{name}'"):
        present_device(name)
    assert present_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("strategy", "variables", "message"),
    [
        ("nonsense", {}, r"^strategy='nonsense' cannot be used here .*nonsense"),
        ("auto", {"LOCAL_WORLD_SIZE": "abc"}, r"^LOCAL_WORLD_SIZE='abc': expected the number"),
        ("auto", {"LOCAL_WORLD_SIZE": "0"}, r"^LOCAL_WORLD_SIZE='0': expected the number"),
        ("auto", {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}, r"^devices=1 and num_nodes=1: .*SLURM"),
    ],
)
def test_what_the_processes_of_a_run_cannot_be_started_by_is_named(strategy, variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DhaError, match=message):
        make_fabric("cpu", "32", image_size=None, strategy=strategy)


def test_the_logger_of_fabric_is_left_as_it_was():
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    make_fabric("cpu", "bf16", image_size=8)
    assert logger.level == level
