"""Predict the logits of a whole split in batches, with or without test-time augmentation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_mlflow.config import TtaName
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.pretrained import head_of

Model = Callable[[Tensor], Tensor]
ComputePrecision = Literal["fp32", "bf16", "fp16"]

LARGEST_BATCH = 500
PIXELS_PER_BATCH = LARGEST_BATCH * 64 * 64  # larger images come in smaller batches, for the CPU's caches


def autocast(device: torch.device, precision: ComputePrecision) -> AbstractContextManager[object]:
    """Return the context in which a network computes in this precision; its weights stay in fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def ignore(images: int) -> None:
    """Default of `advance`: show no progress."""


@torch.inference_mode()
def predict_logits(
    model: Model,
    images: NDArray[np.uint8],
    *,
    batch_size: int | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a device is immutable
    precision: ComputePrecision = "fp32",
    tta: TtaName = "none",
    advance: Callable[[int], None] = ignore,
) -> NDArray[np.float32]:
    """Return the logits of all images, in order.

    Args:
        model: lives on `device`; takes float32 (B, 3, H, W) RGB in 0..1 and returns logits (B, classes). A
            module runs in eval mode and returns to its own mode afterwards. Any callable is accepted.
        images: uint8 (N, H, W, 3), RGB; may be a read-only memory map.
        tta: `flip` averages the image and its mirror image. `crops` gives them half of the weight, and the
            other half to the image and its mirror image shifted by one pixel to two opposite corners, with
            reflection at the border (Jordan 2024, arXiv 2404.00498, section 3.5). Logits are averaged, not
            probabilities, so a temperature applies as it does without augmentation.
        advance: called with the number of images of each batch.

    Returns:
        float32 (N, classes).

    Raises:
        ValueError: `images` is empty, or not uint8 (N, H, W, 3).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ValueError(f"images must be uint8 (N, H, W, 3), N > 0: got {images.dtype} {images.shape}")
    predict = _WITH_TTA[tta]
    logits = []
    batch_size = batch_size or images_per_batch(images.shape[1])
    with eval_mode(model), autocast(device, precision):
        for start in range(0, len(images), batch_size):
            batch = _to_input(images[start : start + batch_size], device)
            logits.append(predict(model, batch).float().cpu())
            advance(len(batch))
    return torch.cat(logits).numpy()


def predict_features(
    classifier: ImageClassifier,
    images: NDArray[np.uint8],
    *,
    device: torch.device,
    precision: ComputePrecision,
) -> Tensor:
    """Return the input of the last linear layer for all images, float32 (N, D), on the CPU.

    Arguments as for `predict_logits`.
    """
    features: list[Tensor] = []
    _, head = head_of(classifier)
    hook = head.register_forward_pre_hook(lambda module, args: features.append(args[0].float().cpu()))
    try:
        predict_logits(classifier, images, device=device, precision=precision)
    finally:
        hook.remove()
    return torch.cat(features)


def images_per_batch(side: int) -> int:
    """Return how many images of this side in pixels to compute at once: 500, fewer above 64 pixels."""
    return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // side**2))


def _to_input(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    # torch needs a copy, since the array may be read-only. Bytes, not floats, are sent to the device. Viewed
    # as NCHW, an NHWC array is channels_last already.
    batch = torch.from_numpy(np.array(images)).to(device)
    return batch.permute(0, 3, 1, 2).float().div_(255)


def _plain(model: Model, batch: Tensor) -> Tensor:
    return model(batch)


def _flip(model: Model, batch: Tensor) -> Tensor:
    # float: a mean in bfloat16 would be rounded to three digits.
    return (model(batch).float() + model(batch.flip(3)).float()) / 2


def _crops(model: Model, batch: Tensor) -> Tensor:
    padded = F.pad(batch, (1, 1, 1, 1), mode="reflect").contiguous(memory_format=torch.channels_last)
    moved = (_flip(model, padded[:, :, :-2, :-2]) + _flip(model, padded[:, :, 2:, 2:])) / 2
    return (_flip(model, batch) + moved) / 2


_WITH_TTA: dict[TtaName, Callable[[Model, Tensor], Tensor]] = {
    "none": _plain,
    "flip": _flip,
    "crops": _crops,
}


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Have a module run in eval mode within the block; any other callable is left alone."""
    # Set the flag of each module: a part that was frozen in eval mode stays frozen afterwards, and a module
    # from torch.export refuses eval() and train().
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
