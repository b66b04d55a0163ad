"""The `tune` command."""

from typing import Any

import click

from cifar_mlflow.options import run_verb, split_settings, switch, verb
from cifar_mlflow.verb_config import RegisterConfig
from tuning.config import TuneAndPromoteConfig, TuneConfig


@verb("tune", TuneAndPromoteConfig)
@switch("--promote", "Register the best trial at the end, and make it the champion if it is better.")
@click.pass_context
def tune(ctx: click.Context, given: dict[str, Any], promote: bool) -> None:
    """Search hyperparameters: one MLflow run for the study, with a nested run for each trial."""
    given, registration = split_settings(given, TuneConfig, RegisterConfig)
    from tuning.report import leaderboard
    from tuning.results import best_trials
    from tuning.study import tune as search

    study = search(given, {**registration, "promote": True} if promote else None)
    click.echo(f"\n{leaderboard(study)}")
    if promote:
        (best,) = best_trials(study, 1)
        run_verb(ctx, "register", run_id=best.user_attrs["run_id"], promote=True, **registration)
