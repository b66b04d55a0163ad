"""The charts of a study, drawn by Optuna: with matplotlib for PNG files, with plotly for the HTML report.

All values are those of the validation split.
"""

import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import optuna
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator, NullLocator
from optuna import visualization
from optuna.trial import TrialState

from cifar_mlflow.evaluation.figures import WIDTH
from tuning.optuna_output import ignore_optuna_warnings
from tuning.results import (
    IMPORTANCE_EVALUATOR,
    MIN_TRIALS_FOR_IMPORTANCE,
    in_state,
    ranked_study,
    varying_parameters,
)

MIN_TRIALS_TO_COMPARE = 5  # with fewer, a chart of values by parameter says nothing
MAX_LEGEND_ENTRIES = 12
SLICE_COLUMNS = 4
LIGHTEST = 0.35  # of the blues from 0 to 1: lighter ones are hardly visible on white
PRUNED = "pruned, last value"
BEST = "best so far"


@dataclass(frozen=True)
class Chart:
    """One of Optuna's charts.

    Attributes:
        hint: how to read it.
        function: its name in `optuna.visualization` and in `optuna.visualization.matplotlib`.
        arguments: returns its keyword arguments for a study.
        adjust_png: makes the matplotlib figure readable.
        adjust_html: does the same for plotly.
        png_layout: matplotlib's layout engine.
    """

    title: str
    hint: str
    function: str
    arguments: Callable[[optuna.Study], dict[str, Any]]
    adjust_png: Callable[[Figure, optuna.Study], None]
    adjust_html: Callable[[go.Figure, optuna.Study], None]
    png_layout: Literal["constrained", "none"] = "constrained"


@ignore_optuna_warnings()
def png_figure(study: optuna.Study, name: str) -> Figure:
    """Return the chart of this name as a matplotlib figure, at least 900 pixels wide."""
    chart = CHARTS[name]
    mpl.use("agg")  # no window, even if there is a display
    # Optuna changes the style of the whole process.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to set identical low and high", UserWarning)
        drawn = getattr(visualization.matplotlib, chart.function)(**chart.arguments(study))
        figure: Figure = np.ravel(drawn)[0].figure
        plt.close(figure)  # pyplot would keep it in memory
        figure.set_layout_engine(chart.png_layout)
        figure.set_size_inches(WIDTH, 5)
        figure.set_dpi(100)
        for ax in figure.axes:
            ax.set_title("", loc="left")
            ax.set_title("")
        figure.suptitle(f"{chart.title} (validation split)", fontsize=13)
        chart.adjust_png(figure, study)
    return figure


@ignore_optuna_warnings()
def html_figure(study: optuna.Study, name: str) -> go.Figure:
    """Return the chart of this name as a plotly figure."""
    chart = CHARTS[name]
    figure = getattr(visualization, chart.function)(**chart.arguments(study))
    figure.update_layout(title=None, template="plotly_white", margin={"t": 30, "b": 60}, height=430)
    chart.adjust_html(figure, study)
    return figure


def missing_charts(study: optuna.Study) -> dict[str, str]:
    """Return, by name, why charts cannot be drawn for this study; charts that can be drawn are left out."""
    reasons: dict[str, str] = {}
    complete = len(in_state(study, TrialState.COMPLETE))
    of_parameters = ("slices", "parallel_coordinates")
    if complete < MIN_TRIALS_TO_COMPARE:
        found = {0: "is none", 1: "is one"}.get(complete, f"are {complete}")
        reason = f"needs {MIN_TRIALS_TO_COMPARE} complete trials; there {found}"
        reasons |= dict.fromkeys(of_parameters, reason)
    elif not _parameters(study):
        reasons |= dict.fromkeys(
            of_parameters, "needs a parameter that differs between trials; there is none"
        )
    if complete < 2:
        reasons["pareto_front"] = f"needs two complete trials; there is {'one' if complete else 'none'}"
    if not complete:
        reasons["history"] = "needs a complete trial; there is none"
    if not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        reasons["intermediate_values"] = "needs a trial that has reported an epoch; there is none"
    if not ranked_study(study)[1]:
        reasons["importances"] = (
            f"needs {MIN_TRIALS_FOR_IMPORTANCE} complete or pruned trials that are not all equally good"
        )
    if len(study.directions) > 1:
        reasons["intermediate_values"] = "needs a single objective; see the run of each trial"
    else:
        reasons["pareto_front"] = "needs two objectives"
    return reasons


# Arguments


def _objective(study: optuna.Study) -> str:
    name: str = study.user_attrs["objectives"][0]
    return name


