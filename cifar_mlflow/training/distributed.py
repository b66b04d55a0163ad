"""One training on several processes, which torchrun starts: `World` is all that the rest of the code sees.

Each process (a rank) holds the whole network and computes a share of each batch. DistributedDataParallel adds
up the gradients, so all ranks take the same step. Without torchrun there is one rank, and nothing is sent.

A rank that is killed closes its connections. The next exchange of the others fails at once and raises
PeerLostError. A signal to torchrun reaches all ranks instead, and they agree on the step to stop at. An
exchange that still succeeds therefore distinguishes a stopped training from a broken one.
"""

import functools
import os
import signal
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from cifar_mlflow.environment import patience_seconds, rank, world_size
from cifar_mlflow.errors import CifarError, UsageError

T = TypeVar("T")

# How long an exchange waits for a rank that is connected but silent (a machine without power, a slow
# download); rank 0 may also wait for MLflow before it answers.
SILENCE_SECONDS = 600
POLL_SECONDS = 0.002
FAILURE = "cifar_mlflow/failure"  # key of torchrun's store: why the first rank failed


class PeerLostError(CifarError):
    """Another process of the training failed, was killed or cannot be reached."""


@dataclass
class Share:
    """The images of a batch, or of a part of it, that this process computes.

    Attributes:
        start, stop: their positions in the part.
        total: number of images in the part, over all ranks.
    """

    start: int = 0
    stop: int = 0
    total: int = 0

    def set(self, other: "Share") -> None:
        self.start, self.stop, self.total = other.start, other.stop, other.total


