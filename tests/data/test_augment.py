"""Augmentations of small batches, compared with results computed in another way."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifar_mlflow.data import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 6, height: int = 10, width: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator())


@given(rows=st.integers(-4, 4), columns=st.integers(-4, 4), mirrored=st.booleans(), index=st.integers(0, 5))
def test_window_is_a_crop_of_the_reflected_image(rows: int, columns: int, mirrored: bool, index: int) -> None:
    images = photos()
    window = augment.take_windows(
        images, torch.tensor([index]), torch.tensor([[rows, columns]]), torch.tensor([mirrored])
    )[0]
    padded = F.pad(images[index].permute(2, 0, 1).float(), (4, 4, 4, 4), mode="reflect")
    expected = padded[:, 4 + rows : 14 + rows, 4 + columns : 16 + columns].permute(1, 2, 0).byte()
    assert torch.equal(window, expected.flip(1) if mirrored else expected)


def test_each_image_of_a_batch_has_its_own_window() -> None:
    images, index = photos(), torch.tensor([5, 0, 5])
    shift, mirrored = torch.tensor([[0, 1], [2, -2], [-4, 0]]), torch.tensor([True, False, False])
    batch = augment.take_windows(images, index, shift, mirrored)
    for row in range(3):
        one = augment.take_windows(
            images, index[row : row + 1], shift[row : row + 1], mirrored[row : row + 1]
        )
        assert torch.equal(batch[row], one[0])


def test_shifts_cover_every_offset_in_the_range() -> None:
    shift = augment.random_shift(2000, 2, generator())
    assert shift.unique().tolist() == [-2, -1, 0, 1, 2]
    assert shift.shape == (2000, 2)


def test_coin_flips_are_fair() -> None:
    assert augment.coin_flips(10_000, generator()).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_cutout_blanks_one_square_with_the_given_colour(size: int) -> None:
    images = photos(count=50).permute(0, 3, 1, 2) / 255
    colour = torch.tensor([-1.0, -2.0, -3.0])
    corners = augment.square_corners(50, 10, 12, size, generator())
    result = augment.cutout(images, *corners, size, colour)
    blanked = (result == colour.view(1, 3, 1, 1)).all(dim=1)
    assert (blanked.sum(dim=(1, 2)) == size * size).all()
    for mask in blanked:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert rows.max() - rows.min() + 1 == size
        assert columns.max() - columns.min() + 1 == size
    assert torch.equal(result.permute(0, 2, 3, 1)[~blanked], images.permute(0, 2, 3, 1)[~blanked])


def test_jitter_changes_brightness_and_contrast_within_bounds() -> None:
    images = 0.3 + 0.2 * torch.rand(200, 3, 8, 8, generator=generator())
    spread = images.std(dim=(1, 2, 3)) / images.mean(dim=(1, 2, 3))
    result = augment.jitter(images, *augment.jitter_factors(200, 0.2, 0.3, generator(1)))
    brighter = result.mean(dim=(1, 2, 3)) / images.mean(dim=(1, 2, 3))
    harder = result.std(dim=(1, 2, 3)) / result.mean(dim=(1, 2, 3)) / spread
    for factors, bound in ((brighter, 0.2), (harder, 0.3)):
        assert 1 - bound - 1e-4 <= factors.min() < 1 - 0.9 * bound
        assert 1 + 0.9 * bound < factors.max() <= 1 + bound + 1e-4


def test_jitter_stays_in_the_range_of_pixels() -> None:
    factors = augment.jitter_factors(50, 0.9, 0.9, generator())
    result = augment.jitter(photos(count=50).permute(0, 3, 1, 2) / 255, *factors)
    assert result.min() == 0
    assert result.max() == 1


def mix(name: str, images: Tensor, targets: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mix images with random other ones of the batch."""
    drawn = generator(seed)
    partner = augment.random_partners(len(images), drawn)
    both = (images, images[partner], targets, targets[partner])
    if name == "mixup":
        return augment.mixup(*both, share)
    return augment.cutmix(*both, augment.random_rectangle(images.shape[2], images.shape[3], share, drawn))


@given(share=st.floats(0, 1), seed=st.integers(0, 1000), name=st.sampled_from(["mixup", "cutmix"]))
def test_mixed_targets_sum_to_one(share: float, seed: int, name: str) -> None:
    images = photos().permute(0, 3, 1, 2) / 255
    targets = augment.soft_targets(torch.arange(6) % 4, 4)
    mixed, soft = mix(name, images, targets, share, seed)
    assert mixed.shape == images.shape
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert soft.min() >= 0


def test_mixup_blends_images_and_targets_alike() -> None:
    # Each image shows only the one-hot vector of its label, so both must blend in the same way.
    targets = augment.soft_targets(torch.arange(3), 3)
    images = targets[:, :, None, None].expand(3, 3, 8, 8)
    mixed, soft = mix("mixup", images, targets, 0.7)
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_cutmix_mixes_targets_by_area(share: float) -> None:
    targets = augment.soft_targets(torch.arange(3), 3)
    images = targets[:, :, None, None].expand(3, 3, 16, 16)
    mixed, soft = mix("cutmix", images, targets, share)
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft)
    assert ((mixed == 0) | (mixed == 1)).all()
