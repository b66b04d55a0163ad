"""The commands that list runs and registered models."""

from typing import Any

import click

from cifar_mlflow.console import loading, print_table
from cifar_mlflow.options import verb
from cifar_mlflow.settings import validate
from cifar_mlflow.verb_config import ModelsConfig, RunsConfig


@verb("runs", RunsConfig, common=("kind", "limit"))
def runs(given: dict[str, Any]) -> None:
    """List runs with their ids and accuracies, the newest first, and what to do next.

    \b
    Examples:
      cifar-mlflow runs
      cifar-mlflow runs --kind trial --limit 50
    """
    config = validate(RunsConfig, given)
    with loading():
        from cifar_mlflow.tracking.listing import RUN_COLUMNS, list_runs

    none = "No trainings yet." if config.kind == "train" else f"No runs of kind {config.kind} yet."
    _print(RUN_COLUMNS, *list_runs(config), none=none)


@verb("models", ModelsConfig)
def models(given: dict[str, Any]) -> None:
    """List the registered models: versions, aliases, accuracies and runs, and what to do next.

    \b
    Example:
      cifar-mlflow models
    """
    config = validate(ModelsConfig, given)
    with loading():
        from cifar_mlflow.tracking.listing import VERSION_COLUMNS, list_versions

    _print(VERSION_COLUMNS, *list_versions(config), none="No registered models yet.")


def _print(columns: tuple[str, ...], rows: list[list[str]], commands: list[str], none: str) -> None:
    if rows:
        print_table(columns, rows)
    else:
        click.echo(none)
    if commands:
        click.echo("\n".join(["\nWhat next:", *(f"  {command}" for command in commands)]))
