"""Images and labels: where they come from, how they are kept, and how they are divided."""

from cifar_mlflow.data.dataset import CIFAR10_CLASSES, ImageDataset, Split
from cifar_mlflow.data.sources import load_dataset

__all__ = ["CIFAR10_CLASSES", "ImageDataset", "Split", "load_dataset"]
