"""The device of a training, as a run names it."""

from pathlib import Path

import pytest

from cifar_mlflow.config import HardwareConfig
from cifar_mlflow.training.device import set_up_hardware


def test_the_name_tells_processors_apart_that_virtual_machines_name_alike() -> None:
    details = Path("/proc/cpuinfo")
    if not details.exists() or "cpu family" not in (text := details.read_text()):
        pytest.skip("this system does not tell the processor's family")
    family = text.partition("cpu family")[2].split()[1]
    name = set_up_hardware(HardwareConfig(device="cpu", threads=1)).name
    assert name.endswith(f"(family {family}), 1 thread")
