"""Compute the tables of a report from the rows of the request log."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score

from serving.monitoring.drift import (
    FEATURES,
    LARGE,
    MINIMUM,
    SMALL,
    Reference,
    chance,
    count,
    psi,
    shares_of,
)

STEPS = {"10 seconds": "10s", "minute": "1min", "5 minutes": "5min", "hour": "1h", "day": "1D"}
MAX_STEPS = 200
# "cut off": the connection was closed before the answer (status 0 or 499).
OUTCOMES = ("answered", "refused", "failed", "cut off")


def requests_of(records: pd.DataFrame) -> pd.DataFrame:
    """Merge the records of each request: `time` (UTC), `route`, `status`, `total_ms`, `outcome`."""
    requests = records.drop_duplicates(["request_id", "time"])[["time", "route", "status", "total_ms"]]
    outcome = requests["status"].map(
        lambda status: "cut off" if status in (0, 499) else {4: "refused", 5: "failed"}.get(status // 100)
    )
    return requests.assign(
        time=pd.to_datetime(requests["time"], unit="s", utc=True), outcome=outcome.fillna("answered")
    )


def by_time(requests: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Count requests and compute latency per time step; the step is chosen for a readable chart.

    Returns:
        A table and the name of the step, a key of STEPS. The index is the start of each step (UTC). The
        columns are the outcomes, and `p50`, `p95` and `p99` of answered requests, in milliseconds, NaN if
        there are none.
    """
    span = (requests["time"].max() - requests["time"].min()).total_seconds()
    step = next(
        (name for name, step in STEPS.items() if span / pd.Timedelta(step).total_seconds() <= MAX_STEPS),
        "day",
    )
    start = requests["time"].dt.floor(STEPS[step]).rename("time")
    counts = pd.crosstab(start, requests["outcome"]).reindex(columns=OUTCOMES, fill_value=0)
    answered = requests["outcome"] == "answered"
    times = requests.loc[answered, "total_ms"].groupby(start[answered])
    table = pd.DataFrame(counts.to_numpy(), index=pd.DatetimeIndex(counts.index), columns=list(OUTCOMES))
    for percent in (50, 95, 99):
        table[f"p{percent}"] = times.quantile(percent / 100)
    all_steps = pd.date_range(table.index[0], table.index[-1], freq=STEPS[step], name="time")
    table = table.reindex(all_steps)
    return table.fillna(dict.fromkeys(OUTCOMES, 0)).astype(dict.fromkeys(OUTCOMES, "int64")), step


def drift(answers: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """Compute the population stability index of each feature.

    Args:
        answers: records with a label, of one model.

    Returns:
        One row per feature: `feature`, `psi`, `verdict`, `chance` and `pictures` (the number of images).
        Index and `chance` (see the function of that name) are NaN for too few images.
    """
    rows: list[dict[str, Any]] = []
    for feature in FEATURES:
        values = answers[feature].dropna()
        index, by_chance = np.nan, np.nan
        if len(values) >= MINIMUM:
            index = psi(reference, feature, count(reference, feature, values.to_numpy()))
            by_chance = chance(reference, feature, len(values))
        rows.append(
            {
                "feature": feature,
                "psi": index,
                "verdict": _verdict(index, by_chance),
                "chance": by_chance,
                "pictures": len(values),
            }
        )
    return pd.DataFrame(rows)


def _verdict(index: float, by_chance: float) -> str:
    if np.isnan(index):
        return f"too few images: {MINIMUM} are needed"
    if index < SMALL:
        return "no change"
    if index <= by_chance:
        return "may be chance"
    return "a change" if index < LARGE else "a large change"


def bins(answers: pd.DataFrame, reference: Reference, feature: str) -> pd.DataFrame:
    """Return the shares of images in each bin: `bin` (its name), `reference`, `live`."""
    counts = count(reference, feature, answers[feature].dropna().to_numpy())
    if feature == "label":
        names = list(reference["label"])
    else:
        edges = [f"{edge:.3f}".rstrip("0").rstrip(".") for edge in reference[feature]["edges"]]
        names = [
            f"below {edges[0]}",
            *(f"{low} to {high}" for low, high in pairwise(edges)),
            f"from {edges[-1]}",
        ]
    return pd.DataFrame(
        {"bin": names, "reference": shares_of(reference, feature), "live": counts / max(counts.sum(), 1)}
    )


@dataclass(frozen=True, eq=False)
class FeedbackSummary:
    """Accuracy of the answers that people gave feedback on.

    Attributes:
        judged: answers marked as right or wrong.
        accuracy: share of right ones among them.
        interval: 95 % confidence interval of the accuracy (Wilson); valid if people judge random answers.
        known: answers whose true class is known. Feedback may say "wrong" without naming the class.
        f1_macro: of the known ones, over the classes that occur; NaN if there are none.
        classes: names of the rows and columns of `confusion`.
        confusion: of the known ones, int64 (classes, classes); rows are the true class.
    """

    judged: int
    accuracy: float
    interval: tuple[float, float]
    known: int
    f1_macro: float
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]


def summarize_feedback(feedback: pd.DataFrame, classes: tuple[str, ...]) -> FeedbackSummary | None:
    """Summarize feedback; return None if no answer was marked as right or wrong.

    Args:
        feedback: records with feedback.
        classes: in the model's order; other classes that occur are added after them.
    """
    answers = feedback[feedback["label"].notna()]
    label, truth = answers["label"].astype(object), answers["feedback_label"].astype(object)
    correct = answers["feedback_correct"].astype(object)
    correct = correct.where(truth.isna(), label == truth)  # the named class has precedence
    judged = correct.notna()
    if not judged.any():
        return None
    truth = truth.where(truth.notna(), label.where(correct == True))  # noqa: E712 - it may be missing
    known = truth.notna()
    names = (*classes, *sorted({*label[known], *truth[known]} - {*classes}))
    right, total = int((correct == True).sum()), int(judged.sum())  # noqa: E712
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    f1, confusion = np.nan, np.zeros((len(names), len(names)), np.int64)
    if known.any():
        f1 = f1_score(truth[known], label[known], average="macro", zero_division=0)
        confusion = confusion_matrix(truth[known], label[known], labels=list(names))
    return FeedbackSummary(
        total, right / total, (float(low), float(high)), int(known.sum()), float(f1), names, confusion
    )
