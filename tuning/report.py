"""The results of a search for people: tables, plots and an HTML report in the MLflow run of the study, and a
leaderboard for the terminal."""

import re
import textwrap
from collections import Counter
from collections.abc import Container
from typing import Any, Protocol

import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.markdown import markdown_table
from cifar_mlflow.names import counted
from tuning.command import command_line, wrapped
from tuning.html_report import html_report
from tuning.optuna_output import ignore_optuna_warnings
from tuning.plots import CHARTS, missing_charts, png_figure
from tuning.results import (
    best_metrics,
    best_trials,
    compact,
    own_trials,
    trial_name,
    values,
    varying_parameters,
)
from tuning.warm_start import PRIOR_RUN

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
ATTRIBUTES = ("epochs", "seconds", "run_id", "origin", "error")  # of a trial, besides its parameters
LEADERBOARD_SIZE = 5
TERMINAL_WIDTH = 80
COMMAND_WIDTH = 90  # a longer line moves other parts of MLflow's page out of sight


class StudySink(Protocol):
    """Receives plots and tables: the MLflow run of the study."""

    def log_figure(self, figure: Figure, path: str) -> None: ...
    def log_json(self, values: Any, path: str) -> None: ...
    def log_text(self, text: str, path: str) -> None: ...
    def log_csv(self, table: pd.DataFrame, path: str, *, index: bool = False) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def set_tags(self, tags: dict[str, Any]) -> None: ...


def log_study(sink: StudySink, study: optuna.Study) -> None:
    """Log everything about a study, whatever the states of its trials; replace what was logged before.

    Args:
        study: a `snapshot`, since other workers may still add trials to the real one.
    """
    sink.log_csv(trials_table(study), "search/trials.csv")
    best = best_trials(study, LEADERBOARD_SIZE)
    if best:
        facts = _facts(study, best[0])
        if len(study.directions) > 1:
            facts["pareto_front"] = [_facts(study, trial) for trial in best_trials(study, len(study.trials))]
        sink.log_json(facts, "search/best.json")
    missing = missing_charts(study)
    for name in CHARTS:
        if name not in missing:
            sink.log_figure(png_figure(study, name), f"search/{name}.png")
    report = html_report(study, _summary(study), _best_table(study, best), _commands(best))
    sink.log_text(report, "search/study.html")
    sink.set_tags({**_tags(study, best), "mlflow.note.content": _description(study, best)})
    trials = own_trials(study.get_trials(deepcopy=False))
    metrics = {
        "trials": len(trials),
        "epochs": sum(trial.user_attrs.get("epochs", trial.last_step or 0) for trial in trials),
    }
    # The workers have logged the best value at each of these steps, perhaps not in their order.
    finished = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    sink.log_metrics(metrics | best_metrics(study), step=max(finished, default=0))


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial. Only complete trials have a value; the run of a pruned one has its epochs."""
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    rows = [
        {
            "number": trial.number,
            "state": STATES[trial.state],
            **values(study, trial),
            **{name: trial.user_attrs.get(name) for name in ATTRIBUTES},
            **trial.params,
        }
        for trial in trials
    ]
    objectives = study.user_attrs["objectives"]
    # As objects, integers stay integers although some trials lack them.
    table = pd.DataFrame(rows, columns=["number", "state", *objectives, *ATTRIBUTES, *names], dtype=object)
    return table.astype({"number": int, "epochs": "Int64", **dict.fromkeys([*objectives, "seconds"], float)})


def leaderboard(study: optuna.Study, count: int = LEADERBOARD_SIZE) -> str:
    """Return the best trials, and the command that trains each again, for the terminal."""
    best = best_trials(study, count)
    if not best:
        return _summary(study)
    table = _best_table(study, best).drop(columns="run")  # the commands below have it
    params = table.pop("hyperparameters")
    head, *rows = table.to_string(index=False).split("\n")
    first = study.user_attrs["objectives"][0]
    kind = "Best trials" if len(study.directions) == 1 else "Pareto front"
    lines = [_summary(study), f"{kind} by {first} (all values are those of the validation split):", "", head]
    for row, text in zip(rows, params, strict=True):
        lines += [
            row,
            textwrap.indent(textwrap.fill(text, TERMINAL_WIDTH - 6, break_on_hyphens=False), 6 * " "),
        ]
    lines += ["", "Commands to train them again and test them:"]
    for trial in best:
        if run_id := trial.user_attrs.get("run_id"):
            lines.append(f"  trial {trial.number}: cifar-mlflow train --settings-of {run_id}")
        elif command := _commands([trial]).get(trial.number):
            lines.append(f"  trial {trial.number}: {command}")
    return "\n".join(lines)


def reproduce_command(settings: dict[str, Any]) -> str:
    """Return the command of a training with exactly these settings."""
    names = sorted(settings, key=lambda name: (name != "model", name))
    return command_line("train", {name: settings[name] for name in names})


@ignore_optuna_warnings()
def snapshot(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study in memory, which does not change while it is logged."""
    copy = optuna.create_study(
        study_name=study.study_name,
        directions=study.directions,
        storage=optuna.storages.InMemoryStorage(),
    )
    copy.add_trials(study.get_trials(deepcopy=False))
    attributes = study.user_attrs
    for name, value in attributes.items():
        copy.set_user_attr(name, value)
    copy.set_metric_names(attributes["objectives"])
    return copy


