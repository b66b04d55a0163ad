"""Figures of a report on served requests, in the style of those of an evaluation.

A `title` names the time window or the model version.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from cifar_mlflow.evaluation.figures import ROUND, WIDTH
from serving.monitoring.analysis import STEPS
from serving.monitoring.drift import LARGE, SMALL

Window = tuple[pd.Timestamp, pd.Timestamp]  # from when to when

MAX_BINS = 25
REFERENCE = "silver"
LIVE = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
OUTCOME_COLORS = {"answered": "tab:blue", "refused": "tab:orange", "failed": "tab:red", "cut off": "gray"}
OUTCOME_NAMES = {
    "answered": "answered",
    "refused": "refused: client error (4xx)",
    "failed": "failed or overloaded (5xx)",
    "cut off": "connection closed before the answer",
}


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def traffic(table: pd.DataFrame, step: str, title: str, window: Window) -> Figure:
    """Plot requests per time step, stacked by outcome, and the share of failed ones if there are any.

    Args:
        table: as `by_time` returns it.
        window: the time that the report is on; the axis shows the part of it that has requests.
    """
    has_failures = bool(table["failed"].any())
    figure = _figure(4.8 if has_failures else 3.9, title)
    rows = 2 if has_failures else 1
    top, *bottom = figure.subplots(rows, sharex=True, height_ratios=[3, 1][:rows], squeeze=False)[:, 0]
    width = _days(step)
    base = np.zeros(len(table))
    for name, color in OUTCOME_COLORS.items():
        if not table[name].any():
            continue
        label = f"{OUTCOME_NAMES[name]}: {table[name].sum():,}"
        top.bar(table.index, table[name], width, base, color=color, alpha=0.75, align="edge", label=label)
        base += table[name].to_numpy()
    for ax in bottom:
        failed = table["failed"].to_numpy() / np.maximum(base, 1)
        ax.bar(table.index, failed, width, color=OUTCOME_COLORS["failed"], alpha=0.75, align="edge")
        ax.set(ylabel="share failed", ylim=(0, 1.1 * failed.max()))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    top.set_ylabel(f"requests per {step}")
    top.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=ROUND))
    top.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _time_axis(figure, table, step, window)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def latency(table: pd.DataFrame, step: str, title: str, window: Window) -> Figure:
    """Plot percentiles of the latency per time step on a logarithmic axis.

    Args:
        table: as `by_time` returns it.
        window: the time that the report is on; the axis shows the part of it that has requests.
    """
    figure = _figure(4.2, title)
    ax = figure.add_subplot()
    # Points are in the middle of their step, as far as it is in the window; markers, because a single point
    # makes no line.
    starts = pd.DatetimeIndex(table.index)
    ends = starts + pd.Timedelta(STEPS[step])
    starts, ends = starts.where(starts > window[0], window[0]), ends.where(ends < window[1], window[1])
    middle = starts + (ends - starts) / 2
    styles = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))
    for (name, share), color in zip(styles, ("tab:blue", "tab:orange", "tab:red"), strict=True):
        ax.plot(middle, table[name], ".-", color=color, label=f"{name}: {share} are faster", linewidth=1.8)
    ax.set(ylabel="milliseconds", yscale="log")
    # Numbers below and above all points: matplotlib's own may all be above, and the lower points unreadable.
    ticks = np.outer(10.0 ** np.arange(-2, 7), (1, 2, 5)).ravel()
    below, above = ticks[ticks < table["p50"].min()], ticks[ticks > table["p99"].max()]
    ax.set_ylim(below[-1], above[0])
    ax.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    _time_axis(figure, table, step, window)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def beside_reference(tables: Mapping[str, pd.DataFrame], xlabels: Mapping[str, str], title: str) -> Figure:
    """Plot the share of images in each bin beside that of the reference; one panel per feature.

    Of many classes, the MAX_BINS whose shares differ most are shown.

    Args:
        tables: by feature, as `bins` returns them.
        xlabels: by feature.
    """
    figure = _figure(0.6 + 3.7 * len(tables), title)
    axes = figure.subplots(len(tables), squeeze=False)[:, 0]
    for ax, (feature, table) in zip(axes, tables.items(), strict=True):
        xlabel, names = xlabels[feature], len(table)
        if names > MAX_BINS:
            differs_most = (table["live"] - table["reference"]).abs().nlargest(MAX_BINS).index
            table = table.loc[differs_most.sort_values()]
            xlabel = f"{xlabel} ({MAX_BINS} of {names}: those whose shares differ most)"
        positions = np.arange(len(table))
        ax.bar(positions - 0.21, table["reference"], 0.42, color=REFERENCE, label="reference")
        ax.bar(positions + 0.21, table["live"], 0.42, color=LIVE[0], alpha=0.75, label="served")
        slant = {"rotation": 30 if len(table) <= 12 else 60, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(positions, table["bin"], fontsize=9.5, parse_math=False, **slant)
        ax.set(xlabel=xlabel, ylabel="share of images")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def stability(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Plot the index of each feature, one bar per version, with the thresholds of a change.

    Args:
        tables: by version, as `drift` returns them.
    """
    features = next(iter(tables.values()))["feature"].tolist()
    height = 0.8 / len(tables)
    figure = _figure(1.7 + len(features) * (0.25 + 0.3 * len(tables)), title)
    ax = figure.add_subplot()
    highest = max(LARGE, *(table["psi"].max() for table in tables.values()))
    for number, (version, table) in enumerate(tables.items()):
        positions = np.arange(len(features)) + (number - (len(tables) - 1) / 2) * height
        color = LIVE[number % len(LIVE)]
        ax.barh(positions, table["psi"], 0.9 * height, color=color, alpha=0.6, label=version)
        label = "reached by chance in 1 of 20 cases" if number == len(tables) - 1 else None
        ax.plot(table["chance"], positions, "|", color="black", ms=11, markeredgewidth=1.5, label=label)
        for position, value in zip(positions, table["psi"], strict=True):
            text = "too few images" if np.isnan(value) else f"{value:.3f}"
            # Beside the axes, where no bar or line crosses it.
            ax.annotate(
                text,
                (1, position),
                xycoords=ax.get_yaxis_transform(),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
    for bound, name, line in ((SMALL, "a change", "--"), (LARGE, "a large change", "-")):
        ax.axvline(bound, color="tab:red", linestyle=line, linewidth=1, label=f"{name}: above {bound:g}")
    ax.set_yticks(range(len(features)), ["predicted class" if name == "label" else name for name in features])
    ax.set(xlim=(0, 1.05 * highest), ylim=(len(features) - 0.5, -0.5), xlabel="population stability index")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _days(step: str) -> float:
    """Return the length of a step in days, matplotlib's unit of time."""
    return float(pd.Timedelta(STEPS[step]) / pd.Timedelta(days=1))


def _time_axis(figure: Figure, table: pd.DataFrame, step: str, window: Window) -> None:
    times = pd.DatetimeIndex(table.index)
    # The first and the last step may reach beyond the window.
    limits = max(times[0], window[0]), min(times[-1] + pd.Timedelta(STEPS[step]), window[1])
    for ax in figure.axes:
        # Matplotlib would show some years around a single point.
        ax.set(xlim=limits)
        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        ax.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("time (UTC)")
