"""Draw a class activation map over its image. The service uses this module, so it does not import torch."""

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
    size = len(pixels)
    missing = [max(0, -(-size // stride) - side) for side in class_map.shape]
    padded = np.pad(class_map.astype(np.float32), [(0, count) for count in missing])
    rows, columns = padded.shape
    smooth = Image.fromarray(padded).resize((columns * stride, rows * stride), Image.Resampling.BILINEAR)
    values = np.asarray(smooth)[:size, :size]
    strength = values[..., None] * (STRONGEST / max(float(np.abs(values).max()), 1e-12))
    colour = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    blended: NDArray[np.uint8] = (pixels + np.abs(strength) * (colour - pixels) + 0.5).astype(np.uint8)
    return blended