def _parameters(study: optuna.Study) -> list[str]:
    return varying_parameters(in_state(study, TrialState.COMPLETE))


def _target(study: optuna.Study) -> dict[str, Any]:
    """Return the arguments that select the first objective."""
    one = len(study.directions) == 1
    return {
        "study": study,
        "target": None if one else (lambda trial: trial.values[0]),
        "target_name": _objective(study),
    }


def _slice_arguments(study: optuna.Study) -> dict[str, Any]:
    return {**_target(study), "params": _parameters(study)}


def _parallel_arguments(study: optuna.Study) -> dict[str, Any]:
    return {"study": study, "params": _parameters(study), "target_name": _objective(study)}


def _importance_arguments(study: optuna.Study) -> dict[str, Any]:
    ranked, names = ranked_study(study)
    return {"study": ranked, "evaluator": IMPORTANCE_EVALUATOR, "params": names, "target_name": "importance"}


# Readability


def _wrap(name: str) -> str:
    """Break a name such as `weight_decay.optimizer=sgd,model=cnn+fast` into lines."""
    return textwrap.fill(name, 22)


def _dimensions(study: optuna.Study) -> list[str]:
    """Return the labels of the parallel coordinates, which Optuna truncates."""
    return [*study.user_attrs["objectives"], *_parameters(study)]


def _short_legend(ax: Axes) -> None:
    legend = ax.get_legend()
    if legend and len(legend.get_texts()) > MAX_LEGEND_ENTRIES:
        legend.remove()


def _visible(blues: Colormap) -> Colormap:
    """Return a colour map without its lightest colours, which come last in a reversed one."""
    light = np.linspace(LIGHTEST, 1, blues.N)
    return ListedColormap(blues(1 - light[::-1] if blues.name.endswith("_r") else light))


def _pruned_points(study: optuna.Study) -> tuple[list[int], list[float]]:
    """Return the numbers of pruned trials, and the last value that each has reported."""
    last = {
        trial.number: trial.intermediate_values[trial.last_step]
        for trial in in_state(study, TrialState.PRUNED)
        if trial.last_step is not None
    }
    return [*last], [*last.values()]


def _history_png(figure: Figure, study: optuna.Study) -> None:
    ax = figure.axes[0]
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    points, *_ = ax.collections
    points.set_label("complete")
    for line in ax.lines:
        line.set_label(BEST)
    numbers, values = _pruned_points(study)
    if numbers:
        ax.scatter(numbers, values, marker="x", color="dimgrey", label=PRUNED)
    if legend := ax.get_legend():  # beside the chart, where it takes a fifth of the width
        legend.remove()
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _intermediate_values_png(figure: Figure, study: optuna.Study) -> None:
    ax = figure.axes[0]
    ax.set(xlabel="epoch", ylabel=_objective(study))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _short_legend(ax)


def _importances_png(figure: Figure, study: optuna.Study) -> None:
    ax = figure.axes[0]
    figure.set_figheight(1.6 + 0.3 * len(ax.patches))
    ax.set(xlabel="share of the importance", ylabel="")
    if legend := ax.get_legend():
        legend.remove()


def _slices_png(figure: Figure, study: optuna.Study) -> None:
    """Arrange Optuna's single row of charts as a grid."""
    *axes, _ = figure.axes
    points = axes[-1].collections[0]
    cmap = _visible(points.get_cmap())
    if points.colorbar:
        points.colorbar.remove()
    columns = min(SLICE_COLUMNS, len(axes))
    rows = -(-len(axes) // columns)
    figure.set_figheight(1.2 + 2.3 * rows)
    grid = GridSpec(rows, columns, figure=figure)
    for i, ax in enumerate(axes):
        ax.set_subplotspec(grid[i // columns, i % columns])
        ax.collections[0].set_cmap(cmap)
        ax.collections[0].set_clim(0, len(study.trials) - 1)  # Optuna's colours differ from chart to chart
        ax.set_xlabel(_wrap(ax.get_xlabel()), fontsize=9)
        ax.set_ylabel(_objective(study) if i % columns == 0 else "", fontsize=9)
        ax.tick_params(labelsize=8, labelleft=i % columns == 0)
        if ax.get_xscale() == "log":  # else ticks between powers of ten overlap
            ticks = np.geomspace(*ax.get_xlim(), 5)[1::2]
            ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
        elif sum(len(label.get_text()) for label in ax.get_xticklabels()) > 24:
            ax.tick_params(axis="x", rotation=30)
    numbers = MaxNLocator(integer=True, min_n_ticks=1)
    figure.colorbar(points, ax=axes, label="trial", fraction=0.03, ticks=numbers)


def _parallel_coordinates_png(figure: Figure, study: optuna.Study) -> None:
    width = max(WIDTH, 0.95 * (len(_parameters(study)) + 2))
    figure.set_size_inches(width, 5.6)
    first = figure.axes[0]
    lines, *_ = first.collections
    lines.set_cmap(_visible(lines.get_cmap()))
    assert lines.colorbar
    bar = lines.colorbar.ax
    left, right, bottom, height = 1.2, width - 1.6, 0.3, 0.58  # the first two in inches
    bar.set_position((1 - 0.9 / width, bottom, 0.2 / width, height))
    for ax in figure.axes:
        if ax is not bar:
            ax.set_position((left / width, bottom, (right - left) / width, height))
            ax.tick_params(labelsize=8)
            if ax.get_yscale() == "log":  # else ticks between powers of ten overlap
                ticks = np.geomspace(*ax.get_ylim(), 3)
                ax.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
                ax.yaxis.set_minor_locator(NullLocator())
            for label in ax.get_yticklabels():  # which lie on the lines
                label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5})
    labels = [_wrap(label) for label in _dimensions(study)]
    first.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)


