"""The picture of a map over its image."""

import numpy as np
import pytest

from cifar_mlflow.evaluation.overlay import draw_overlay

GRAY = np.full((32, 32, 3), 128, np.uint8)


def redness(picture: np.ndarray) -> np.ndarray:
    return picture[..., 0].astype(int) - picture[..., 2]


def test_parts_for_the_class_are_red_and_parts_against_it_blue() -> None:
    class_map = np.zeros((4, 4), np.float32)
    class_map[0, 0], class_map[3, 3] = 2.0, -2.0
    picture = draw_overlay(GRAY, class_map, stride=8)
    assert (picture.shape, picture.dtype) == (GRAY.shape, GRAY.dtype)
    assert redness(picture)[4, 4] > 100
    assert redness(picture)[27, 27] < -100
    np.testing.assert_array_equal(picture[4, 27], GRAY[4, 27])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_strongest_part_has_the_same_colour_whatever_the_logit(scale: float) -> None:
    class_map = np.array([[1, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(
        draw_overlay(GRAY, class_map * np.float32(scale), 16), draw_overlay(GRAY, class_map, 16)
    )


def test_positions_lie_a_stride_apart_from_the_upper_left_corner() -> None:
    """As in `fast`: 3 positions of 8 pixels, and 8 further pixels that the pooling ignores."""
    picture = draw_overlay(GRAY, np.array([[0, 1, 0]] * 3, np.float32), stride=8)
    assert redness(picture)[16].argmax() in (11, 12)
    np.testing.assert_array_equal(picture[:, 24:], GRAY[:, 24:])
    beyond = redness(draw_overlay(GRAY, np.array([[0, 0, 1]] * 3, np.float32), stride=8))[12]
    assert beyond[31] < beyond[20] / 5


def test_a_map_of_zeros_leaves_the_image_as_it_is() -> None:
    np.testing.assert_array_equal(draw_overlay(GRAY, np.zeros((4, 4), np.float32), 8), GRAY)
