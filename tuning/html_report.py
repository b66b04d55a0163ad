"""The interactive report of a study: one HTML file that makes no network requests."""

import html

import optuna
import pandas as pd
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from tuning.plots import CHARTS, html_figure, missing_charts
from tuning.results import in_state

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
# Without the button that sends the chart to plotly's servers.
PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False}


def html_report(study: optuna.Study, summary: str, best: pd.DataFrame, commands: dict[int, str]) -> str:
    """Return the report as HTML.

    Args:
        summary: one sentence on the number of trials.
        best: the leaderboard.
        commands: that reproduce the trials of the leaderboard, by trial number.
    """
    failed = pd.DataFrame(
        [
            {"trial": trial.number, "error": trial.user_attrs.get("error", "")}
            for trial in in_state(study, TrialState.FAIL)
        ]
    )
    missing = missing_charts(study)
    parts = [
        f"<h1>Search {html.escape(study.study_name)}</h1>",
        f"<p>{html.escape(summary)} All values are those of the validation split.</p>",
        "<h2>Best trials</h2>" if len(best) else "",
        _table(best, "best"),
        _commands(commands),
        *(_section(study, name) for name in CHARTS if name not in missing),
        "<h2>Failed trials</h2>" if len(failed) else "",
        _table(failed, "failed"),
        "<h2>Charts not shown</h2>" if missing else "",
        *(f"<p>{CHARTS[name].title}: {reason}.</p>" for name, reason in missing.items()),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>"
    )


def _table(table: pd.DataFrame, css_class: str) -> str:
    return f'<div class="wide {css_class}">{table.to_html(index=False, border=0)}</div>' if len(table) else ""


def _commands(commands: dict[int, str]) -> str:
    lines = "".join(
        f"<p>Trial {number}</p><pre>{html.escape(command)}</pre>" for number, command in commands.items()
    )
    return f"<details><summary>Commands to train them again</summary>{lines}</details>" if commands else ""


def _section(study: optuna.Study, name: str) -> str:
    chart = CHARTS[name]
    div = html_figure(study, name).to_html(
        full_html=False, include_plotlyjs=False, config=PLOTLY_CONFIG, div_id=name
    )
    return f'<h2>{chart.title}</h2><p>{chart.hint}</p><div class="wide">{div}</div>'