def _nothing_png(figure: Figure, study: optuna.Study) -> None: ...


def _intermediate_values_html(figure: go.Figure, study: optuna.Study) -> None:
    figure.update_layout(xaxis_title="epoch", yaxis_title=_objective(study), showlegend=True)


def _importances_html(figure: go.Figure, study: optuna.Study) -> None:
    figure.update_layout(
        height=120 + 26 * len(figure.data[0].y), xaxis_title="share of the importance", yaxis_title=None
    )
    figure.update_yaxes(automargin=True)


def _history_html(figure: go.Figure, study: optuna.Study) -> None:
    figure.update_traces(name="complete", selector={"mode": "markers"})
    figure.update_traces(name=BEST, selector={"mode": "lines"})
    numbers, values = _pruned_points(study)
    if numbers:
        marker = {"symbol": "x", "color": "dimgrey"}
        figure.add_scatter(x=numbers, y=values, mode="markers", marker=marker, name=PRUNED)


def _slices_html(figure: go.Figure, study: optuna.Study) -> None:
    light = f"rgb{tuple(int(255 * part) for part in mpl.colormaps['Blues'](LIGHTEST)[:3])}"
    figure.update_traces(marker_colorscale=[(0, light), (1, "rgb(8, 48, 107)")])
    figure.update_layout(width=max(1000, 190 * len(_parameters(study))))


def _parallel_coordinates_html(figure: go.Figure, study: optuna.Study) -> None:
    labels = _dimensions(study)
    figure.update_layout(width=max(1000, 95 * len(labels)))
    figure.update_xaxes(ticktext=[_wrap(label).replace("\n", "<br>") for label in labels])


def _nothing_html(figure: go.Figure, study: optuna.Study) -> None: ...


CHARTS = {
    "pareto_front": Chart(
        "Pareto front",
        "Red: trials that no other trial beats in both objectives.",
        "plot_pareto_front",
        lambda study: {"study": study, "target_names": study.user_attrs["objectives"]},
        _nothing_png,
        _nothing_html,
    ),
    "history": Chart(
        "History",
        "Complete trials, the last value of pruned ones, and the best value so far.",
        "plot_optimization_history",
        _target,
        _history_png,
        _history_html,
    ),
    "intermediate_values": Chart(
        "Accuracy by epoch",
        "One line per trial; pruned trials end early. Click on the legend to hide or show one.",
        "plot_intermediate_values",
        lambda study: {"study": study},
        _intermediate_values_png,
        _intermediate_values_html,
    ),
    "importances": Chart(
        "Importance of the parameters",
        "How much the best third of the trials differs from all trials; pruned trials count as worse than "
        "complete ones. With fewer than 50 trials, this is a rough estimate.",
        "plot_param_importances",
        _importance_arguments,
        _importances_png,
        _importances_html,
    ),
    "slices": Chart(
        "Value by parameter",
        "Complete trials, and the parameters that differ between them; the darker, the later.",
        "plot_slice",
        _slice_arguments,
        _slices_png,
        _slices_html,
    ),
    "parallel_coordinates": Chart(
        "Parallel coordinates",
        "One line per complete trial, the darker the better; None where it does not have the parameter.",
        "plot_parallel_coordinate",
        _parallel_arguments,
        _parallel_coordinates_png,
        _parallel_coordinates_html,
        png_layout="none",  # `constrained` does not support Optuna's axes of zero height
    ),
}
