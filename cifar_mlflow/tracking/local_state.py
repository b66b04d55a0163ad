"""The local files of an unfinished run: its checkpoint, and a lock that shows that it is alive."""

import json
import shlex
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Run

from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import atomic_write, write_errors
from cifar_mlflow.names import printable
from cifar_mlflow.training.checkpoint import CheckpointFile

# In the directory of a run that belongs to a study: the command that continues the study.
STUDY_COMMAND = "command"
CACHE_TAG = "cache_dir"  # of a run: where its directory is
CHOOSE_ANOTHER_PLACE = ": choose another place for checkpoints with --cache-dir"


@dataclass(frozen=True)
class Owner:
    """The content of `owner.json`: who writes a run.

    Attributes:
        tracking_uri: MLflow's store, without its password.
        host: name of the machine.
        study: name of the study that the run belongs to, if any.
    """

    tracking_uri: str
    host: str
    study: str | None = None


class RunDirectory:
    """The directory `<cache_dir>/runs/<run_id>`.

    The kernel frees the lock of a process that dies, so a free lock means that no process writes the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = CheckpointFile(path / "checkpoint.pt")
        self._lock = FileLock(path / "lock")

    @classmethod
    def of(cls, cache_dir: Path, run_id: str) -> "RunDirectory":
        return cls(cache_dir / "runs" / run_id)

    @classmethod
    def of_run(cls, run: Run) -> "RunDirectory":
        """Return the directory of a run in MLflow; runs of earlier releases do not name their cache."""
        return cls.of(Path(run.data.tags.get(CACHE_TAG) or default_cache_dir()), run.info.run_id)

    @classmethod
    def all(cls, cache_dir: Path) -> Iterator["RunDirectory"]:
        """Yield the directories with a known owner; one that is being created or removed has none."""
        for file in sorted(cache_dir.glob("runs/*/owner.json")):
            directory = cls(file.parent)
            if directory.owner is not None:
                yield directory

    @classmethod
    def resumable(cls, cache_dir: Path, tracking_uri: str, study: str | None) -> list[str]:
        """Return the ids of stopped runs, with a checkpoint, of this machine, store and study."""
        return [run.path.name for run in cls.all(cache_dir) if run.is_resumable(tracking_uri, study)]

    def is_resumable(self, tracking_uri: str, study: str | None) -> bool:
        """Return whether the run stopped, with a checkpoint, and is of this machine, store and study."""
        owner = Owner(tracking_uri, socket.gethostname(), study)
        # The owner first: of a run in a folder that is closed to this user, it is None.
        return self.owner == owner and self.checkpoint.path.exists() and not self.is_alive()

    def write_owner(self, tracking_uri: str, study: str | None = None) -> None:
        """Record which machine writes the run. Hold the lock: while it is free, the owner counts as dead.

        Raises:
            CifarError: the file cannot be written.
        """
        owner = Owner(tracking_uri, socket.gethostname(), study)
        with atomic_write(self.path / "owner.json", CHOOSE_ANOTHER_PLACE, private=True) as file:
            file.write_text(json.dumps(asdict(owner)))

    @property
    def owner(self) -> Owner | None:
        """The recorded owner; None if the file is missing or damaged."""
        try:
            return Owner(**json.loads((self.path / "owner.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def belongs_to(self, tracking_uri: str) -> bool:
        """Return whether this machine wrote the run to this store; only then does a free lock mean death."""
        owner = self.owner
        return owner is not None and (owner.host, owner.tracking_uri) == (socket.gethostname(), tracking_uri)

    @property
    def resume_hint(self) -> str:
        """Suffix for the message that the run was stopped: how to resume it; empty if that is impossible."""
        owner = self.owner
        if owner and owner.study:
            with suppress(OSError):
                return f"; continue its study with: {(self.path / STUDY_COMMAND).read_text()}"
            return f"; continue its study, {owner.study}, with the command that started it"
        if not self.checkpoint.path.exists():
            return ""
        return f"; continue with: {self.resume_command}"

    @property
    def resume_command(self) -> str:
        """The command that resumes the run; it names the cache unless that is the default one."""
        command, cache_dir = f"cifar-mlflow train --resume {self.path.name}", self.path.parents[1]
        with suppress(UsageError):  # without a home directory, there is no default
            if cache_dir == default_cache_dir().absolute():
                return command
        return printable(f"{command} --cache-dir {shlex.quote(str(cache_dir))}")

    def acquire(self) -> None:
        """Create the directory and hold its lock until `release` or the end of the process.

        Raises:
            CifarError: another process holds the lock, or the directory cannot be written.
        """
        with write_errors(self.path, CHOOSE_ANOTHER_PLACE):
            self.path.mkdir(parents=True, exist_ok=True)
            # `close_stale_runs` of another process holds each lock for the duration of one call to MLflow.
            acquired = self.try_acquire(seconds=2)
        if not acquired:
            raise CifarError(
                f"run {self.path.name} is being trained by another process: wait for it, or stop it"
            )
        for leftover in self.path.glob(".*.tmp"):  # a checkpoint whose writer was killed
            leftover.unlink(missing_ok=True)

    def try_acquire(self, seconds: float = 0) -> bool:
        """Acquire the lock; return False if another process still holds it after `seconds`."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def is_alive(self) -> bool:
        """Return whether a process writes the run."""
        if not self.try_acquire():
            return True
        self.release()
        return False

    def release(self) -> None:
        self._lock.release()

    def remove(self) -> None:
        """Delete the directory of a run that is finished or has no checkpoint to resume from."""
        if self._lock.is_locked:  # otherwise another process works there
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
