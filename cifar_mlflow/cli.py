"""The command line: verbs that parse, call and print. Every setting of a config is an option of its verb.

`--batch_size 64` and `--batch-size 64` are the same: `mlflow run -P batch_size=64` passes the first form.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from cifar_mlflow.config import (
    DataConfig,
    EvaluateConfig,
    Settings,
    TrainConfig,
    resolve_train_config,
    validate,
)
from cifar_mlflow.console import set_up_logging
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.options import switch, verb
from cifar_mlflow.recipes import RECIPES
from cifar_mlflow.training.interrupt import Interrupted, terminable
from serving.config import (
    ClassifyConfig,
    MonitorConfig,
    RegisterConfig,
    RegistryConfig,
    ServeConfig,
    TrainAndRegisterConfig,
    TuneAndPromoteConfig,
)
from tuning.config import TuneConfig

# torch and mlflow take seconds to import; --help and a wrong option should not wait for them.
if TYPE_CHECKING:
    from cifar_mlflow.pipeline import Result
    from serving.package import RegisteredVersion

HELP_WIDTH = 100
DEMO = RECIPES["demo"] | {"recipe": "demo"}


class Group(click.Group):
    """Turns errors meant for a person into their text and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with terminable():
                return super().invoke(ctx)
        except CifarError as error:
            click.echo(f"Error: {error}", err=True)
            if "MLFLOW_RUN_ID" in os.environ:  # else the import would only keep the person waiting
                from cifar_mlflow.tracking import tag_project_run

                tag_project_run(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            click.echo(f"Error: {error.filename or tempfile.gettempdir()}: {error.strerror}", err=True)
            ctx.exit(1)
        except Interrupted as interruption:
            ctx.exit(128 + interruption.signum)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": HELP_WIDTH,
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.version_option(package_name="cifar-mlflow")
def main() -> None:
    """Image classification on CIFAR-10, tracked with MLflow."""
    set_up_logging()


def _print_config(*configs: Settings) -> None:
    """YAML that `--config` reads back to the same settings."""
    settings = {name: value for config in configs for name, value in config.model_dump(mode="json").items()}
    click.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


def _part(config_class: type[Settings], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that the config knows."""
    return {name: value for name, value in given.items() if name in config_class.model_fields}


def _split(config_class: type[Settings], given: dict[str, Any]) -> tuple[dict[str, Any], RegisterConfig]:
    """The settings of a job, and those of what is registered after it: checked now, as the job is long."""
    only_registration = RegisterConfig.model_fields.keys() - config_class.model_fields.keys()
    own = {name: value for name, value in given.items() if name not in only_registration}
    return own, validate(RegisterConfig, _part(RegisterConfig, given))


@verb(main, "train", TrainAndRegisterConfig)
@switch("--register", "Make the model a new version of the registered model.")
@click.option("--resume", metavar="RUN_ID", help="Continue this run where it was interrupted.")
@click.option("--print-config", is_flag=True, help="Print all settings as YAML, and do nothing.")
def train(given: dict[str, Any], register: bool, resume: str | None, print_config: bool) -> None:
    """Train a model and track it as an MLflow run."""
    given, registration = _split(TrainConfig, given)
    if resume:
        from cifar_mlflow.pipeline import resumable_config

        config = resumable_config(resume, given)
    else:
        config = resolve_train_config(given)
    if print_config:
        return _print_config(registration, config)
    from cifar_mlflow import pipeline

    result = pipeline.train(config, resume)
    _print_result(result)
    if register:
        _register(result.run_id, registration)
    return None


@verb(main, "evaluate", EvaluateConfig)
def evaluate(given: dict[str, Any]) -> None:
    """Evaluate a saved model on a split, as an MLflow run of its own."""
    config = validate(EvaluateConfig, given)
    from cifar_mlflow import pipeline

    _print_result(pipeline.evaluate(config))


@verb(main, "tune", TuneAndPromoteConfig)
@switch("--promote", "Register the best trial at the end, and make it the champion if it is better.")
def tune(given: dict[str, Any], promote: bool) -> None:
    """Search hyperparameters: a run for the study, and below it one for each trial."""
    given, registration = _split(TuneConfig, given)
    from tuning.report import leaderboard
    from tuning.results import best_trials
    from tuning.study import tune as search

    study = search(given)
    click.echo(f"\n{leaderboard(study)}")
    if promote:
        best = best_trials(study, 1)
        if not best:
            raise CifarError("no trial was completed: there is nothing to promote")
        _register_and_promote(best[0].user_attrs["run_id"], registration)


@verb(main, "demo", TrainAndRegisterConfig, defaults=DEMO)
def demo(given: dict[str, Any]) -> None:
    """From the embedded sample of images to an answer about a photo over HTTP. Takes minutes on two cores."""
    given, registration = _split(TrainConfig, given)
    config = resolve_train_config({"recipe": "demo", **given})
    from cifar_mlflow import pipeline
    from serving.demo import PHOTO, answer_over_http

    result = pipeline.train(config)
    _print_result(result)
    _register_and_promote(result.run_id, registration)
    champion = f"models:/{registration.registered_model}@champion"
    click.echo(f"\n`mlflow models serve -m {champion}` says of {PHOTO.name}: {answer_over_http(champion)}")
    click.echo(
        f"""
What next:
  make ui                                            # compare the runs: http://localhost:5000
  source .venv/bin/activate                          # for the commands below
  cifar-mlflow train --dataset sample --model cnn --val-size {config.val_size:g}  # another architecture
  cifar-mlflow train --recipe fast                   # all of CIFAR-10 (downloads 170 MB)
  cifar-mlflow classify {_relative(PHOTO)}      # or your own photos and folders of them
  make serve                                         # the same model over HTTP, until Ctrl-C
  cifar-mlflow evaluate --model {result.run_id} --dataset sample
  cifar-mlflow export {result.run_id} --format hdf5 --output model.h5"""
    )


@verb(main, "register", RegisterConfig)
@click.argument("run_id")
def register(given: dict[str, Any], run_id: str) -> None:
    """Make a trained network a new version of the registered model, in the form in which it is served."""
    _register(run_id, validate(RegisterConfig, given))


@verb(main, "promote", RegistryConfig)
@click.argument("which", metavar="[RUN_ID|VERSION]", required=False)
@click.option("--force", is_flag=True, help="Whatever the comparison with the champion says.")
def promote(given: dict[str, Any], which: str | None, force: bool) -> None:
    """Make a registered version the champion, if it is better. Default: the best there is."""
    config = validate(RegistryConfig, given)
    from serving.registry import promote as promote_version

    click.echo(promote_version(which, config.registered_model, force=force).message)


@verb(main, "rollback", RegistryConfig)
def rollback(given: dict[str, Any]) -> None:
    """Make the previous champion the champion again."""
    config = validate(RegistryConfig, given)
    from serving.registry import rollback as roll_back

    click.echo(roll_back(config.registered_model).message)


@verb(main, "classify", ClassifyConfig)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def classify(ctx: click.Context, given: dict[str, Any], paths: tuple[str, ...]) -> None:
    """Classify image files, the images in folders, and what patterns match."""
    config = validate(ClassifyConfig, given)
    from serving.classify import classify as classify_files
    from serving.classify import load_scorer, show

    summary = classify_files(
        paths,
        load_scorer(config.model_uri),
        output=config.output,
        sort_into=config.sort_into,
        top_k=config.top_k,
    )
    show(summary)
    ctx.exit(summary.exit_code)


@verb(main, "serve", ServeConfig)
def serve(given: dict[str, Any]) -> None:
    """Answer over HTTP what is in pictures: a page, an API, metrics. Until Ctrl-C."""
    config = validate(ServeConfig, given)
    from serving.run_server import serve as run

    run(config)


@verb(main, "monitor", MonitorConfig)
def monitor(given: dict[str, Any]) -> None:
    """Report on what was served: traffic, latency, drift, and accuracy by feedback, as an MLflow run."""
    config = validate(MonitorConfig, given)
    from serving.monitoring.report import monitor as report

    click.echo(report(config))


@verb(main, "data", DataConfig)
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture of samples here."
)
def data(given: dict[str, Any], picture: Path | None) -> None:
    """Summarize a data set: images by class and split, mean and deviation by channel."""
    config = validate(DataConfig, given)
    from cifar_mlflow.data import load_dataset
    from cifar_mlflow.data.summary import channel_stats, summarize

    dataset = load_dataset(config)
    images = dataset.split("train")
    counts = summarize(dataset, config)
    counts.loc["total"] = counts.sum()
    click.echo(f"{dataset.name}, {dataset.image_size}x{dataset.image_size}, sha256 {dataset.digest}\n")
    click.echo(f"{counts.to_string()}\n\nPixels of the training images, in 0..1:")
    click.echo(channel_stats(images.images).round(4).to_string())
    if picture:
        from cifar_mlflow.evaluation.figures import sample_grid

        title = f"{dataset.name}: training images"
        try:
            sample_grid(images.images, images.labels, dataset.classes, title).savefig(picture)
        except (OSError, ValueError) as error:  # matplotlib's word for an unknown suffix
            raise UsageError(f"--picture {picture}: {error}") from error
        click.echo(f"\nSamples: {picture}")


@main.command()
@click.argument("model", metavar="RUN_ID|FILE|models:/...")
@click.option(
    "--format",
    "name",
    type=click.Choice(["hdf5", "safetensors"]),
    help="Default: by the suffix of --output, else hdf5.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: <model>.h5 or .safetensors"
)
def export(model: str, name: str | None, output: Path | None) -> None:
    """Write a trained model to a file that describes itself."""
    from cifar_mlflow.export import format_for
    from cifar_mlflow.export.reference import load_classifier

    form = format_for(output, name)
    classifier, card = load_classifier(model)
    output = output or Path(f"{card.model}{form.suffixes[0]}")
    form.save(output, classifier, card)
    click.echo(f"{output}  {output.stat().st_size / 1e6:.1f} MB, {card.model}, {len(card.classes)} classes")


def _register(run_id: str, config: RegisterConfig) -> RegisteredVersion:
    from serving.package import register as register_run

    version = register_run(run_id, config)
    click.echo(f"\nRegistered {version.message}")
    return version


def _register_and_promote(run_id: str, config: RegisterConfig) -> None:
    """A champion that stays is a result of the comparison and no failure of the job before it."""
    from serving.registry import NotPromotedError, promote

    version = _register(run_id, config)
    try:
        click.echo(promote(version.number, version.name).message)
    except NotPromotedError as refusal:
        click.echo(str(refusal))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_result(result: Result) -> None:
    """A short table, for a person; the run has the rest."""
    shown = ("accuracy", "accuracy_tta", "f1_macro", "loss", "ece")
    click.echo(f"\nRun {result.run_name} ({result.run_id})")
    for split in ("val", "test", "train"):
        metrics = {
            name: result.metrics[f"{split}/{name}"] for name in shown if f"{split}/{name}" in result.metrics
        }
        if metrics:
            click.echo(f"  {split:5s} " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    if seconds := result.metrics.get("train_seconds"):
        click.echo(f"  trained in {seconds:.0f} s")
