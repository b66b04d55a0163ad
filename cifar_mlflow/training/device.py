"""The device that a training runs on, and its precision."""

import ctypes
import os
import platform
import re
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_mlflow.config import HardwareConfig, TrainPrecision
from cifar_mlflow.environment import available_cores
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.predict import ComputePrecision, autocast
from cifar_mlflow.names import counted
from cifar_mlflow.training.distributed import World

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


@dataclass(frozen=True)
class Hardware:
    """A device, and the precision of the forward and backward pass on it (weights stay in fp32)."""

    device: torch.device
    precision: ComputePrecision

    @property
    def name(self) -> str:
        """The name of the device for the user: `NVIDIA H100`, `AMD EPYC (family 26), 2 threads`."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "mps":
            return "Apple GPU"
        count = torch.get_num_threads()
        return f"{cpu_name()}, {counted(count, 'thread')}"

    def autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.precision)

    def peak_memory_mib(self) -> int:
        """Return the largest memory so far, in MiB: of torch's tensors on a GPU, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) // 2**20
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // (2**20 if sys.platform == "darwin" else 2**10)


def cpu_name() -> str:
    """Return the name of the processor, on Linux with its family: `AMD EPYC (family 26)`.

    Virtual machines give processors of several generations the same name, and their speeds differ twofold.
    """
    name = str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))
    details = Path("/proc/cpuinfo")
    family = re.search(r"^cpu family\s*: (\d+)$", details.read_text(), re.M) if details.exists() else None
    return f"{name} (family {family[1]})" if family else name


def set_up_hardware(
    config: HardwareConfig, precision: TrainPrecision = "fp32", world: World | None = None
) -> Hardware:
    """Choose device and precision, and set torch's process-wide state: threads and determinism.

    Args:
        world: the processes that share this machine's cores, and have a GPU each.

    Raises:
        UsageError: this machine does not have the device, or not for all processes.
    """
    world = world or World.alone()
    torch.set_num_threads(config.threads or max(1, available_cores() // world.local_size))
    if torch.are_deterministic_algorithms_enabled() != config.deterministic:
        torch.use_deterministic_algorithms(config.deterministic)  # only if needed: it imports the compiler
    if config.deterministic:
        # cuBLAS is reproducible only with a fixed workspace, and reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.set_float32_matmul_precision("high")

    device = torch.device(_choose_device(config.device))
    if world.size > 1:
        device = _own_device(device, world)
    return Hardware(device, _auto_precision(device) if precision == "auto" else precision)


def keep_freed_memory() -> None:
    """Make the C library of this process keep freed memory for the next tensors, if it is glibc.

    By default it returns every tensor of more than 32 MiB to the system. The system then clears the pages of
    the next one, which took a fifth of the time of ResNet-18's steps (docs/experiments.md, 2026-12-01).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # from the heap, also if large
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never give the end of the heap back


def _own_device(device: torch.device, world: World) -> torch.device:
    """Return the device of this process among those that share the machine."""
    if device.type == "mps":
        raise UsageError(
            "--device: an Apple GPU serves one process; choose --device cpu or leave torchrun out"
        )
    if device.type != "cuda":
        return device
    if world.local_size > torch.cuda.device_count():
        raise UsageError(
            f"--device: this machine has {counted(torch.cuda.device_count(), 'GPU')} for the "
            f"{world.local_size} processes that torchrun started on it: "
            "lower --nproc-per-node, or choose --device cpu"
        )
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return own


def _auto_precision(device: torch.device) -> ComputePrecision:
    if bf16_is_fast(device):
        return "bf16"
    # Volta and Turing have tensor cores for fp16 only; older GPUs have none.
    tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
    return "fp16" if tensor_cores else "fp32"


def _choose_device(wanted: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        present = ", ".join(name for name, is_available in available.items() if is_available)
        raise UsageError(f"--device: this machine has no {wanted} that torch can use; it has {present}")
    return wanted


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False
