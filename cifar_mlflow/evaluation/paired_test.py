"""A paired test of whether int8 costs accuracy, on the images that fp32 and int8 classify differently."""

from dataclasses import dataclass
from math import sqrt
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

# Up to this loss, int8 is as good as fp32.
ALLOWED_LOSS = 0.003
# Up to this loss, int8 is accepted as long as the loss may be chance.
TOLERATED_LOSS = 0.02
SIGNIFICANCE = 0.05
NORMAL_95 = 1.96


@dataclass(frozen=True)
class PairedTest:
    """The answers of fp32 and int8 to the same images.

    Attributes:
        images: how many there are.
        only_fp32: images that fp32 alone classifies correctly.
        only_int8: images that int8 alone classifies correctly.
    """

    images: int
    only_fp32: int
    only_int8: int

    @classmethod
    def of(cls, fp32_correct: NDArray[np.bool_], int8_correct: NDArray[np.bool_]) -> Self:
        """Compare two bool arrays (N,), N > 0: whether each image was classified correctly."""
        return cls(
            images=len(fp32_correct),
            only_fp32=int((fp32_correct & ~int8_correct).sum()),
            only_int8=int((int8_correct & ~fp32_correct).sum()),
        )

    @property
    def loss(self) -> float:
        """Accuracy of fp32 minus accuracy of int8; negative if int8 is better."""
        return (self.only_fp32 - self.only_int8) / self.images

    @property
    def p_value(self) -> float:
        """Probability of at least this loss if int8 were as good as fp32.

        The exact one-sided McNemar test: without a loss, each image on which the two disagree favours either
        with probability 1/2 (McNemar 1947, "Note on the sampling error of the difference between correlated
        proportions"; recommended for two classifiers and one test set by Dietterich 1998, "Approximate
        statistical tests for comparing supervised classification learning algorithms").
        """
        disagreements = self.only_fp32 + self.only_int8
        if not disagreements:
            return 1.0
        return float(binomtest(self.only_fp32, disagreements, 0.5, alternative="greater").pvalue)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the loss.

        The Wald interval with half an image added to each of the four cells (Agresti and Min 2005, "Simple
        improved confidence intervals for comparing matched proportions"); it stays wide for few images.
        """
        images = self.images + 2
        difference = (self.only_fp32 - self.only_int8) / images
        deviation = sqrt(self.only_fp32 + self.only_int8 + 1 - difference**2 * images) / images
        return difference - NORMAL_95 * deviation, difference + NORMAL_95 * deviation

    @property
    def objection(self) -> str | None:
        """Why int8 costs too much accuracy; None if it does not.

        - A loss of up to 0.3 points is allowed.
        - A larger loss is an objection if it is significant (p < 0.05).
        - A loss of more than 2 points is an objection even if it is not: on few images, the largest losses
          are not significant.

        A loss between 0.3 and 2 points that is not significant is no objection, because it says little about
        the networks: 1 of 250 images is 0.4 points, and must not decide against a network that is twice as
        fast. 250 images detect a loss of 2 points at best (5 images); 5,000 images detect 0.3 points if the
        networks disagree on few of them.
        """
        rounding = 1e-9
        if self.loss <= ALLOWED_LOSS + rounding:
            return None
        if self.p_value < SIGNIFICANCE:
            return f"int8 loses more than {100 * ALLOWED_LOSS:g} points"
        if self.loss > TOLERATED_LOSS + rounding:
            return (
                f"int8 loses more than {100 * TOLERATED_LOSS:g} points, and there are too few images to tell "
                "that from chance"
            )
        return None

    def __str__(self) -> str:
        if self.only_fp32 == self.only_int8 == 0:
            return f"no difference on {self.images:,} images: both are right on the same ones"
        low, high = self.interval
        return (
            f"loss {100 * self.loss:.2f} points on {self.images:,} images, 95 % interval {100 * low:.2f} to "
            f"{100 * high:.2f}; only fp32 right: {self.only_fp32}, only int8 right: {self.only_int8}, "
            f"p = {self.p_value:.2g}"
        )
