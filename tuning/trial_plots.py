"""The pictures of the trials, drawn by the parent of the workers beside the next trainings.

Drawing takes as long as many a short epoch, and a GPU would wait for it. So a worker only leaves what is to
be drawn, in a file that outlives whoever is killed.
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

from cifar_mlflow.data import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.calibration import Labels
from cifar_mlflow.evaluation.report import Report, log_pictures, report_of
from cifar_mlflow.tracking.artifacts import log_curves
from cifar_mlflow.tracking.run import TrackedRun, TrackingLostError

logger = logging.getLogger("cifar_mlflow.tuning")

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_AFTER_OUTAGE = 30.0
COLUMN = "history/"
# What numpy makes of a file that a power failure cut off.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def leave_to_draw(folder: Path, run_id: str, report: Report, labels: Labels, history: pd.DataFrame) -> None:
    """Put down what the pictures of a run are drawn of.

    Args:
        report: of the validation split.
        labels: of the same.
        history: one row an epoch, the index is its number.

    Raises:
        CifarError: the folder cannot be written.
    """
    columns: dict[str, Any] = {COLUMN + str(name): history[name].to_numpy() for name in history}
    unfinished = folder / f"{run_id}.unfinished"
    try:
        with unfinished.open("wb") as file:
            np.savez(
                file,
                logits=report.logits,
                labels=labels,
                temperature=report.temperature,
                epochs=history.index.to_numpy(),
                **columns,
            )
        unfinished.replace(folder / f"{run_id}.npz")
    except OSError as error:
        raise CifarError(
            f"{folder} cannot be written ({error.strerror}): "
            "free some space there, or choose another --cache-dir"
        ) from error


class TrialPictures:
    """Draws what is left to draw, in a thread that leaves the processor to the trainings.

    Leaving the block waits for the rest, unless it is left by Ctrl-C: that is drawn when the study goes on.

    Args:
        folder: where the workers of this machine leave it; other commands on the same study draw here too.
        val: the validation split, which is the same for all trials.
    """

    def __init__(self, folder: Path, val: Split, classes: tuple[str, ...]) -> None:
        self._folder = folder
        self._val = val
        self._classes = classes
        self._lock = FileLock(folder / "draw.lock", thread_local=False)
        self._failed: set[Path] = set()
        self._is_away = False  # MLflow, when it was last to take a picture
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is not None and not isinstance(error, Exception):
            return
        self._thread.join()
        if not self._is_away:  # or it would be waited for once more
            self._draw_all()
        if left := [file.stem for file in self._folder.glob("*.npz")]:
            logger.warning(
                "The same command draws the pictures that are missing in %s", ", ".join(sorted(left))
            )

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._ended.wait(SECONDS_AFTER_OUTAGE if self._is_away else SECONDS_BETWEEN_LOOKS):
            self._draw_all()

    def _draw_all(self) -> None:
        try:
            with self._lock:
                for file in sorted(self._folder.glob("*.npz")):
                    if file not in self._failed:
                        self._settle(file)
                    if self._is_away:
                        return
        except OSError as error:
            logger.warning("No pictures can be drawn from %s: %s", self._folder, error.strerror)

    def _settle(self, file: Path) -> None:
        """Draw what is in a file, and delete it unless that may succeed another time."""
        try:
            self._draw(file)
        except CifarError as error:
            logger.warning("The pictures of run %s cannot be logged: %s", file.stem, error)
            self._is_away = isinstance(error, TrackingLostError)
            if self._is_away:
                return
            if getattr(error.__cause__, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                self._failed.add(file)
                return
        except UNREADABLE as error:
            logger.warning("No pictures of run %s: %s cannot be used (%s)", file.stem, file, error)
        self._is_away = False
        file.unlink()

    def _draw(self, file: Path) -> None:
        with np.load(file, allow_pickle=False) as left:
            if not np.array_equal(left["labels"], self._val.labels):
                raise ValueError("it is of other validation images")
            logits, temperature = left["logits"], float(left["temperature"])
            columns = {
                name.removeprefix(COLUMN): left[name] for name in left.files if name.startswith(COLUMN)
            }
            history = pd.DataFrame(columns, index=pd.Index(left["epochs"], name="epoch"))
        report = report_of(logits, self._val.labels, self._classes, "val", temperature)
        run = TrackedRun(file.stem, file.stem)
        log_pictures(run, report, self._val)
        log_curves(run, history)
        run.flush()
