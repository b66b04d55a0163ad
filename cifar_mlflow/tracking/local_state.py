"""What a run keeps on this machine while it lasts: its checkpoint, and a lock that says that it is alive."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_mlflow.errors import CifarError
from cifar_mlflow.training.checkpoint import CheckpointFile

# Beside the owner, for a run of a study: the command that goes on with that.
STUDY_COMMAND = "command"


@dataclass(frozen=True)
class Owner:
    """Who writes a run: MLflow's store that it is in, the machine, and the study it belongs to, if any."""

    tracking_uri: str
    host: str
    study: str | None = None


class RunDirectory:
    """`<cache_dir>/runs/<run_id>`. The kernel frees the lock of a process that is killed, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = CheckpointFile(path / "checkpoint.pt")
        self._lock = FileLock(path / "lock")

    @classmethod
    def of(cls, cache_dir: Path, run_id: str) -> "RunDirectory":
        return cls(cache_dir / "runs" / run_id)

    @classmethod
    def all(cls, cache_dir: Path) -> Iterator["RunDirectory"]:
        """Those whose owner is known: one that is just being made or removed has none."""
        for file in sorted(cache_dir.glob("runs/*/owner.json")):
            directory = cls(file.parent)
            if directory.owner is not None:
                yield directory

    def sign(self, tracking_uri: str, study: str | None = None) -> None:
        """Write down who works here. The lock must be held: an owner without one looks like a dead one.

        Raises:
            CifarError: the place cannot be written.
        """
        with self._place_errors():
            unfinished = self.path / "owner.new"
            owner = Owner(tracking_uri, socket.gethostname(), study)
            unfinished.write_text(json.dumps(asdict(owner)))
            unfinished.replace(self.path / "owner.json")

    @property
    def owner(self) -> Owner | None:
        """None where there is no file that says so, or it is damaged."""
        try:
            return Owner(**json.loads((self.path / "owner.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def is_ours(self, tracking_uri: str) -> bool:
        """Whether this machine wrote it, for this store: only then a free lock means a dead process."""
        owner = self.owner
        return owner is not None and (owner.host, owner.tracking_uri) == (socket.gethostname(), tracking_uri)

    @property
    def resume_hint(self) -> str:
        """How to go on, to be put behind the news that the run was stopped; empty where it cannot."""
        owner = self.owner
        if owner and owner.study:
            with suppress(OSError):
                return f"; its study goes on with: {(self.path / STUDY_COMMAND).read_text()}"
            return f"; its study, {owner.study}, goes on with the command that began it"
        if not self.checkpoint.path.exists():
            return ""
        return f"; continue with: cifar-mlflow train --resume {self.path.name}"

    def acquire(self) -> None:
        """Make the directory and hold its lock until `release` or the end of the process.

        Raises:
            CifarError: another process holds it, or the place cannot be written.
        """
        with self._place_errors():
            self.path.mkdir(parents=True, exist_ok=True)
        # A training that looks for dead runs holds each lock for the moment of a question to MLflow.
        if not self.try_acquire(seconds=2):
            raise CifarError(
                f"run {self.path.name} is being trained by another process: wait for it, or stop it"
            )

    @contextmanager
    def _place_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CifarError(
                f"checkpoints cannot be written to {self.path} ({error.strerror}): "
                "choose another place with --cache-dir"
            ) from error

    def try_acquire(self, seconds: float = 0) -> bool:
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        self._lock.release()

    def remove(self) -> None:
        """Forget a run that is finished, its weights in MLflow, or that has no checkpoint to go on from."""
        if self._lock.is_locked:  # else it is another process that is at work there
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
