"""The share of the training images that is held out, the same for the same seed on every machine."""

import numpy as np

from cifar_mlflow.errors import UsageError


def train_val_indices(labels: np.ndarray, val_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the images of each class in the same proportion, at random by `seed`.

    Each class gives round(its images * val_size), at least one, to the held-out part. scikit-learn's
    stratified split rounds over all classes at once and can leave a small class with nothing held out.

    labels: int (N,). val_size: 0 up to, not including, 1; 0 holds nothing out.
    Returns two sorted int64 arrays that together are 0..N-1: (train, held out).

    Raises:
        UsageError: a class has only one image, so that it cannot be on both sides.
    """
    if val_size == 0:
        return np.arange(len(labels)), np.arange(0)
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UsageError(
                f"class {label} has one image; at least 2 are needed to hold out a share of {val_size}"
            )
        count = min(max(round(len(members) * val_size), 1), len(members) - 1)
        held_out.append(rng.permutation(members)[:count])
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), val), val
