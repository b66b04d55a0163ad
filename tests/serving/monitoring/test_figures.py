"""Figures of the report: no text is printed over another or crossed by a line, and no panel is empty."""

import itertools
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.dates import num2date
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from serving.monitoring import analysis, figures
from serving.monitoring.drift import FEATURES

TITLE = "Requests: 2026-11-22 15:52 to 2026-11-29 15:52 UTC"
WEEK = (pd.Timestamp("2026-11-22T15:52Z"), pd.Timestamp("2026-12-29T15:52Z"))


def drift(*indices: float) -> pd.DataFrame:
    return pd.DataFrame({"feature": FEATURES, "psi": indices, "chance": 0.02})


def requests(count: int, outcome: str = "answered") -> pd.DataFrame:
    times = pd.Timestamp("2026-11-29T06:00Z") + pd.to_timedelta(np.arange(count), unit="min")
    return pd.DataFrame({"time": times, "total_ms": 9.0, "outcome": outcome})


def boxes_of(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Return the visible texts inside of the figure, and where they are."""
    figure.savefig(BytesIO())
    texts = (text for text in figure.findobj(Text) if isinstance(text, Text))
    boxes = [(text, text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()]
    return [(text, box) for text, box in boxes if figure.bbox.containsx(box.x0)]


@pytest.mark.parametrize(
    "versions",
    [
        {"cifar10/1": drift(0.01, 0.02, 0.0, 0.03)},
        {"cifar10/1": drift(0.05, 3.5, 0.28, 0.08), "cifar10/2": drift(*[np.nan] * 4)},
        {f"cifar10/{number}": drift(0.001, 1.1, 9.6, 0.06) for number in range(4)},
    ],
    ids=["no change", "too few images", "four versions"],
)
def test_the_numbers_of_drift_stand_beside_the_bars(versions: dict[str, pd.DataFrame]) -> None:
    figure = figures.stability(versions, TITLE)
    found = boxes_of(figure)
    (ax,) = figure.axes
    for (one, box), (other, other_box) in itertools.combinations(found, 2):
        assert not box.overlaps(other_box), (one.get_text(), other.get_text())
    for text, box in found:
        assert not ax.get_window_extent().overlaps(box), text.get_text()
    numbers = [text.get_text() for text, _ in found]
    for table in versions.values():
        for value in table["psi"]:
            assert ("too few images" if np.isnan(value) else f"{value:.3f}") in numbers


@pytest.mark.parametrize(("outcome", "panels"), [("answered", 1), ("refused", 1), ("failed", 2)])
def test_the_share_of_failures_has_a_panel_if_there_are_failures(outcome: str, panels: int) -> None:
    table, step = analysis.by_time(requests(90, outcome))
    assert len(figures.traffic(table, step, TITLE, WEEK).axes) == panels


@pytest.mark.parametrize("count", [1, 5, 3000])
def test_the_time_axis_covers_the_steps(count: int) -> None:
    table, step = analysis.by_time(requests(count))
    for figure in (figures.traffic(table, step, TITLE, WEEK), figures.latency(table, step, TITLE, WEEK)):
        left, right = figure.axes[0].get_xlim()
        assert right - left == pytest.approx(
            len(table) * pd.Timedelta(analysis.STEPS[step]).total_seconds() / 86400
        )


def test_the_time_axis_ends_with_the_window_and_bursts_stay_apart() -> None:
    end = pd.Timestamp("2026-11-29T06:09:03Z")
    bursts = requests(40).assign(time=[end - pd.Timedelta(seconds=2 + 120 * (i // 10)) for i in range(40)])
    table, step = analysis.by_time(bursts)
    assert (table["answered"] > 0).sum() == 4
    assert len(table) > 30
    for draw in (figures.traffic, figures.latency):
        (ax,) = draw(table, step, TITLE, (WEEK[0], end)).axes
        assert num2date(ax.get_xlim()) == [table.index[0], end]
        assert all(np.asarray(line.get_xdata(orig=False))[-1] < ax.get_xlim()[1] for line in ax.lines)


@pytest.mark.parametrize("count", [24, 32, 54, 74])
def test_the_numbers_of_requests_have_round_steps(count: int) -> None:
    table, step = analysis.by_time(requests(count).assign(time=pd.Timestamp("2026-11-29T06:00Z")))
    ticks = figures.traffic(table, step, TITLE, WEEK).axes[0].get_yticks()
    assert str(int(ticks[1] - ticks[0]))[0] in "125"


@pytest.mark.parametrize("milliseconds", [[9.0], [10.0], [11.5, 83.0], [0.2, 4000.0]])
def test_all_latencies_lie_between_two_numbers_of_the_axis(milliseconds: list[float]) -> None:
    count = len(milliseconds)
    table, step = analysis.by_time(requests(count).assign(total_ms=milliseconds))
    figure = figures.latency(table, step, TITLE, WEEK)
    figure.savefig(BytesIO())
    (ax,) = figure.axes
    numbers = [float(tick.label1.get_text()) for tick in ax.yaxis.get_major_ticks() if tick.label1.get_text()]
    low, high = ax.get_ylim()
    shown = [number for number in numbers if low <= number <= high]
    assert min(shown) < table["p50"].min()
    assert max(shown) > table["p99"].max()


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    reference = np.full(100, 0.01)
    live = reference.copy()
    live[42], live[7] = 0.02, 0.0
    names = [f"a_class_with_a_long_name_{index}" for index in range(100)]
    table = pd.DataFrame({"bin": names, "reference": reference, "live": live})
    figure = figures.beside_reference({"label": table}, {"label": "predicted class"}, TITLE)
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert len(labels) == figures.MAX_BINS
    assert {names[42], names[7]} <= set(labels)
    assert "25 of 100" in figure.axes[0].get_xlabel()
