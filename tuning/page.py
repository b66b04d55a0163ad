"""The interactive page of a study: one file that asks nothing of the network."""

import html
from collections.abc import Callable
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from tuning.plots import BEST, COMPLETE, OTHERS, left_out
from tuning.results import best_trials, compact, importances, in_state, parameters

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 1100px; margin: 0 auto; padding: 0 20px 40px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 32px 0 4px; } p { margin: 4px 0 8px; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid #ddd; }
.best td:last-child { min-width: 330px; }
.best td:nth-last-child(2) { min-width: 120px; overflow-wrap: anywhere; }
details { margin-top: 12px; } summary { cursor: pointer; }
pre { font: 12px/1.5 ui-monospace, monospace; background: #f4f4f4; padding: 8px 12px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
"""
# No button that sends anything away.
CONFIG = {"displaylogo": False, "showSendToCloud": False}


def study_page(study: optuna.Study, summary: str, best: pd.DataFrame, commands: dict[int, str]) -> str:
    """HTML.

    Args:
        summary: one sentence on how many trials there are.
        best: the leaderboard.
        commands: that reproduce its trials, by their numbers.
    """
    failed = pd.DataFrame(
        [
            {"trial": trial.number, "error": trial.user_attrs.get("error", "")}
            for trial in in_state(study, TrialState.FAIL)
        ]
    )
    missing = left_out(study)
    parts = [
        f"<h1>Search {html.escape(study.study_name)}</h1>",
        f"<p>{html.escape(summary)} All values are of the validation split.</p>",
        "<h2>Best trials</h2>" if len(best) else "",
        _table(best, "best"),
        _commands(commands),
        *(_section(study, name) for name in CHARTS if name not in missing),
        "<h2>Failed trials</h2>" if len(failed) else "",
        _table(failed, "failed"),
        "<h2>Not shown</h2>" if missing else "",
        *(f"<p>{CHARTS[name][0]}: {reason}.</p>" for name, reason in missing.items()),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>"
    )


def _table(table: pd.DataFrame, kind: str) -> str:
    return f'<div class="wide {kind}">{table.to_html(index=False, border=0)}</div>' if len(table) else ""


def _commands(commands: dict[int, str]) -> str:
    lines = "".join(
        f"<p>Trial {number}</p><pre>{html.escape(command)}</pre>" for number, command in commands.items()
    )
    return f"<details><summary>To train each of them again</summary>{lines}</details>" if commands else ""


def _section(study: optuna.Study, name: str) -> str:
    title, how_to_read, chart = CHARTS[name]
    figure = chart(study)
    figure.update_layout(
        title=None, template="plotly_white", margin={"t": 30, "b": 60}, height=figure.layout.height or 430
    )
    div = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name)
    return f'<h2>{title}</h2><p>{how_to_read}</p><div class="wide">{div}</div>'


def _history(study: optuna.Study) -> go.Figure:
    objective = study.user_attrs["objectives"][0]
    complete = in_state(study, TrialState.COMPLETE)
    values = pd.Series([trial.values[0] for trial in complete])
    figure = go.Figure()
    best = {"mode": "lines", "line_shape": "hv", "line_color": to_hex(BEST), "name": "best so far"}
    figure.add_scatter(x=[trial.number for trial in complete], y=values.cummax(), **best)
    figure.add_scatter(**_markers(complete, values.tolist()), marker_color=to_hex(COMPLETE), name="complete")
    pruned = [trial for trial in in_state(study, TrialState.PRUNED) if trial.intermediate_values]
    reached = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
    # So far below the others that these would be pressed together.
    hidden = {"marker_color": "gray", "marker_symbol": "x", "name": "pruned", "visible": "legendonly"}
    figure.add_scatter(**_markers(pruned, reached), **hidden)
    figure.update_layout(xaxis_title="trial", yaxis_title=objective, yaxis_tickformat=".1%")
    return figure


def _markers(trials: list[FrozenTrial], values: list[float]) -> dict[str, Any]:
    hover = [
        f"trial {trial.number}: {value:.4f}<br>"
        + "<br>".join(f"{name}: {text}" for name, text in compact(trial.params).items())
        for trial, value in zip(trials, values, strict=True)
    ]
    numbers = [trial.number for trial in trials]
    return {"x": numbers, "y": values, "mode": "markers", "hovertext": hover, "hoverinfo": "text"}


def _intermediate_values(study: optuna.Study) -> go.Figure:
    figure = visualization.plot_intermediate_values(study)
    trials = study.get_trials(deepcopy=False)
    best = {trial.number for trial in best_trials(study, 1)}
    seen = set()
    for line in figure.data:
        number = int(line.name.removeprefix("Trial"))
        kind, name = OTHERS.get(trials[number].state, ("complete", COMPLETE))
        if number in best:
            kind, name = f"best: trial {number}", BEST
        color = to_hex(name)
        line.update(
            name=kind,
            legendgroup=kind,
            showlegend=kind not in seen,
            mode="lines" if len(line.x) > 1 else "markers",
            line={"color": color, "width": 4 if number in best else 1.2},
            marker_color=color,
            opacity=1 if number in best else 0.6,
            hovertemplate=f"trial {number} ({kind}), epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )
        seen.add(kind)
    objective = study.user_attrs["objectives"][0]
    return figure.update_layout(
        xaxis_title="epoch", yaxis_title=objective, yaxis_tickformat=".0%", showlegend=True
    )


def _importances(study: optuna.Study) -> go.Figure:
    shares = importances(study)
    figure = go.Figure(go.Bar(x=[*shares.values()], y=[*shares], orientation="h", marker_color="#9bbfdd"))
    figure.update_layout(height=120 + 26 * len(shares), xaxis_tickformat=".0%")
    return figure.update_yaxes(autorange="reversed", automargin=True)


def _slices(study: optuna.Study) -> go.Figure:
    objective = study.user_attrs["objectives"][0]
    names = {name for trial in in_state(study, TrialState.COMPLETE) for name in trial.params}
    shown = [name for name in parameters(study) if name in names]
    figure = visualization.plot_slice(
        study, params=shown, target=lambda trial: trial.values[0], target_name=objective
    )
    figure.update_xaxes(nticks=5, showline=True, linecolor="silver", mirror=True)
    figure.update_yaxes(showline=True, linecolor="silver", mirror=True)
    return figure.update_layout(width=max(1000, 190 * len(shown)), yaxis_tickformat=".1%")


def _parallel_coordinates(study: optuna.Study) -> go.Figure:
    figure = visualization.plot_parallel_coordinate(study, target_name=study.user_attrs["objectives"][0])
    return figure.update_layout(width=max(1000, 95 * len(parameters(study))))


def _pareto_front(study: optuna.Study) -> go.Figure:
    return visualization.plot_pareto_front(study, target_names=study.user_attrs["objectives"])


CHARTS: dict[str, tuple[str, str, Callable[[optuna.Study], go.Figure]]] = {
    "pareto_front": ("Pareto front", "Red: no trial beats these in both objectives.", _pareto_front),
    "history": (
        "History",
        "Point at a trial to see its parameters. A click on the legend shows how far pruned trials came.",
        _history,
    ),
    "intermediate_values": (
        "Accuracy by epoch",
        "A line for each trial; a click on the legend hides and shows a kind.",
        _intermediate_values,
    ),
    "importances": (
        "Importance of the parameters",
        "How far the best third of the trials differs from all; pruned trials count as worse than complete "
        "ones. A rough estimate below 50 trials.",
        _importances,
    ),
    "slices": ("Value by parameter", "Complete trials, the darker the later.", _slices),
    "parallel_coordinates": (
        "Parallel coordinates",
        "A line for each complete trial; None where it does not have the parameter.",
        _parallel_coordinates,
    ),
}
