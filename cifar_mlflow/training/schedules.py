"""Learning-rate schedules as pure functions of the progress, so that there is no state to save."""

import math

from cifar_mlflow.config import ScheduleName

# Start of one_cycle as a fraction of the peak, as in torch's OneCycleLR.
ONE_CYCLE_START = 1 / 25


def lr_factor(schedule: ScheduleName, warmup: float, progress: float) -> float:
    """Return the learning rate as a fraction of its peak, in [0, 1].

    Args:
        schedule: shape of the curve.
            one_cycle: half a cosine from 1/25 up to 1, then half a cosine down to 0 (L. Smith and N. Topin,
            arXiv 1708.07120, in the form of torch's OneCycleLR).
            cosine: linear rise, then half a cosine down to 0 (I. Loshchilov and F. Hutter, arXiv 1608.03983).
            linear: linear rise, then linear fall to 0 (K. Jordan, arXiv 2404.00498).
            constant: linear rise, then 1.
        warmup: fraction of the training during which the rate rises, in [0, 1); 0 starts at the peak.
        progress: completed fraction of the training's steps, in [0, 1).
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
    """Return a smooth rise from 0 to 1 for x from 0 to 1."""
    return (1 - math.cos(math.pi * x)) / 2
