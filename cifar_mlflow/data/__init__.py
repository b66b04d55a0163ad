"""Images and labels: load them from a source, cache them decoded, and divide them into splits."""

from cifar_mlflow.data.dataset import CIFAR10_CLASSES, ImageDataset, SelectedImages, Selection, Split
from cifar_mlflow.data.sources import load_dataset

__all__ = ["CIFAR10_CLASSES", "ImageDataset", "SelectedImages", "Selection", "Split", "load_dataset"]
