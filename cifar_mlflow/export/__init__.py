"""Model files for use outside MLflow: one module per format, each with a loader. None contains a pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export.hdf5 import load_hdf5, save_hdf5
from cifar_mlflow.export.weights import load_weights_file, save_weights
from cifar_mlflow.files import atomic_write
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier


class Format(NamedTuple):
    """A kind of model file; `suffixes` identify it, the usual one first."""

    suffixes: tuple[str, ...]
    save: Callable[[Path, ImageClassifier, ModelCard], None]
    load: Callable[[Path], tuple[ImageClassifier, ModelCard]]


FORMATS = {
    "safetensors": Format((".safetensors",), save_weights, load_weights_file),
    "hdf5-weights": Format((".h5", ".hdf5"), save_hdf5, load_hdf5),
}
FORMATS["hdf5"] = FORMATS["hdf5-weights"]  # its name before `--format h5` existed
_BY_SUFFIX = {suffix: form for form in FORMATS.values() for suffix in form.suffixes}


def format_for(output: Path | None, name: str | None) -> Format:
    """Return the format of a file to write: by `name`, else by the suffix of `output`, else HDF5.

    Raises:
        UsageError: `load_model_file` would not recognize the suffix.
    """
    if output is None:
        return FORMATS[name or "hdf5"]
    fitting = FORMATS[name].suffixes if name else tuple(_BY_SUFFIX)
    suffix = output.suffix.lower()
    if suffix not in fitting:
        which = f" for --format {name}" if name else ""
        raise UsageError(f"--output {output}: its name must end in {' or '.join(fitting)}{which}")
    return _BY_SUFFIX[suffix]


def write_weights(output: Path, form: Format, classifier: ImageClassifier, card: ModelCard) -> None:
    """Write a file of weights atomically, after reading it back and comparing it bit by bit.

    Raises:
        CifarError: the file cannot be written, or differs from the model; what was at `output` is untouched.
    """
    with atomic_write(output) as temporary:
        form.save(temporary, classifier, card)
        loaded, loaded_card = form.load(temporary)
        tensors = loaded.state_dict()
        if loaded_card != card or not all(
            torch.equal(tensor.cpu(), tensors[name]) for name, tensor in classifier.state_dict().items()
        ):
            raise CifarError(f"{output}: the file read back differs from the model; export it again")


def load_model_file(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a model file by its suffix: .safetensors, .h5 or .hdf5.

    Returns:
        The classifier, in eval mode and on the CPU, and its card.

    Raises:
        UsageError: the file does not exist, has another suffix, is not a model of cifar_mlflow, or is of a
            newer format.
        CifarError: the file is damaged.
    """
    form = _BY_SUFFIX.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"{path}: unknown kind of model file; its name must end in one of {', '.join(_BY_SUFFIX)}"
        )
    if not path.is_file():
        raise UsageError(f"{path}: no such file; create one with: cifar-mlflow export")
    return form.load(path)
