"""The job of `cifar-mlflow export`: write a model in several formats and hand over only what was verified.

Every file is written into a temporary folder, opened with the format's own runtime, and compared with the
trained network on images that were held out. A file that passes is moved into place; any other is deleted.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cifar_mlflow.config import PlacesConfig
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.format import ExportFormat, ModelToExport
from cifar_mlflow.export.images import images_of_the_package, load_images, params_of_training
from cifar_mlflow.export.reference import is_released, load_classifier
from cifar_mlflow.export.verify import Measured, objection, predict_labels, time_one_image
from cifar_mlflow.files import write_errors
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.verb_config import ExportConfig

logger = logging.getLogger(__name__)

OLD_NAMES = {"hdf5": "hdf5-weights"}
SCRATCH_PREFIX = ".export-"
LOCK = "lock"
FILE_SUFFIXES = {".onnx", ".keras", ".h5", ".hdf5", ".tflite", ".pte", ".pt2", ".safetensors"}


@dataclass(frozen=True)
class Exported:
    """The files that were handed over, and the reasons why others were not."""

    run_id: str
    rows: list[Measured]
    failures: list[str]

    def table(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.rows])

    def __str__(self) -> str:
        return self.table().to_string(index=False, float_format="{:.4g}".format)


def choose_formats(table: Mapping[str, str], config: ExportConfig) -> tuple[list[ExportFormat], list[str]]:
    """Return the formats that `config` names, and for `all` a sentence about each that is left out.

    Args:
        table: location of each `ExportFormat`, `package.module:object`, by the name of the format.

    Raises:
        UsageError: a format that was named lacks an extra, or does not support the other options.
    """
    names = [OLD_NAMES.get(name, name) for name in config.format]
    every = "all" in names
    formats, left_out = [], []
    for name in table if every else dict.fromkeys(names):
        form: ExportFormat = resolve_name(table[name])
        if reason := _unsupported(form, config):
            left_out.append(f"{name}: {reason}")
        else:
            formats.append(form)
    if left_out and (not every or not formats):
        raise UsageError("\n".join(left_out))
    return formats, left_out


def _unsupported(form: ExportFormat, config: ExportConfig) -> str | None:
    """Return why a format cannot be written on this machine with these options; None if it can."""
    if command := form.missing(config):
        return f"needs a package that is not installed: {command}"
    if not set(form.precisions) & set(config.precision):
        return f"has no {' or '.join(config.precision)}, only {', '.join(form.precisions)}"
    if config.with_preprocessing and not form.preprocessing:
        return "cannot contain the preprocessing: leave out --with-preprocessing"
    return None


def export(reference: str, formats: Sequence[ExportFormat], config: ExportConfig) -> Exported:
    """Write a model in several formats into the folder `config.output`, in an MLflow run of its own.

    Args:
        reference: a run id, a runs:/ or models:/ address, or a file of weights.
        formats: as `choose_formats` returns them.

    Raises:
        UsageError: there is no such model, its images cannot be found, or the folder may not be written to.
        CifarError: no file was handed over.
    """
    folder = _output_folder(config)
    classifier, card = load_classifier(reference)
    places = config.model_dump(include={*PlacesConfig.model_fields}, exclude_unset=True)
    if is_released(card) and "data_dir" not in places:
        training, eval_set = images_of_the_package(config.cache_dir)
    else:
        training, eval_set = load_images(card, params_of_training(card), places)
    expected = predict_logits(classifier, eval_set.images.images).argmax(axis=1)
    connect(config.experiment if "experiment" in config.model_fields_set else card.data or config.experiment)
    name = config.run_name or f"export-{card.model}-{card.data}"
    with (
        StopRequest() as stop,
        tracked_run(kind="export", name=name, cache_dir=config.cache_dir) as (run, _),
        stop.at_once(),
    ):
        logger.info("Exporting %s of %s, verified on %s", card.model, reference, eval_set)
        run.log_settings(config)
        run.log_params({"model_uri": reference})
        run.set_tags({"model_run_id": card.run_id, "verified_on": str(eval_set)})
        exported = Exported(run.run_id, [], [])
        try:
            for form in formats:
                for precision in [p for p in config.precision if p in form.precisions]:
                    model = ModelToExport(
                        classifier, card, reference, training.images, eval_set, precision, config
                    )
                    logger.info("Writing and verifying %s as %s", form.name, precision)
                    try:
                        exported.rows.append(_write_verified(form, model, expected, folder))
                    except CifarError as error:
                        exported.failures.append(f"{form.name} as {precision} was not written: {error}")
        except KeyboardInterrupt:
            if exported.rows:
                logger.warning("Written before the stop:\n%s", exported)
                _log_rows(run, exported)
            raise
        if not exported.rows:
            raise CifarError("\n".join(exported.failures))
        _log_rows(run, exported)
        if exported.failures:
            run.set_tags({"error": "; ".join(exported.failures)})
        return exported


def _log_rows(run: TrackedRun, exported: Exported) -> None:
    run.log_csv(exported.table(), "exports.csv")
    run.log_metrics({name: value for row in exported.rows for name, value in row.metrics().items()}, step=0)


def _output_folder(config: ExportConfig) -> Path:
    folder = config.output
    if folder is None:
        raise UsageError("--output: name the folder to write to")
    with write_errors(folder):
        if folder.suffix.lower() in FILE_SUFFIXES or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"--output {folder}: name a folder; the files in it are named after the model")
        with _scratch_for(folder) as scratch:  # fails now, and not minutes later, if nothing can be written
            _delete_leftovers(scratch)
        found = [] if not folder.is_dir() else [path.name for path in folder.iterdir()]
        if not config.overwrite and any(not name.startswith(SCRATCH_PREFIX) for name in found):
            raise UsageError(
                f"--output {folder} is not empty: choose another folder, or add --overwrite to replace the "
                "files there that have the same names"
            )
    return folder


def _write_verified(
    form: ExportFormat, model: ModelToExport, expected: NDArray[np.int64], folder: Path
) -> Measured:
    """Write, run, measure and compare one file, and move it into the folder.

    Raises:
        CifarError: it cannot be written, or differs too much from the trained network; nothing is left.
    """
    images = model.eval_set.images
    with _scratch_for(folder) as scratch:
        # Torch, LiteRT and HDF5 crash the process if the disk of the file they write becomes full, so they
        # do not write to the user's.
        with TemporaryDirectory() as elsewhere:
            path = Path(shutil.move(form.write(model, Path(elsewhere)), scratch))
        predict = form.load(path)
        labels = predict_labels(predict, images.images)
        if reason := objection(model.precision, labels, expected, model.eval_set):
            raise CifarError(reason)
        measured = Measured(
            format=form.name,
            precision=model.precision,
            file=path.name,
            megabytes=_size(path) / 1e6,
            agreement=float((labels == expected).mean()),
            accuracy=float((labels == images.labels).mean()),
            ms_per_image=time_one_image(predict, images.images),
            runtime=form.runtime(),
        )
        target = folder / path.name
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and not model.config.overwrite:  # the folder was empty when this command began
            raise CifarError(f"another program wrote {target} meanwhile; choose another --output")
        if target.is_dir():  # a folder can only be renamed to a name that is free
            target.rename(scratch / "replaced")
        path.replace(target)
        return measured


@contextmanager
def _scratch_for(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `folder`, which may not exist yet.

    It has a lock file, by which another export knows that it is in use.
    """
    with write_errors(folder):
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=nearest) as name, FileLock(Path(name, LOCK)):
            yield Path(name)


def _delete_leftovers(scratch: Path) -> None:
    """Delete the temporary folders beside this one whose process was killed."""
    for other in scratch.parent.glob(f"{SCRATCH_PREFIX}*"):
        if other != scratch and (other / LOCK).exists():
            with suppress(Timeout, OSError), FileLock(other / LOCK, timeout=0):
                shutil.rmtree(other, ignore_errors=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
