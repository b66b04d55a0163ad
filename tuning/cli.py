"""The `tune` command."""

from contextlib import nullcontext
from typing import Any

import click

from cifar_mlflow.console import loading
from cifar_mlflow.interrupt import stoppable
from cifar_mlflow.names import registered_name
from cifar_mlflow.options import recipe_defaults, run_verb, split_settings, switch, verb
from cifar_mlflow.verb_config import RegisterConfig
from tuning.config import SEARCHED, SearchConfig, TuneAndPromoteConfig, TuneConfig

DEFAULTS = {
    **recipe_defaults(),
    **dict.fromkeys(SEARCHED, "chosen by the search"),
    "epochs": SearchConfig.model_fields["epochs"].default,
}


@verb(
    "tune",
    TuneAndPromoteConfig,
    defaults=DEFAULTS,
    common=("trials", "dataset", "data_dir", "model", "epochs", "study", "workers", "promote"),
    hidden=("test",),
)
@switch("--promote", "Register the best trial at the end, and make it the champion if it is not worse.")
@click.pass_context
def tune(ctx: click.Context, given: dict[str, Any], promote: bool) -> None:
    """Search hyperparameters: one MLflow run for the study, with a nested run for each trial.

    \b
    Examples:
      cifar-mlflow tune --dataset sample --trials 20
      cifar-mlflow tune --model resnet18 --trials 40 --epochs 15 --promote
    """
    given, registration = split_settings(given, TuneConfig, RegisterConfig)
    with loading(for_a_job=True):
        from cifar_mlflow.tracking.listing import LONGER
        from cifar_mlflow.tracking.result import Result, next_steps, registration_options
        from tuning.report import leaderboard
        from tuning.results import best_trials, own_trials, trial_name
        from tuning.study import tune as search

    with stoppable() if promote else nullcontext():
        study, retrained = search(given, {**registration, "promote": True} if promote else None)
    click.echo(f"\n{leaderboard(study)}")
    for best in best_trials(study, 1):
        run_id, settings = best.user_attrs["run_id"], best.user_attrs["settings"]
        if promote:
            run_verb(ctx, "register", run_id=run_id, promote=True, **registration)
        elif not retrained:
            click.echo(
                f"""
What next, for trial {trial_name(best)}:
  train it longer  cifar-mlflow train --settings-of {run_id} --epochs {LONGER * settings["epochs"]}
  or serve it      cifar-mlflow register {run_id}{registration_options(registration)} --promote
  or search on     the same command with --trials {2 * len(own_trials(study.trials))}, the new total"""
            )
    for run in retrained:
        metrics = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
        click.echo(Result(run.info.run_id, run.info.run_name, metrics).summary())
    for run in retrained[:1]:
        name = registered_name(run.data.params["dataset"], run.data.tags["dataset"])
        command = f"register {run.info.run_id}{registration_options(registration)} --promote"
        click.echo(next_steps(run.info.run_id, registration.get("registered_model") or name, command))
