"""Model files, for use outside MLflow: one module a format, each with its way back. None holds a pickle."""

from pathlib import Path

from cifar_mlflow.errors import UsageError
from cifar_mlflow.export.hdf5 import load_hdf5, save_hdf5
from cifar_mlflow.export.weights import load_weights_file, save_weights
from cifar_mlflow.models.classifier import ImageClassifier, ModelCard

# The name of a format for `export`: its suffix, and its writer.
EXPORTERS = {"hdf5": (".h5", save_hdf5), "safetensors": (".safetensors", save_weights)}
_LOADERS = {".safetensors": load_weights_file, ".h5": load_hdf5, ".hdf5": load_hdf5}


def load_model_file(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a model file by its suffix: .safetensors, .h5 or .hdf5.

    Returns:
        The classifier, in eval mode and on the CPU, and its card.

    Raises:
        UsageError: no such file, another suffix, not a model of ours, or of a newer format.
        CifarError: the file is damaged.
    """
    loader = _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise UsageError(f"{path}: not a known kind of model file; known are {', '.join(_LOADERS)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; make one with: cifar-mlflow export")
    return loader(path)
