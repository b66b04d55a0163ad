"""Learning rate as a pure function of how far the training is: nothing to save, nothing to restore."""

import math
from typing import Literal

ScheduleName = Literal["one_cycle", "cosine", "linear", "constant"]

# Where one_cycle starts, as a share of the peak (the value of torch's OneCycleLR).
ONE_CYCLE_START = 1 / 25


def lr_factor(schedule: ScheduleName, warmup: float, progress: float) -> float:
    """Share of the peak learning rate, in [0, 1].

    Args:
        schedule: course after the peak, and for one_cycle also before it.
            one_cycle: half a cosine from 1/25 up to 1, then half a cosine down to 0 (L. Smith and N. Topin,
            arXiv 1708.07120, in the shape of torch's OneCycleLR).
            cosine: linear rise, then half a cosine down to 0 (I. Loshchilov and F. Hutter, arXiv 1608.03983).
            linear: linear rise, then linear fall to 0 (K. Jordan, arXiv 2404.00498).
            constant: linear rise, then 1.
        warmup: share of the training in which the rate rises, in [0, 1); 0 starts at the peak.
        progress: share of the training's steps that are done, in [0, 1).
    """
    if progress < warmup:
        rise = progress / warmup
        return (
            ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _half_cosine(rise) if schedule == "one_cycle" else rise
        )
    fall = (progress - warmup) / (1 - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - fall
    return 1 - _half_cosine(fall)


def _half_cosine(x: float) -> float:
    """Smooth rise from 0 to 1 as x goes from 0 to 1."""
    return (1 - math.cos(math.pi * x)) / 2
