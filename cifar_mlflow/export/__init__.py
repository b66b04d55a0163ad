"""Model files, for use outside MLflow: one module a format, each with its way back. None holds a pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cifar_mlflow.errors import UsageError
from cifar_mlflow.export.hdf5 import load_hdf5, save_hdf5
from cifar_mlflow.export.weights import load_weights_file, save_weights
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier


class Format(NamedTuple):
    """A kind of model file: the suffixes by which it is known, the usual one first."""

    suffixes: tuple[str, ...]
    save: Callable[[Path, ImageClassifier, ModelCard], None]
    load: Callable[[Path], tuple[ImageClassifier, ModelCard]]


FORMATS = {
    "safetensors": Format((".safetensors",), save_weights, load_weights_file),
    "hdf5": Format((".h5", ".hdf5"), save_hdf5, load_hdf5),
}
_BY_SUFFIX = {suffix: form for form in FORMATS.values() for suffix in form.suffixes}


def format_for(output: Path | None, name: str | None) -> Format:
    """The format of a file to write: the one of this name, else the one of its suffix, else HDF5.

    Raises:
        UsageError: the suffix is not one by which the file would be read back.
    """
    if output is None:
        return FORMATS[name or "hdf5"]
    fitting = FORMATS[name].suffixes if name else tuple(_BY_SUFFIX)
    suffix = output.suffix.lower()
    if suffix not in fitting:
        which = f" for --format {name}" if name else ""
        raise UsageError(f"--output {output}: its name must end in {' or '.join(fitting)}{which}")
    return _BY_SUFFIX[suffix]


def load_model_file(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a model file by its suffix: .safetensors, .h5 or .hdf5.

    Returns:
        The classifier, in eval mode and on the CPU, and its card.

    Raises:
        UsageError: no such file, another suffix, not a model of ours, or of a newer format.
        CifarError: the file is damaged.
    """
    form = _BY_SUFFIX.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{path}: not a known kind of model file; known are {', '.join(_BY_SUFFIX)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; make one with: cifar-mlflow export")
    return form.load(path)
