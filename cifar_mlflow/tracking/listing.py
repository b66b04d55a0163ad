"""Tables of runs and of registered versions for the terminal, with the likely next commands."""

import shlex
from collections.abc import Container
from functools import partial

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel

from cifar_mlflow.console import percent
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.locations import versions_of
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.store import TRIAL_TAG, store_uri
from cifar_mlflow.verb_config import ModelsConfig, RunsConfig

Rows = list[list[str]]
RUN_COLUMNS = ("run", "name", "data", "val", "test", "status")
VERSION_COLUMNS = ("model", "alias", "network", "data", "val", "test", "run")
PAGE = 200  # runs per request
LONGER = 3  # times the epochs of a trial, for a training with its settings


def list_runs(config: RunsConfig) -> tuple[Rows, list[str]]:
    """Return a row for each run, the newest first, and the next commands.

    Raises:
        UsageError: there is no such experiment.
        CifarError: MLflow does not answer.
    """
    runs = _find_runs(config)
    registered = _versions_by_run()
    validation = "best/val" if config.kind == "search" else "val"
    rows = []
    for run in runs:
        status = registered.get(run.info.run_id, "")
        if run.info.status != "FINISHED":
            status = run.info.status.lower()
        row = [run.info.run_id, run.info.run_name, run.data.tags.get("dataset", "")]
        rows.append([*row, _accuracy(run, validation), _accuracy(run, "test"), status])
    return rows, _after_runs(config.kind, runs, registered)


def list_versions(config: ModelsConfig) -> tuple[Rows, list[str]]:
    """Return a row for each version of a registered model, the newest first, and the next commands.

    Raises:
        UsageError: there is no such registered model.
        CifarError: MLflow does not answer.
    """
    models = _registered_models()
    if config.registered_model is not None:
        models = [model for model in models if model.name == config.registered_model]
        if not models:
            raise UsageError(
                f"there is no registered model {config.registered_model} in {mlflow.get_registry_uri()}"
            )
    rows, commands = [], []
    for model in models:
        aliases = _aliases(model)
        for version in call_mlflow(partial(versions_of, model.name)):
            tags = version.tags
            rows.append(
                [
                    f"{model.name}/{version.version}",
                    aliases.get(str(version.version), ""),
                    " ".join(filter(None, (tags.get("model"), tags.get("precision")))),
                    tags.get("data", ""),
                    *(_as_percent(tags.get(f"{split}_accuracy")) for split in ("val", "test")),
                    tags.get("run_id") or version.run_id or "",
                ]
            )
        if "champion" in model.aliases:
            commands.append(f"cifar-mlflow serve --model-uri {shlex.quote(f'models:/{model.name}@champion')}")
        else:
            commands.append(f"cifar-mlflow promote --registered-model {shlex.quote(model.name)}")
    if not rows:
        commands += ["cifar-mlflow register pretrained --promote", "cifar-mlflow runs"]
    return rows, commands


def _find_runs(config: RunsConfig) -> list[Run]:
    client = mlflow.MlflowClient()
    experiments = [each.experiment_id for each in call_mlflow(client.search_experiments)]
    if config.experiment is not None:
        experiment = call_mlflow(lambda: client.get_experiment_by_name(config.experiment))
        if experiment is None:
            raise UsageError(f"there is no experiment {config.experiment!r} in {mlflow.get_tracking_uri()}")
        experiments = [experiment.experiment_id]
    is_trial = config.kind == "trial"
    query = f"tags.kind = '{'train' if is_trial else config.kind}'"
    runs: list[Run] = []
    token: str | None = None
    while len(runs) < config.limit:
        page = call_mlflow(
            partial(
                client.search_runs,
                experiments,
                query,
                max_results=PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
        )
        runs += [run for run in page if (TRIAL_TAG in run.data.tags) == is_trial]
        token = page.token
        if not token:
            break
    return runs[: config.limit]


def _after_runs(kind: str, runs: list[Run], registered: Container[str]) -> list[str]:
    """Return the next commands for runs of this kind, given the ids of the registered ones."""
    directories = [RunDirectory.of_run(run) for run in runs]
    commands = [each.resume_command for each in directories if each.is_resumable(store_uri(), None)]
    if kind == "search":
        # The best trial of the newest search that has one.
        search = next((run for run in runs if run.data.tags.get("best.run_id")), None)
        best = search and search.data.tags["best.run_id"]
        if search:
            epochs = search.data.params.get("epochs", "")
            longer = f" --epochs {LONGER * int(epochs)}" if epochs.isdigit() else ""
            commands.append(f"cifar-mlflow train --settings-of {best}{longer}")
    else:
        best = _best_of_newest_data(runs) if kind in ("train", "trial") else None
    if best and best not in registered:
        commands.append(f"cifar-mlflow register {best} --promote")
    if not runs and kind == "search":
        commands.append("cifar-mlflow tune --dataset sample --trials 20")
    if not runs and kind == "train":
        commands.append("cifar-mlflow train --dataset sample --model cnn")
    return commands


def _best_of_newest_data(runs: list[Run]) -> str | None:
    """Return the id of the best finished run; accuracies on other images than the newest's do not compare."""
    finished = [run for run in runs if run.info.status == "FINISHED" and "val/accuracy" in run.data.metrics]
    if not finished:
        return None
    newest = finished[0].data.tags.get("dataset.digest")
    comparable = [run for run in finished if run.data.tags.get("dataset.digest") == newest]
    return max(comparable, key=lambda run: run.data.metrics["val/accuracy"]).info.run_id


def _registered_models() -> list[RegisteredModel]:
    return list(call_mlflow(mlflow.MlflowClient().search_registered_models))


def _aliases(model: RegisteredModel) -> dict[str, str]:
    """Return the aliases, joined by commas, by the number of their version."""
    found: dict[str, list[str]] = {}
    for alias, number in model.aliases.items():
        found.setdefault(str(number), []).append(alias)
    return {number: ", ".join(sorted(names)) for number, names in found.items()}


def _versions_by_run() -> dict[str, str]:
    """Return the newest version made from each run, with its aliases: `cifar10/3 champion`."""
    found: dict[str, str] = {}
    for model in _registered_models():
        aliases = _aliases(model)
        for version in call_mlflow(partial(versions_of, model.name)):
            run_id = version.tags.get("run_id") or version.run_id
            text = f"{model.name}/{version.version} {aliases.get(str(version.version), '')}".strip()
            found.setdefault(run_id, text)
    return found


def _accuracy(run: Run, split: str) -> str:
    return _as_percent(run.data.metrics.get(f"{split}/accuracy"))


def _as_percent(accuracy: float | str | None) -> str:
    try:
        return "" if accuracy is None else percent(float(accuracy)).strip()
    except ValueError:  # a tag that was edited by hand
        return str(accuracy)
