"""The pictures of a study, in the style of those of a run. All values are of the validation split.

Optuna's own do not tell apart trials that did not end well, and a dozen parameters of which some depend on
others cannot be read in them.
"""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.evaluation.figures import BAD, VAL, WIDTH
from tuning.results import FEWEST_TRIALS, best_trials, importances, in_state, parameters
from tuning.scale import Scale

COMPLETE, BEST = "tab:blue", VAL
# Trials without a value: what they are called, and their colour.
OTHERS = {
    TrialState.PRUNED: ("pruned", "dimgray"),
    TrialState.FAIL: ("failed", BAD),
    TrialState.RUNNING: ("running", "tab:green"),
}


def left_out(study: optuna.Study) -> dict[str, str]:
    """The pictures that cannot be made of this study, and why."""
    reasons: dict[str, str] = {}
    complete = len(in_state(study, TrialState.COMPLETE))
    if complete < 2:
        why = f"needs two complete trials; there is {'one' if complete else 'none'}"
        reasons |= {"slices": why, "parallel_coordinates": why, "pareto_front": why}
    if not complete:
        reasons["history"] = "needs a complete trial; there is none"
    if not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        reasons["intermediate_values"] = "needs an epoch that was reported; there is none"
    if not importances(study):
        reasons["importances"] = (
            f"needs {FEWEST_TRIALS} complete or pruned trials that are not all equally good"
        )
    if len(study.directions) > 1:
        reasons["intermediate_values"] = "is made with one objective only; see the run of each trial"
    else:
        reasons["pareto_front"] = "needs two objectives"
    return reasons


