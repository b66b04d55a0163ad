"""The device that a training runs on, and its precision."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from cifar_mlflow.config import HardwareConfig
from cifar_mlflow.errors import UsageError


@dataclass(frozen=True)
class Hardware:
    """A device, and the precision of the forward and backward pass on it (weights stay in fp32)."""

    device: torch.device
    precision: Literal["fp32", "bf16"]

    @property
    def name(self) -> str:
        """The name of the device for the user: `NVIDIA H100`, `AMD EPYC, 2 threads`."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "mps":
            return "Apple GPU"
        return f"{torch.cpu.get_capabilities().get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads"

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def set_up_hardware(config: HardwareConfig, precision: Literal["auto", "fp32", "bf16"] = "fp32") -> Hardware:
    """Choose device and precision, and set torch's process-wide state: threads and determinism.

    Raises:
        UsageError: this machine does not have the device.
    """
    torch.set_num_threads(config.threads or _available_cores())
    if torch.are_deterministic_algorithms_enabled() != config.deterministic:
        torch.use_deterministic_algorithms(config.deterministic)  # only if needed: it imports the compiler
    if config.deterministic:
        # cuBLAS is reproducible only with a fixed workspace, and reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high")

    device = torch.device(_choose_device(config.device))
    if precision == "auto":
        precision = "bf16" if bf16_is_fast(device) else "fp32"
    return Hardware(device, precision)


def _available_cores() -> int:
    """Return the number of cores that taskset, Slurm or a container's cpuset leave to this process."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _choose_device(wanted: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        present = ", ".join(name for name, is_available in available.items() if is_available)
        raise UsageError(f"device: this machine has no {wanted} that torch can use; it has {present}")
    return wanted


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False
