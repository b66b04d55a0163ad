"""The pictures of a report on what was served; they look as those of an evaluation do.

A `title` names what the picture is of: the window, or the version of the model.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from serving.monitoring.analysis import STEPS
from serving.monitoring.drift import LARGE, SMALL

WIDTH = 9.0  # inches, of 100 pixels
REFERENCE = "silver"
LIVE = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
OUTCOME_COLORS = {"answered": "tab:blue", "refused": "tab:orange", "failed": "tab:red", "cut off": "gray"}
OUTCOME_NAMES = {
    "answered": "answered",
    "refused": "refused: the client's fault (4xx)",
    "failed": "failed or turned away (5xx)",
    "cut off": "cut off before the answer",
}


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def traffic(table: pd.DataFrame, step: str, title: str) -> Figure:
    """Requests by time and outcome, stacked, and the share of those that failed.

    Args:
        table: as `by_time` makes it.
    """
    figure = _figure(4.8, title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = _days(step)
    base = np.zeros(len(table))
    for name, color in OUTCOME_COLORS.items():
        if not table[name].any():
            continue
        label = f"{OUTCOME_NAMES[name]}: {table[name].sum():,}"
        top.bar(table.index, table[name], width, base, color=color, alpha=0.75, align="edge", label=label)
        base += table[name].to_numpy()
    failed = table["failed"].to_numpy() / np.maximum(base, 1)
    bottom.bar(table.index, failed, width, color=OUTCOME_COLORS["failed"], alpha=0.75, align="edge")
    top.set_ylabel(f"requests, by {step}")
    top.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    top.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bottom.set(ylabel="share failed", ylim=(0, max(0.01, 1.1 * failed.max())))
    bottom.yaxis.set_major_formatter(PercentFormatter(1))
    _time_axis(figure)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def latency(table: pd.DataFrame, step: str, title: str) -> Figure:
    """Percentiles of the time to the answer, by time, on a logarithmic axis.

    Args:
        table: as `by_time` makes it.
    """
    figure = _figure(4.2, title)
    ax = figure.add_subplot()
    # In the middle of the span that they are of; one alone makes no line.
    middle = pd.DatetimeIndex(table.index) + pd.Timedelta(STEPS[step]) / 2
    styles = (("p50", "half of them"), ("p95", "19 of 20"), ("p99", "99 of 100"))
    for (name, share), color in zip(styles, ("tab:blue", "tab:orange", "tab:red"), strict=True):
        ax.plot(middle, table[name], ".-", color=color, label=f"{name}: {share} were faster", linewidth=1.8)
    ax.set(ylabel=f"milliseconds, by {step}", yscale="log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    ax.tick_params(axis="y", which="minor", labelsize=8)
    _time_axis(figure)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def beside_reference(tables: Mapping[str, pd.DataFrame], xlabels: Mapping[str, str], title: str) -> Figure:
    """Shares of the pictures in each bin, beside those of the reference; a panel for each thing compared.

    Args:
        tables: as `bins` makes them, by a name that is a key of `xlabels`.
    """
    figure = _figure(0.6 + 3.7 * len(tables), title)
    for ax, (what, table) in zip(
        figure.subplots(len(tables), squeeze=False)[:, 0], tables.items(), strict=True
    ):
        places = np.arange(len(table))
        ax.bar(places - 0.21, table["reference"], 0.42, color=REFERENCE, label="reference")
        ax.bar(places + 0.21, table["live"], 0.42, color=LIVE[0], alpha=0.75, label="served")
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(places, table["bin"], fontsize=9.5, parse_math=False, **slant)
        ax.set(xlabel=xlabels[what], ylabel="share of the pictures")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def stability(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The index of each thing compared, a bar for each version, with the bounds of a change.

    Args:
        tables: as `drift` makes them, by version.
    """
    whats = next(iter(tables.values()))["what"].tolist()
    height = 0.8 / len(tables)
    figure = _figure(1.9 + len(whats) * (0.25 + 0.3 * len(tables)), title)
    ax = figure.add_subplot()
    highest = max(LARGE, *(table["psi"].max() for table in tables.values()))
    for number, (version, table) in enumerate(tables.items()):
        places = np.arange(len(whats)) + (number - (len(tables) - 1) / 2) * height
        color = LIVE[number % len(LIVE)]
        ax.barh(places, table["psi"], 0.9 * height, color=color, alpha=0.6, label=version)
        label = "chance alone reaches this in 1 of 20" if number == len(tables) - 1 else None
        ax.plot(table["chance"], places, "|", color="black", ms=11, markeredgewidth=1.5, label=label)
        for place, value in zip(places, table["psi"], strict=True):
            text = "too few pictures" if np.isnan(value) else f"{value:.3f}"
            ax.text(0.005 * highest, place, text, va="center", fontsize=8.5)
    for bound, name in ((SMALL, "a change"), (LARGE, "a large change")):
        ax.axvline(bound, color="tab:red", linestyle="--" if bound == SMALL else "-", linewidth=1)
        ax.text(bound, -0.62, f" {name}", color="tab:red", fontsize=8.5, va="bottom")
    ax.set_yticks(range(len(whats)), whats)
    ax.set(xlim=(0, 1.3 * highest), ylim=(len(whats) - 0.4, -0.85), xlabel="population stability index")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _days(step: str) -> float:
    """Of a span of time; matplotlib's unit of time is the day."""
    return float(pd.Timedelta(STEPS[step]) / pd.Timedelta(days=1))


def _time_axis(figure: Figure) -> None:
    for ax in figure.axes:
        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        ax.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("time (UTC)")
