"""The plots of each trial, drawn by the parent while its workers train the next trials.

Drawing takes as long as many short epochs, and a GPU would idle meanwhile. Workers therefore only save the
data for the plots, in a file that survives a kill.
"""

import logging
import os
import sys
import threading
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
from filelock import FileLock

from cifar_mlflow.console import spinner
from cifar_mlflow.data import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.calibration import Labels
from cifar_mlflow.evaluation.report import Report, log_pictures, report_of
from cifar_mlflow.files import atomic_write
from cifar_mlflow.tracking.artifacts import log_curves
from cifar_mlflow.tracking.run import TrackedRun, TrackingLostError

logger = logging.getLogger("cifar_mlflow.tuning")

POLL_SECONDS = 0.5
POLL_SECONDS_IN_OUTAGE = 30.0
HISTORY_PREFIX = "history/"
# numpy raises these for a file that a power failure cut off.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def save_for_plotting(
    folder: Path, run_id: str, report: Report, labels: Labels, history: pd.DataFrame
) -> None:
    """Save the data for the plots of a run as `<folder>/<run_id>.npz`.

    Args:
        report: of the validation split.
        labels: of the same split.
        history: one row per epoch, indexed by its number.

    Raises:
        CifarError: the folder cannot be written.
    """
    columns: dict[str, Any] = {HISTORY_PREFIX + str(name): history[name].to_numpy() for name in history}
    with atomic_write(folder / f"{run_id}.npz") as path, path.open("wb") as file:
        np.savez(
            file,
            logits=report.logits,
            labels=labels,
            epochs=history.index.to_numpy(),
            **columns,
        )


class TrialPlotter:
    """Draws the saved plots in a thread of low priority.

    Leaving the block draws the rest, except after Ctrl-C: the next command on the study does that.

    Args:
        folder: where the workers of this machine save the data; other commands on the study draw from it too.
        val: the validation split, which is the same for all trials.
    """

    def __init__(self, folder: Path, val: Split, classes: tuple[str, ...]) -> None:
        self._folder = folder
        self._val = val
        self._classes = classes
        self._lock = FileLock(folder / "draw.lock", thread_local=False)
        self._failed: set[Path] = set()
        self._mlflow_is_away = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is not None and not isinstance(error, Exception):
            return
        with spinner("Drawing the plots of the last trials"):
            self._thread.join()
            if not self._mlflow_is_away:  # or each attempt would wait for it again
                self._draw_all()
        if left := [file.stem for file in self._folder.glob("*.npz")]:
            logger.warning(
                "Plots are missing in %s; run the same command to draw them", ", ".join(sorted(left))
            )

    def _run(self) -> None:
        if sys.platform == "linux":  # where threads have priorities of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._ended.wait(POLL_SECONDS_IN_OUTAGE if self._mlflow_is_away else POLL_SECONDS):
            self._draw_all()

    def _draw_all(self) -> None:
        try:
            with self._lock:
                for file in sorted(self._folder.glob("*.npz")):
                    if file not in self._failed:
                        self._process(file)
                    if self._mlflow_is_away:
                        return
        except OSError as error:
            logger.warning("No plots can be drawn from %s: %s", self._folder, error.strerror)

    def _process(self, file: Path) -> None:
        """Draw the plots of a file and delete it, unless another attempt may succeed."""
        try:
            self._draw(file)
        except CifarError as error:
            logger.warning("The plots of run %s cannot be logged: %s", file.stem, error)
            self._mlflow_is_away = isinstance(error, TrackingLostError)
            if self._mlflow_is_away:
                return
            if getattr(error.__cause__, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                self._failed.add(file)
                return
        except UNREADABLE as error:
            logger.warning("No plots of run %s: %s cannot be used (%s)", file.stem, file, error)
        self._mlflow_is_away = False
        file.unlink()

    def _draw(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as data:
            if not np.array_equal(data["labels"], self._val.labels):
                raise ValueError("it belongs to other validation images")
            logits = data["logits"]
            columns = {
                name.removeprefix(HISTORY_PREFIX): data[name]
                for name in data.files
                if name.startswith(HISTORY_PREFIX)
            }
            history = pd.DataFrame(columns, index=pd.Index(data["epochs"], name="epoch"))
        report = report_of(logits, self._val.labels, self._classes, "val")
        run = TrackedRun(file.stem, file.stem)
        log_pictures(run, report, self._val)
        log_curves(run, history)
        run.flush()