class World:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: number of this process; 0 writes the checkpoint and talks to MLflow.
        size: number of processes.
        local_rank, local_size: the same among the processes on this machine.
        machines: the number of processes on each machine, by its name.
    """

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.machines = f"{size} on {socket.gethostname()}"
        self._store: Store | None = None
        self._entered = 0
        self._torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @classmethod
    def alone(cls) -> Self:
        """Return the world of a process that trains by itself."""
        return cls(0, 1, 0, 1)

    @classmethod
    def of_torchrun(cls) -> Self:
        """Return the world that torchrun describes in the environment; without torchrun, `alone`."""
        if world_size() == 1:
            return cls.alone()
        # Launchers that start one process per machine leave the local numbers out.
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(rank(), world_size(), local_rank, local_size)

    def __enter__(self) -> Self:
        """Connect to the other processes, unless an outer block has done so.

        Raises:
            UsageError: torchrun would restart failed processes, each time with a new run.
            PeerLostError: the other processes do not connect.
        """
        self._entered += 1
        if self.size == 1 or self._entered > 1:
            return self
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            raise UsageError(
                "torchrun --max-restarts would start the training from the beginning, as another run: leave "
                "it out, and continue a run that failed with --resume"
            )
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        timeout = timedelta(seconds=SILENCE_SECONDS + patience_seconds())
        with _explained(None):
            self._store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("training", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
            )
        counts = Counter(self._gather(socket.gethostname()))
        self.machines = ", ".join(f"{count} on {machine}" for machine, count in counts.items())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the others at the end of the outermost block; after an error, tell them the reason first."""
        self._entered -= 1
        if self._store is None or self._entered:
            return
        if isinstance(error, Exception) and not isinstance(error, PeerLostError):
            # Only the first reason counts: the errors of other ranks follow from it.
            reason = f"rank {self.rank}: {str(error).strip() or type(error).__name__}"
            with suppress(RuntimeError):  # the store was on a machine that is gone
                self._store.compare_set(FAILURE, "", reason)
        if error is None or not torch.cuda.is_initialized():
            # After an error on a GPU this could wait forever; there, the end of the process disconnects it.
            dist.destroy_process_group()
        self._store = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def explained(self) -> AbstractContextManager[None]:
        """Return a context that raises PeerLostError for an exchange that failed in the block."""
        return _explained(self._store) if self._store else nullcontext()

    def share(self, total: int) -> Share:
        """Return which of `total` items are this rank's; shares of the ranks differ by at most one item."""
        start, stop = (total * number // self.size for number in (self.rank, self.rank + 1))
        return Share(start, stop, total)

    def parallel(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Give all ranks the weights of rank 0; return a module that averages gradients over the ranks."""
        if self.size == 1:
            return module
        with self.explained():
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
            with warnings.catch_warnings():
                # torch 2.14 calls `broadcast_buffers` deprecated, but earlier releases have nothing else. The
                # buffers need no exchange: statistics of batch norm are computed together.
                warnings.simplefilter("ignore", FutureWarning)
                return DistributedDataParallel(
                    module,
                    device_ids=[device.index] if device.type == "cuda" else None,
                    broadcast_buffers=False,
                    process_group=self._group_for_gradients(device),
                )

    @staticmethod
    def _group_for_gradients(device: torch.device) -> dist.ProcessGroup | None:
        """Return the group of DistributedDataParallel: one of its own on the CPU, else the default one.

        The module keeps its group, and the threads of gloo with it, until the interpreter ends. A thread that
        frees a tensor of Python then aborts the process. So the group of our own exchanges must end in
        `__exit__`, while the tensors of the gradients belong to C++ alone.
        """
        if device.type == "cuda":
            return None
        group = dist.new_group()
        assert isinstance(group, dist.ProcessGroup)  # all ranks are members
        return group

    def keep_gradients(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up on this rank but not exchanged."""
        if isinstance(module, DistributedDataParallel):
            return cast(AbstractContextManager[None], module.no_sync())
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace the tensor with its sum over the ranks, and return it; on a GPU, without waiting for it."""
        if self.size > 1:
            with self.explained():
                dist.all_reduce(tensor)
        return tensor

    def max(self, value: int) -> int:
        """Return the largest value of all ranks."""
        if self.size == 1:
            return value
        with self.explained():
            largest = torch.tensor(value)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def stop_signal(self, received: int | None) -> int:
        """Return the signal at which all ranks stop now, 0 if there is none.

        A rank whose torchrun was killed takes that for SIGTERM: Ctrl-C would no longer reach it.

        Args:
            received: the signal that this rank has received.
        """
        if not received and self.size > 1 and self._torchrun not in (None, os.getppid()):
            received = signal.SIGTERM
        return self.max(received or 0)

    def broadcast(self, value: T | None) -> T:
        """Return rank 0's value: anything that can be pickled; the others pass None."""
        values = [value]
        if self.size > 1:
            with self.explained():
                dist.broadcast_object_list(values)
        return cast(T, values[0])

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows (n, ...) of all ranks, in the order of the ranks."""
        return rows if self.size == 1 else torch.cat(self._gather(rows))

    def gather_shares(self, flat: Tensor, sizes: list[int]) -> None:
        """Fill `flat` (sum of sizes,) from all ranks: rank r has computed its r-th piece, (sizes[r],)."""
        with self.explained():
            for source, stretch in enumerate(flat.split(sizes)):
                if len(stretch):
                    dist.broadcast(stretch, source)

    def check_same(self, values: dict[str, object]) -> None:
        """Check that all ranks have the same settings and images.

        Raises:
            UsageError: they do not.
        """
        for other, theirs in enumerate(self._gather(values) if self.size > 1 else []):
            for name, value in values.items():
                if theirs[name] != value:
                    raise UsageError(
                        f"the processes of torchrun must have the same settings and images, but {name} is "
                        f"{value} in rank {self.rank} and {theirs[name]} in rank {other}"
                    )

    def wait_for(self, device: torch.device) -> None:
        """Wait until the GPUs of all ranks have finished the work queued so far.

        The kernel that exchanges gradients never ends if a rank is gone, and then nothing that waits for the
        GPU returns. So before anything waits for it, the ranks ask one another over the network.
        """
        if self.size == 1 or device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record()
        while self.max(int(not done.query())):
            time.sleep(POLL_SECONDS)

    def _gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self.explained():
            dist.all_gather_object(values, value)
        return values


@functools.cache
def this_world() -> World:
    """Return the world of this process; all parts of the program share its connections."""
    return World.of_torchrun()


@contextmanager
def _explained(store: Store | None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo has no exception of its own: its messages start with the place in its source.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise PeerLostError(_reason(store)) from error


def _reason(store: Store | None) -> str:
    """Return the failure that another rank has reported, or a text for one that could not report any."""
    with suppress(RuntimeError):  # the store was on a machine that is gone
        if store is not None and store.check([FAILURE]):
            return store.get(FAILURE).decode()
    return "another process of this training was killed or cannot be reached"
