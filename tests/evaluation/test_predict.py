from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(build_network("cnn", 10, width=0.25), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def top_left(batch: Tensor) -> Tensor:
    """Return the colours of the corner pixel as logits."""
    return batch[:, :, 0, 0]


def test_the_model_sees_rgb_in_0_to_1_as_channels_last(images: Images) -> None:
    seen: list[Tensor] = []

    def model(batch: Tensor) -> Tensor:
        seen.append(batch)
        return top_left(batch)

    logits = predict_logits(model, images, batch_size=10)
    assert [len(batch) for batch in seen] == [10, 5]
    assert all(batch.dtype == torch.float32 for batch in seen)
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in seen)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, images[:, 0, 0].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_logits_do_not_depend_on_the_batch_size(
    model: ImageClassifier, images: Images, batch_size: int
) -> None:
    whole = predict_logits(model, images, batch_size=15)
    parts = predict_logits(model, images, batch_size=batch_size)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_reads_a_read_only_memory_map(model: ImageClassifier, images: Images, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(predict_logits(model, mapped), predict_logits(model, images))


def test_every_module_keeps_its_mode(images: Images) -> None:
    norm, frozen, dropout = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout(0.9)
    model = nn.Sequential(norm, frozen, dropout, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    frozen.eval()
    before = norm.running_mean
    assert before is not None
    before = before.clone()
    first, second = predict_logits(model, images), predict_logits(model, images)
    np.testing.assert_array_equal(first, second)  # dropout is off
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, before)
    assert (model.training, norm.training, frozen.training, dropout.training) == (True, True, False, True)


def test_the_mode_is_restored_after_an_error(images: Images) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    with pytest.raises(RuntimeError):
        predict_logits(model, images)
    assert model.training


def test_runs_a_module_from_torch_export(model: ImageClassifier, images: Images) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.rand(4, 3, 32, 32),), dynamic_shapes=[{0: batch}])
    logits = predict_logits(program.module(), images)
    np.testing.assert_allclose(logits, predict_logits(model, images), rtol=1e-4, atol=1e-5)


def test_bf16_is_close_to_fp32_but_not_equal(model: ImageClassifier, images: Images) -> None:
    exact = predict_logits(model, images)
    rounded = predict_logits(model, images, precision="bf16")
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_predictions_with_flips_do_not_change_when_images_are_mirrored(
    model: ImageClassifier, images: Images
) -> None:
    mirrored = images[:, :, ::-1]
    assert not np.allclose(predict_logits(model, images), predict_logits(model, mirrored))
    np.testing.assert_allclose(
        predict_logits(model, images, tta="flip"),
        predict_logits(model, mirrored, tta="flip"),
        rtol=1e-4,
        atol=1e-5,
    )


def test_flip_averages_the_logits_of_both_sides(images: Images) -> None:
    both = (images[:, 0, 0] / 255 + images[:, 0, -1] / 255) / 2
    np.testing.assert_allclose(predict_logits(top_left, images, tta="flip"), both, rtol=1e-6)


def test_crops_average_the_image_and_two_shifts_by_one_pixel(images: Images) -> None:
    def centre_and_corner(batch: Tensor) -> Tensor:
        return torch.cat([batch[:, :, 16, 16], batch[:, :, 0, 0]], dim=1)

    def pair(row: int, column: int) -> NDArray[np.float64]:
        """Return the mean of a pixel and its mirror image."""
        return (images[:, row, column] / 255 + images[:, row, 31 - column] / 255) / 2

    centre = pair(16, 16) / 2 + (images[:, 15, 15] / 255 + images[:, 15, 14] / 255) / 8
    centre += (images[:, 17, 17] / 255 + images[:, 17, 16] / 255) / 8
    # Both shifts move the pixel one step inside to the corner: by reflection, or by the shift itself.
    corner = pair(0, 0) / 2 + pair(1, 1) / 2
    expected = np.concatenate([centre, corner], axis=1)
    np.testing.assert_allclose(predict_logits(centre_and_corner, images, tta="crops"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(bad: Images) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        predict_logits(top_left, bad)
