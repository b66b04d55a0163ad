"""The whitening layer of the fast network."""

import torch

from cifar_mlflow.models.fast import PATCH, Fast


def coloured_noise() -> torch.Tensor:
    """Return images whose pixels and channels are correlated, like those of photos."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 1, 8, 8, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return coarse + 0.3 * torch.randn(64, 3, 32, 32, generator=generator)


def test_first_layer_whitens_patches() -> None:
    images = coloured_noise()
    network = Fast(10)
    network.initialize_from(images)
    features = network.whiten(images)[:, : 3 * PATCH * PATCH]
    covariance = torch.cov(features.transpose(0, 1).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(3 * PATCH * PATCH), atol=0.05, rtol=0)


def test_second_half_of_the_first_layer_is_the_negative_of_the_first() -> None:
    network = Fast(10)
    network.initialize_from(coloured_noise())
    first, second = network.whiten.weight.chunk(2)
    assert torch.equal(first, -second)


def test_whitening_filters_are_frozen_and_survive_a_round_trip() -> None:
    network = Fast(10)
    network.initialize_from(coloured_noise())
    assert not network.whiten.weight.requires_grad
    copy = Fast(10)
    copy.load_state_dict(network.state_dict())
    images = coloured_noise()[:4]
    assert torch.equal(copy.eval()(images), network.eval()(images))