def _facts(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "values": values(study, trial),
        "run_id": trial.user_attrs.get("run_id"),
        "params": trial.params,
        "settings": trial.user_attrs.get("settings"),
        "command": _commands([trial]).get(trial.number),
    }


def _commands(trials: list[FrozenTrial]) -> dict[int, str]:
    """Return the commands that reproduce trials, by trial number."""
    return {
        trial.number: reproduce_command(trial.user_attrs["settings"])
        for trial in trials
        if "settings" in trial.user_attrs
    }


def _summary(study: optuna.Study) -> str:
    """Return one sentence on the number of trials."""
    trials = study.get_trials(deepcopy=False)
    own = own_trials(trials)
    counts = Counter(trial.state for trial in own)
    states = ", ".join(f"{counts[state]} {name}" for state, name in STATES.items() if counts[state])
    prior = sum(trial.user_attrs.get("origin") == PRIOR_RUN for trial in trials)
    also = f", and {counted(prior, 'earlier run')}" * bool(prior)
    return f"Search {study.study_name}: {counted(len(own), 'trial')} ({states}){also}.".replace(" ()", "")


def _best_table(study: optuna.Study, trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return the leaderboard, all columns as text."""
    return pd.DataFrame(
        {
            "rank": str(rank),
            "trial": trial_name(trial),
            **{name: _text(value) for name, value in values(study, trial).items()},
            "epochs": str(trial.user_attrs.get("epochs", "")),
            "run": trial.user_attrs.get("run_id") or "",
            "hyperparameters": _assignments(trial, only=trial.params),
        }
        for rank, trial in enumerate(trials, 1)
    )


def _narrow_table(study: optuna.Study, trials: list[FrozenTrial]) -> tuple[str, pd.DataFrame]:
    """Return the parameters that these trials share, and the leaderboard with the others only."""
    varying = varying_parameters(trials)
    texts = [_assignments(trial, only=varying) for trial in trials]
    table = _best_table(study, trials)[["trial", *values(study, trials[0]), "epochs"]]
    table["trial"] = [str(trial.number) for trial in trials]
    if table["epochs"].nunique() == 1:
        del table["epochs"]
    if varying:
        table["hyperparameters"] = texts
    common = trials[0].params.keys() - varying
    return _assignments(trials[0], only=common), table


def _assignments(trial: FrozenTrial, only: Container[str]) -> str:
    return " ".join(f"{name}={text}" for name, text in compact(trial.params).items() if name in only)


def _text(value: float) -> str:
    """Return an accuracy, milliseconds or a count as text."""
    if value < 1:
        return f"{value:.4f}"
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _tags(study: optuna.Study, best: list[FrozenTrial]) -> dict[str, Any]:
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state for trial in own_trials(trials))
    tags: dict[str, Any] = {
        f"trials.{STATES[state]}": counts[state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    }
    for trial in best[:1]:
        tags |= {
            "best.run_id": trial.user_attrs.get("run_id"),
            "best.trial": trial.number,
            "best.value": trial.values[0],
        }
        # The previous best trial may have had parameters that this one lacks.
        names = sorted({name for other in trials for name in other.params})
        tags |= {f"best.{_tag_name(name)}": trial.params.get(name, "not set") for name in names}
    return tags


def _tag_name(name: str) -> str:
    """Replace characters that MLflow does not allow, as in `width.model=cnn+fast`."""
    return re.sub(r"[^\w.\- /]", "_", name)


def _description(study: optuna.Study, best: list[FrozenTrial]) -> str:
    """Return the description of the study's run, in Markdown."""
    # The first line is plain text: MLflow shows it as it is in lists.
    parts = [_summary(study), "All values are those of the validation split."]
    if best:
        shown = ", ".join(f"{name} **{_text(value)}**" for name, value in values(study, best[0]).items())
        common, table = _narrow_table(study, best)
        parts += [
            f"Best: {shown}, trial {trial_name(best[0])}, run `{best[0].user_attrs.get('run_id')}`",
            *(f"```\n{wrapped(command, COMMAND_WIDTH)}\n```" for command in _commands(best[:1]).values()),
            markdown_table([*table.columns], table.to_numpy().tolist()),
            *([f"The same in these trials: {common}."] if common else []),
        ]
    if space := _search_space(study):
        parts.append("Search space:\n" + "\n".join(f"- `{name}`: {values}" for name, values in space.items()))
    parts.append("The artifacts below `search/` have all trials and plots; `study.html` is interactive.")
    return "\n\n".join(parts)


def _search_space(study: optuna.Study) -> dict[str, str]:
    """Return the values that each parameter could have, in the last trial that had it."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        for name, domain in trial.distributions.items():
            if isinstance(domain, CategoricalDistribution):
                found[name] = ", ".join(map(str, domain.choices))
            elif isinstance(domain, FloatDistribution | IntDistribution):
                found[name] = f"{domain.low:g} to {domain.high:g}{' (log)' * domain.log}"
    return dict(sorted(found.items()))