def history(study: optuna.Study) -> Figure:
    """Value by trial and the best so far; below it the trials without a value."""
    trials = in_state(study, TrialState.COMPLETE)
    rows = [state for state in OTHERS if in_state(study, state)]
    figure = _figure(3.8 + 0.35 * len(rows), f"{_first(study)} by trial")
    heights = [3.4, 0.3 * len(rows)] if rows else [3.4]
    ax, *below = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    floor = _limit(ax, trials)
    numbers = [trial.number for trial in trials]
    best = np.maximum.accumulate([trial.values[0] for trial in trials])
    last = study.get_trials(deepcopy=False)[-1].number
    ax.step([*numbers, last], [*best, best[-1]], where="post", color=BEST, lw=1.8, label="best so far")
    for chosen, marker, label in ((True, "o", "complete"), (False, "s", "complete, of a recipe or a run")):
        those = [trial for trial in trials if (trial.user_attrs.get("origin") == "sampler") == chosen]
        _points(ax, [trial.number for trial in those], those, floor, marker, label)
    top = best_trials(study, len(trials))[0]
    ax.annotate(
        f"trial {top.number}: {top.values[0]:.2%}",
        (top.number, top.values[0]),
        (0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )
    ax.set_ylabel(_first(study))
    for strip in below:
        for row, state in enumerate(rows):
            marked = [trial.number for trial in in_state(study, state)]
            strip.plot(marked, [row] * len(marked), "|", color=OTHERS[state][1], ms=9, mew=2)
        names = [f"{OTHERS[state][0]} ({len(in_state(study, state))})" for state in rows]
        strip.set_yticks(range(len(rows)), names, fontsize=9)
        strip.set_ylim(len(rows) - 0.5, -0.5)
    for each in (ax, *below):
        each.grid(alpha=0.3)
    _whole_numbers(figure.axes[-1], "trial")
    _legend(figure, [ax])
    return figure


def intermediate_values(study: optuna.Study) -> Figure:
    """Accuracy by epoch of each trial; where one ended early there is a cross."""
    figure = _figure(5.2, f"{_first(study)} by epoch, a line for each trial")
    ax = figure.add_subplot()
    states = {TrialState.COMPLETE: ("complete", COMPLETE), **OTHERS}
    for state, (name, color) in states.items():
        trials = [trial for trial in in_state(study, state) if trial.intermediate_values]
        alpha = 0.45 if state == TrialState.COMPLETE else 0.8
        for trial in trials:
            end = "x" if state in (TrialState.PRUNED, TrialState.FAIL) else "."
            _curve(ax, trial, end, f"{name} ({len(trials)})", color, alpha=alpha, lw=1.2)
    for trial in best_trials(study, 1):
        _curve(ax, trial, ".", f"best: trial {trial.number}, {trial.values[0]:.2%}", BEST, lw=2.5)
    ax.set_ylabel(_first(study))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    _whole_numbers(ax, "epoch")
    _legend(figure, [ax])
    return figure


def _curve(ax: Axes, trial: FrozenTrial, end: str, label: str, color: str, **style: Any) -> None:
    epochs = sorted(trial.intermediate_values)
    values = [trial.intermediate_values[epoch] for epoch in epochs]
    ax.plot(epochs, values, marker=end, markevery=[len(epochs) - 1], label=label, color=color, **style)


def importance_bars(study: optuna.Study) -> Figure:
    """Bars of `importances`."""
    shares = importances(study)
    count = len(in_state(study, TrialState.COMPLETE, TrialState.PRUNED))
    figure = _figure(1.6 + 0.3 * len(shares), f"Importance of the parameters for {_first(study)}")
    ax = figure.add_subplot()
    places = np.arange(len(shares))
    ax.barh(places, [*shares.values()], color=COMPLETE, alpha=0.45)
    for place, share in enumerate(shares.values()):
        ax.text(share, place, f" {share:.0%}", va="center", fontsize=9)
    ax.set_yticks(places, [*shares], fontsize=9.5, parse_math=False)
    ax.set(ylim=(len(shares) - 0.4, -0.6), xlim=(0, 1.1 * max(shares.values())))
    ax.set_xlabel(
        f"how far the best third of {count} trials differs from all, as a share; rough below 50 trials"
    )
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", alpha=0.3)
    return figure


def slices(study: optuna.Study) -> Figure:
    """Value by each parameter on its own; marks at the foot are trials without a value."""
    names = parameters(study)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(1.2 + 2.1 * rows, f"{_first(study)} by each parameter")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    trials = in_state(study, TrialState.COMPLETE)
    best = max(trials, key=lambda trial: trial.values[0])
    floor = _limit(grid[0, 0], trials, foot=0.25)
    for ax, name in zip(grid.flat, names, strict=False):
        scale = Scale.of(study, name)
        those = [trial for trial in trials if name in trial.params]
        _points(ax, [scale.place(trial.params[name]) for trial in those], those, floor, alpha=0.6, ms=5)
        if name in best.params:
            star = {"ms": 13, "color": BEST, "mec": "black", "label": f"best: trial {best.number}"}
            ax.plot(scale.place(best.params[name]), best.values[0], "*", **star)
        for height, state in ((0.04, TrialState.PRUNED), (0.12, TrialState.FAIL)):
            text, color = OTHERS[state]
            marked = [
                scale.place(trial.params[name]) for trial in in_state(study, state) if name in trial.params
            ]
            rug = {"color": color, "ms": 7, "alpha": 0.7, "label": text}
            ax.plot(marked, [height] * len(marked), "|", transform=ax.get_xaxis_transform(), **rug)
        ticks = scale.ticks()
        crowded = scale.choices and sum(map(len, ticks.values())) > 18
        slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        ax.set_xticks([*ticks], [*ticks.values()], fontsize=8.5, parse_math=False, **slant)
        ax.set_xlim(-0.06, 1.06)
        ax.set_title(_narrow(f"{name}{' (log)' * scale.log}"), fontsize=9.5, parse_math=False)
        ax.grid(alpha=0.3)
    for ax in grid[:, 0]:
        ax.set_ylabel(_first(study), fontsize=9)
    for ax in grid.flat[len(names) :]:
        ax.axis("off")
    _legend(figure, figure.axes)
    return figure


def parallel_coordinates(study: optuna.Study) -> Figure:
    """A line for each trial, across an axis for each parameter and one for the value."""
    names = parameters(study)
    figure = _figure(5.6, f"Parameters and {_first(study)}, a line for each trial")
    figure.set_figwidth(max(WIDTH, 0.95 * (len(names) + 1)))
    ax = figure.add_subplot()
    scales = [Scale.of(study, name) for name in names]
    trials = sorted(in_state(study, TrialState.COMPLETE), key=lambda trial: (trial.values[0], -trial.number))
    values = np.array([trial.values[0] for trial in trials])
    value_scale = Scale((), _floor(values), values.max())
    not_set = -0.15

    def heights(trial: FrozenTrial, spread: float) -> list[float]:
        """Lines of the same choice are spread a little, so that each can be followed."""
        return [
            scale.place(trial.params[name]) + spread * bool(scale.choices)
            if name in trial.params
            else not_set + spread
            for name, scale in zip(names, scales, strict=True)
        ]

    pruned = in_state(study, TrialState.PRUNED)
    for trial, spread in zip(pruned, np.linspace(-0.025, 0.025, len(pruned)), strict=True):
        ax.plot(heights(trial, spread), color="darkgray", lw=0.7, alpha=0.5, label="pruned")
    for trial, spread in zip(trials, np.linspace(-0.025, 0.025, len(trials)), strict=True):
        end = max(0.0, value_scale.place(trial.values[0]))
        style: dict[str, Any] = {"color": colormaps["Blues"](0.25 + 0.75 * end), "lw": 1.3}
        style["label"] = "complete, the darker the better"
        if trial is trials[-1]:
            style = {"color": BEST, "lw": 3, "label": f"best: trial {trial.number}"}
        ax.plot([*heights(trial, spread), end], **style)
    low = "≤ " * bool(values.min() < value_scale.low)
    middle = (value_scale.low + value_scale.high) / 2
    of_value = {0: f"{low}{value_scale.low:.1%}", 0.5: f"{middle:.1%}", 1: f"{value_scale.high:.1%}"}
    if value_scale.low == value_scale.high:
        of_value = {0.5: f"{middle:.1%}"}
    box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
    for column, ticks in enumerate([*(scale.ticks() for scale in scales), of_value]):
        ax.axvline(column, color="black", lw=0.8)
        for place, text in ticks.items():
            ax.text(column, place, text, fontsize=8, ha="center", va="center", bbox=box, parse_math=False)
    slant: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
    labels = [_narrow(name) for name in (*names, _first(study))]
    ax.set_xticks(range(len(labels)), labels, fontsize=9, parse_math=False, **slant)
    ax.set_yticks([not_set], ["not set"], fontsize=9)
    ax.set(ylim=(not_set - 0.07, 1.06), xlim=(-0.4, len(names) + 0.4))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    _legend(figure, [ax])
    return figure


def pareto_front(study: optuna.Study) -> Figure:
    """Complete trials by both objectives, and those that no other beats in both."""
    first, second = study.user_attrs["objectives"]
    figure = _figure(5.2, f"{first} against {second}")
    ax = figure.add_subplot()
    trials = in_state(study, TrialState.COMPLETE)
    front = best_trials(study, len(trials))[::-1]
    floor = _limit(ax, trials)
    _points(ax, [trial.values[1] for trial in trials], trials, floor, alpha=0.5)
    costs, heights = [trial.values[1] for trial in front], [max(trial.values[0], floor) for trial in front]
    label = "Pareto front: no trial beats these in both"
    ax.step(costs, heights, "o-", where="post", color=BEST, label=label)
    for i in range(0, len(front), -(-len(front) // 12)):
        text, where = f"trial {front[i].number}", (costs[i], heights[i])
        ax.annotate(text, where, (5, -11), textcoords="offset points", fontsize=8.5)
    ax.set(xlabel=f"{second} (less is better)", ylabel=first)
    all_costs = [trial.values[1] for trial in trials]
    if max(all_costs) > 5 * min(all_costs) > 0:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.10g}"))
    ax.grid(alpha=0.3)
    _legend(figure, [ax])
    return figure


PICTURES: dict[str, Callable[[optuna.Study], Figure]] = {
    "history": history,
    "intermediate_values": intermediate_values,
    "importances": importance_bars,
    "slices": slices,
    "parallel_coordinates": parallel_coordinates,
    "pareto_front": pareto_front,
}


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(f"{title} (validation split)", fontsize=13, parse_math=False)
    return figure


def _first(study: optuna.Study) -> str:
    name: str = study.user_attrs["objectives"][0]
    return name


def _narrow(name: str) -> str:
    """A name such as `weight_decay.optimizer=sgd,model=cnn+fast`, in lines that fit into a column."""
    return textwrap.fill(name, 26)


def _floor(values: NDArray[np.float64]) -> float:
    """The lowest accuracy to show: trials that learned nothing must not press the others together."""
    return float(max(values.min(), values.max() - 3 * (values.max() - np.median(values)) - 0.02))


def _limit(ax: Axes, trials: list[FrozenTrial], foot: float = 0.1) -> float:
    """Set up the axis of accuracies, with a share of free room at its foot.

    Returns:
        What `_points` draws lower ones at.
    """
    values = np.array([trial.values[0] for trial in trials])
    floor = _floor(values)
    height = values.max() - floor + 0.01
    ax.set_ylim(floor - foot * height, values.max() + 0.15 * height)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return floor


def _points(
    ax: Axes,
    places: list[Any],
    trials: list[FrozenTrial],
    floor: float,
    marker: str = "o",
    label: str = "complete",
    **style: Any,
) -> None:
    for low, shape, text in ((False, marker, label), (True, "v", "complete, lower than shown")):
        those = [i for i, trial in enumerate(trials) if (trial.values[0] < floor) == low]
        ax.plot(
            [places[i] for i in those],
            [max(trials[i].values[0], floor) for i in those],
            shape,
            label=text,
            **{"color": COMPLETE, "mfc": "white" if low or marker == "s" else COMPLETE, **style},
        )


def _whole_numbers(ax: Axes, name: str) -> None:
    ax.set_xlabel(name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Below the picture; each thing once, and none that is not in it."""
    lines = {str(line.get_label()): line for ax in axes for line in ax.lines if np.size(line.get_xdata())}
    shown = {label: line for label, line in lines.items() if not label.startswith("_")}
    figure.legend([*shown.values()], [*shown], loc="outside lower center", ncols=4, fontsize=9)
