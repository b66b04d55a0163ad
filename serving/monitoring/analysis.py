"""From the rows of the request log to the tables of a report."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, chi2
from sklearn.metrics import confusion_matrix, f1_score

from serving.monitoring.drift import FEATURES, LARGE, MINIMUM, SMALL, Reference, count, psi, shares_of

STEPS = {"5 minutes": "5min", "hour": "1h", "day": "1D"}
MOST_STEPS = 200
# Of the answers of a route; 0 and 499 are connections that were cut before there was one.
OUTCOMES = ("answered", "refused", "failed", "cut off")


def requests_of(records: pd.DataFrame) -> pd.DataFrame:
    """A row a request: `time` (UTC), `route`, `status`, `total_ms`, `outcome`; a record is of a picture."""
    requests = records.drop_duplicates(["request_id", "time"])[["time", "route", "status", "total_ms"]]
    outcome = requests["status"].map(
        lambda status: "cut off" if status in (0, 499) else {4: "refused", 5: "failed"}.get(status // 100)
    )
    return requests.assign(
        time=pd.to_datetime(requests["time"], unit="s", utc=True), outcome=outcome.fillna("answered")
    )


def by_time(requests: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """By hour, or by what makes a picture that can be read; and what that is.

    Returns:
        The index is the beginning of each span, UTC. Columns: the outcomes, and `p50`, `p95` and `p99`, the
        milliseconds of what was answered, NaN where nothing was.
    """
    span = (requests["time"].max() - requests["time"].min()).total_seconds()
    step = next(
        (name for name, step in STEPS.items() if span / pd.Timedelta(step).total_seconds() <= MOST_STEPS),
        "day",
    )
    spans = requests["time"].dt.floor(STEPS[step]).rename("time")
    counts = pd.crosstab(spans, requests["outcome"]).reindex(columns=OUTCOMES, fill_value=0)
    answered = requests["outcome"] == "answered"
    times = requests.loc[answered, "total_ms"].groupby(spans[answered])
    table = pd.DataFrame(counts.to_numpy(), index=pd.DatetimeIndex(counts.index), columns=list(OUTCOMES))
    for percent in (50, 95, 99):
        table[f"p{percent}"] = times.quantile(percent / 100)
    whole = pd.date_range(table.index[0], table.index[-1], freq=STEPS[step], name="time")
    table = table.reindex(whole)
    return table.fillna(dict.fromkeys(OUTCOMES, 0)).astype(dict.fromkeys(OUTCOMES, "int64")), step


def drift(answers: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """The index of each thing that is compared.

    Args:
        answers: records with a label, of one model.

    Returns:
        A row each: `what`, `psi`, `verdict`, `chance`: what the index of as many pictures like those of the
        reference stays below in 19 of 20 cases, and `pictures`. The index is NaN if there are too few.
    """
    rows: list[dict[str, Any]] = []
    for what in FEATURES:
        values = answers[what].dropna()
        bins = len(shares_of(reference, what))
        value, chance = np.nan, np.nan
        if len(values) >= MINIMUM:
            value = psi(reference, what, count(reference, what, values.to_numpy()))
            chance = chi2.ppf(0.95, max(bins - 1, 1)) * (1 / len(values) + 1 / reference["images"])
        rows.append(
            {
                "what": what,
                "psi": value,
                "verdict": _verdict(value),
                "chance": chance,
                "pictures": len(values),
            }
        )
    return pd.DataFrame(rows)


def _verdict(value: float) -> str:
    if np.isnan(value):
        return f"too few pictures: {MINIMUM} are needed"
    return "as before" if value < SMALL else "a change" if value < LARGE else "a large change"


def bins(answers: pd.DataFrame, reference: Reference, what: str) -> pd.DataFrame:
    """Shares side by side: `bin`, `reference`, `live`."""
    counts = count(reference, what, answers[what].dropna().to_numpy())
    if what == "label":
        names = list(reference["label"])
    else:
        edges = [f"{edge:.3f}".rstrip("0").rstrip(".") for edge in reference[what]["edges"]]
        names = [
            f"below {edges[0]}",
            *(f"{low} to {high}" for low, high in pairwise(edges)),
            f"from {edges[-1]}",
        ]
    return pd.DataFrame(
        {"bin": names, "reference": shares_of(reference, what), "live": counts / max(counts.sum(), 1)}
    )


@dataclass(frozen=True, eq=False)
class Live:
    """What people said of the answers.

    Attributes:
        judged: answers that were called right or wrong.
        accuracy: the share of right ones, which lies in `interval` with 95 % (Wilson) if they were drawn by
            lot.
        known: answers whose true class is known: a wrong one may have come without.
        f1_macro: of those, over the classes that occur; NaN if there are none.
        confusion: of those, int64 (classes, classes), rows are the true class.
    """

    judged: int
    accuracy: float
    interval: tuple[float, float]
    known: int
    f1_macro: float
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]


def live(feedback: pd.DataFrame, classes: tuple[str, ...]) -> Live | None:
    """None if nobody called an answer right or wrong.

    Args:
        feedback: records with feedback, of one model or of all.
        classes: in their order; others that occur come after them.
    """
    said = feedback[feedback["label"].notna()]
    label, truth = said["label"].astype(object), said["feedback_label"].astype(object)
    correct = said["feedback_correct"].astype(object)
    correct = correct.where(truth.isna(), label == truth)  # who names the class has said it
    judged = correct.notna()
    if not judged.any():
        return None
    truth = truth.where(truth.notna(), label.where(correct == True))  # noqa: E712 - it may be missing
    known = truth.notna()
    names = (*classes, *sorted({*label[known], *truth[known]} - {*classes}))
    right, total = int((correct == True).sum()), int(judged.sum())  # noqa: E712
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    f1 = f1_score(truth[known], label[known], average="macro", zero_division=0) if known.any() else np.nan
    confusion = (
        confusion_matrix(truth[known], label[known], labels=list(names))
        if known.any()
        else np.zeros((len(names), len(names)), np.int64)
    )
    return Live(
        total, right / total, (float(low), float(high)), int(known.sum()), float(f1), names, confusion
    )
