"""Measure how far the features of an image are from those of the training images.

The energy of the logits misses images that the network has never learned to doubt: noise gets a lower energy
than photographs. The channel means of the first stage tell noise, flat colours, text and drawings from
photographs. The score is the Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888) to all training images
together, since features this early hardly depend on the class. docs/experiments.md compares it with others.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_mlflow.data import SelectedImages
from cifar_mlflow.evaluation.predict import images_per_batch
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import stages

TRAINING_IMAGES = 2_000
SCALE_IMAGES = 1_000
SEED = 0
# Added to the variances, as a share of their mean: otherwise directions that hardly vary would dominate.
SHRINKAGE = 1e-3
SMALLEST = 1e-6  # of a squared distance, before its logarithm


class FeatureDistance(nn.Module):
    """Take the channel means of the first stage, float32 (N, C), and return float32 (N, 1).

    The result is the logarithm of the squared distance, shifted and scaled to mean 0 and the spread of the
    energy on images like the training images. The sum of distance and energy is the out-of-distribution
    score: the higher it is, the less an image is like the training images.
    """

    mean: Tensor
    whitening: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        variances, directions = torch.linalg.eigh(torch.cov(features.T.double()))
        whitening = directions / (variances + SHRINKAGE * variances.mean()).sqrt()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("whitening", whitening.float())
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        squares = ((features - self.mean) @ self.whitening).square().sum(1, keepdim=True)
        # No plus sign: int8 would quantize the addition.
        return (squares.clamp(min=SMALLEST).log() - self.center) * self.scale


class WithDistance(nn.Module):
    """Return the logits of a network, (N, classes), and the distance of its features, (N, 1)."""

    def __init__(self, network: nn.Module, distance: FeatureDistance) -> None:
        super().__init__()
        self.network = network
        self.distance = distance

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = _with_features(self.network, images)
        return logits, self.distance(features)


def fit_distance(
    classifier: ImageClassifier,
    training_images: NDArray[np.uint8] | SelectedImages,
    images: NDArray[np.uint8] | SelectedImages,
    temperature: float,
) -> FeatureDistance:
    """Fit the distance to up to 2,000 of the training images.

    Args:
        classifier: on the CPU; runs in eval mode.
        training_images: uint8 (N, S, S, 3).
        images: uint8 (N, S, S, 3), like the training images but held out if possible: their energies and
            distances decide the scale.
    """
    _, features = _outputs(classifier, _draw(training_images, TRAINING_IMAGES))
    distance = FeatureDistance(features)
    logits, features = _outputs(classifier, _draw(images, SCALE_IMAGES))
    energies = temperature * (logits / temperature).logsumexp(1)
    distances = distance(features)
    distance.center.copy_(distances.mean())
    if len(images) > 1 and (spread := distances.std()) > 0:
        distance.scale.copy_(energies.std() / spread)
    return distance


def _draw(images: NDArray[np.uint8] | SelectedImages, count: int) -> NDArray[np.uint8]:
    drawn = np.random.default_rng(SEED).permutation(len(images))[:count]
    return images[np.sort(drawn)]


@torch.inference_mode()
def _outputs(classifier: ImageClassifier, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the logits and the channel means of the first stage."""
    network = classifier.network.eval()
    batches = []
    batch_size = images_per_batch(images.shape[1])
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size]))
        pixels = batch.permute(0, 3, 1, 2).float().div_(255)
        batches.append(_with_features(network, (pixels - classifier.mean) / classifier.std))
    logits, features = (torch.cat(part).float() for part in zip(*batches, strict=True))
    return logits, features


def _channel_means(output: Tensor) -> Tensor:
    """Return (N, C) of images (N, C, H, W) or tokens (N, T, C)."""
    return output.mean((2, 3)) if output.ndim == 4 else output.mean(1)


def _with_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    features: list[Tensor] = []
    hook = stages(network)[0].register_forward_hook(
        lambda module, args, output: features.append(_channel_means(output))
    )
    try:
        return network(images), features[0]
    finally:
        hook.remove()
