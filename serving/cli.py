"""Commands that register, promote, serve and monitor a model."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from cifar_mlflow.config import TrainConfig, check_tta, resolve_train_config
from cifar_mlflow.console import Steps, loading
from cifar_mlflow.interrupt import stoppable
from cifar_mlflow.names import (
    CIFAR10,
    PRETRAINED,
    RUN_ID,
    champion_option,
    data_name,
    model_option,
    registered_name,
)
from cifar_mlflow.options import split_settings, switch, verb
from cifar_mlflow.recipes import RECIPES
from cifar_mlflow.settings import validate
from cifar_mlflow.verb_config import RegisterConfig, RegistryConfig, TrainAndRegisterConfig
from serving.config import ClassifyConfig, MonitorConfig, ServeConfig

DEMO = RECIPES["demo"] | {"recipe": "demo"}


@verb("register", RegisterConfig, common=("promote", "registered_model", "serve_precision"))
@click.argument("run_id")
@switch("--promote", "Then make it the champion, if it is not worse than the current one.")
@click.pass_context
def register(ctx: click.Context, given: dict[str, Any], run_id: str, promote: bool) -> None:
    """Make a trained network a new version of the registered model, ready to be served.

    `pretrained` in place of a run id registers the network that this package contains, which needs neither
    training nor images.

    \b
    Example:
      cifar-mlflow register RUN_ID --promote
      cifar-mlflow register pretrained --promote
    """
    config = validate(RegisterConfig, given)
    # Another command that called this one has loaded libraries already, and has its own next steps.
    alone = ctx.parent is None or isinstance(ctx.parent.command, click.Group)
    with loading(for_a_job=alone):
        from serving.registry.pretrained import register_pretrained
        from serving.registry.promotion import NotPromotedError
        from serving.registry.promotion import promote as promote_version
        from serving.registry.register import register as register_run

    version = register_pretrained(config) if run_id == PRETRAINED else register_run(run_id, config)
    click.echo(f"\nRegistered {version.message}")
    promoted = False
    if promote:
        try:
            click.echo(promote_version(version.number, version.name).message)
            promoted = True
        except NotPromotedError as reason:
            if alone:
                raise
            click.echo(str(reason))  # the training or search that registered it did not fail
    if not alone:
        return
    if promoted:
        click.echo(f"Serve it: cifar-mlflow serve{champion_option(version.name)}")
    elif not promote:
        command = f"cifar-mlflow promote {version.number}{model_option(version.name)}"
        click.echo(f"It is not the champion. Promote it: {command}")


@verb("promote", RegistryConfig)
@click.argument("which", metavar="[RUN_ID|VERSION]", required=False)
@click.option("--force", is_flag=True, help="Promote even if it is worse or not comparable.")
def promote(given: dict[str, Any], which: str | None, force: bool) -> None:
    """Make a registered version the champion, if it is not worse. Default: the best version.

    \b
    Examples:
      cifar-mlflow promote
      cifar-mlflow promote 3 --force
    """
    name = validate(RegistryConfig, given).registered_model
    with loading():
        from serving.registry.promotion import promote as promote_version
        from serving.registry.versions import model_of_run

    if name is None and which and RUN_ID.fullmatch(which):
        name = model_of_run(which)
    click.echo(promote_version(which, name or CIFAR10, force=force).message)


@verb("rollback", RegistryConfig)
def rollback(given: dict[str, Any]) -> None:
    """Make the previous champion the champion again.

    \b
    Example:
      cifar-mlflow rollback
    """
    config = validate(RegistryConfig, given)
    with loading():
        from serving.registry.promotion import rollback as roll_back

    click.echo(roll_back(config.registered_model or CIFAR10).message)


@verb("classify", ClassifyConfig, common=("output", "sort_into", "model_uri"))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def classify(ctx: click.Context, given: dict[str, Any], paths: tuple[str, ...]) -> None:
    """Classify image files, the images in folders, and files that match patterns, here or at URLs.

    A .parquet file stands for the images in its column `image`, a .txt file for the files that it lists.

    \b
    Examples:
      cifar-mlflow classify photos/ --output answers.csv
      cifar-mlflow classify cat.jpg --model-uri models:/cifar10/3
      cifar-mlflow classify photos/ --explain reasons/
    """
    config = validate(ClassifyConfig, given)
    with loading():
        from serving.batch import classify as classify_files
        from serving.batch import classify_on_engine, load_scorer, print_summary, threads_per_batch

    top_k = config.top_k if "top_k" in config.model_fields_set else None
    if config.output is not None and config.into_folder:
        summary = classify_on_engine(
            paths,
            config.model_uri,
            config.output,
            engine=config.engine,
            cluster=config.cluster,
            top_k=top_k,
        )
    else:
        summary = classify_files(
            paths,
            load_scorer(config.model_uri, threads_per_batch()),
            output=Path(config.output) if config.output else None,
            sort_into=config.sort_into,
            explain=config.explain,
            top_k=top_k,
        )
    print_summary(summary)
    ctx.exit(summary.exit_code)


@verb("serve", ServeConfig, common=("model_uri", "port", "host", "workers"))
def serve(given: dict[str, Any]) -> None:
    """Serve the model over HTTP (web page, JSON API, Prometheus metrics) until Ctrl-C.

    \b
    Examples:
      cifar-mlflow serve
      cifar-mlflow serve --model-uri models:/cifar10/3 --port 9000 --workers 2
    """
    config = validate(ServeConfig, given)
    with loading():
        from serving.app.main import serve as run

    run(config)


@verb("monitor", MonitorConfig, common=("since", "request_log"), hidden=("system_metrics",))
def monitor(given: dict[str, Any]) -> None:
    """Report on served requests (traffic, latency, drift, accuracy by feedback) as an MLflow run.

    \b
    Example:
      cifar-mlflow monitor --since 12h
    """
    config = validate(MonitorConfig, given)
    with loading():
        from serving.monitoring.report import monitor as report

    click.echo(report(config))


@verb("demo", TrainAndRegisterConfig, defaults=DEMO, common=("epochs", "model", "registered_model"))
@click.pass_context
def demo(ctx: click.Context, given: dict[str, Any]) -> None:
    """Train on the embedded sample, promote, serve, and classify a photo over HTTP. Takes minutes.

    \b
    Example:
      cifar-mlflow demo
    """
    given, registration = split_settings(given, TrainConfig, RegisterConfig)
    config = resolve_train_config({"recipe": "demo", **given})
    check_tta(config)
    name = registration.get("registered_model")
    name = name or registered_name(config.dataset, data_name(config.dataset, config.data_dir))
    with loading(for_a_job=True):
        from cifar_mlflow import pipeline
        from cifar_mlflow.tracking.local_state import RunDirectory
        from cifar_mlflow.tracking.result import registration_options
        from cifar_mlflow.tracking.store import ui_command
        from serving.demo import PHOTO, classify_over_http

    try:
        with stoppable():
            result = pipeline.train(config)
    except KeyboardInterrupt:
        resume = RunDirectory.of(config.cache_dir, "RUN_ID").resume_command
        rest = [
            *_activation(),
            (f"{resume} --register{registration_options(registration)}", "the run above; register its model"),
            (f"cifar-mlflow promote{model_option(name)}", "make it the champion"),
            (f"cifar-mlflow serve{champion_option(name)}", "serve it over HTTP, until Ctrl-C"),
        ]
        click.echo(
            "\nThe demo was stopped. The same command starts it anew. To continue it instead:", err=True
        )
        click.echo(_with_comments(rest), err=True)
        raise
    click.echo(result.summary())
    ctx.invoke(register, run_id=result.run_id, promote=True, **registration)
    champion = f"models:/{name}@champion"
    server = f"`mlflow models serve -m {shlex.quote(champion)}`"
    with Steps().step("server", f"Starting {server}"):
        answer = classify_over_http(champion)
    click.echo(f"\n{server} classifies {PHOTO.name} as: {answer}")
    another = "cifar-mlflow train --dataset sample --model cnn"
    if config.val_size != TrainConfig.model_fields["val_size"].default:
        another += f" --val-size {config.val_size:g}"  # versions are compared on the same validation images
    photo = PHOTO.relative_to(Path.cwd()) if PHOTO.is_relative_to(Path.cwd()) else PHOTO
    classify_photo = f"cifar-mlflow classify{champion_option(name)} {shlex.quote(str(photo))}"
    next_steps = [
        *_activation(),
        (ui_command(), "compare the runs: http://localhost:5000"),
        (another, "another architecture, on the same split"),
        ("cifar-mlflow train --recipe fast", "all of CIFAR-10 (downloads 170 MB)"),
        (classify_photo, "or your own photos and folders of them"),
        (f"cifar-mlflow serve{champion_option(name)}", "the same model over HTTP, until Ctrl-C"),
        (f"cifar-mlflow evaluate --model-uri {result.run_id}", ""),
        (f"cifar-mlflow export {result.run_id} --format hdf5-weights --output model.h5", ""),
    ]
    click.echo(f"\nWhat next:\n{_with_comments(next_steps)}")


def _activation() -> list[tuple[str, str]]:
    """Return the command that activates the environment of `make demo`, if this process belongs to it."""
    if Path(".venv").exists() and Path(".venv").samefile(sys.prefix):
        return [("source .venv/bin/activate", "for the commands below")]
    return []


def _with_comments(commands: list[tuple[str, str]]) -> str:
    """Return commands for the terminal, each on a line with its comment."""
    return "\n".join(f"  {command:50} {comment and f'# {comment}'}".rstrip() for command, comment in commands)
