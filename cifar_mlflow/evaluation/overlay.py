"""Draw a class activation map over its image. The service uses this module, so it does not import torch."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOR, AGAINST = (235, 40, 30), (30, 90, 235)  # colours that the colour-blind can tell apart
STRONGEST = 0.65  # share of the colour where the map is strongest


def draw_overlay(pixels: NDArray[np.uint8], class_map: NDArray[np.float32], stride: int) -> NDArray[np.uint8]:
    """Return the image, uint8 (S, S, 3), red where it speaks for the class and blue where against it.

    Args:
        pixels: uint8 (S, S, 3), the network's input.
        class_map: float32 (h, w); values between its positions are interpolated.
        stride: pixels from one position to the next, from the upper left corner. Beyond the last position
            the colour fades: pooling ignores pixels that do not fill a window.
    """
    rows, columns = (_interpolation(len(pixels), positions, stride) for positions in class_map.shape)
    strength = (rows @ class_map @ columns.T)[..., None]
    strength *= STRONGEST / max(float(np.abs(strength).max()), 1e-12)
    blended = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    blended -= pixels
    blended *= np.abs(strength)
    blended += pixels
    blended += 0.5
    return blended.astype(np.uint8)


@lru_cache
def _interpolation(size: int, positions: int, stride: int) -> NDArray[np.float32]:
    """Return the weights, (size, positions), that make pixels of positions."""
    padded = max(positions, -(-size // stride))
    each = Image.fromarray(np.eye(padded, positions, dtype=np.float32))
    # Resizing only the rows leaves the columns apart.
    weights = each.resize((positions, padded * stride), Image.Resampling.BILINEAR)
    return np.asarray(weights)[:size]
