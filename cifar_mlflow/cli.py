"""The command line. Every setting of a config is an option of its verb.

`--batch_size 64` and `--batch-size 64` are the same: `mlflow run -P batch_size=64` passes the first form.
torch and mlflow take seconds to import, so verbs import them when they run: `--help` and invalid options are
answered at once.
"""

import gc
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import yaml

from cifar_mlflow.config import DataConfig, TrainConfig, check_tta, resolve_train_config
from cifar_mlflow.console import loading, set_up_logging
from cifar_mlflow.environment import rank, world_size
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.interrupt import stoppable
from cifar_mlflow.names import data_name, model_option, printable, registered_name
from cifar_mlflow.options import recipe_defaults, run_verb, split_settings, switch, verb
from cifar_mlflow.redact import redact
from cifar_mlflow.settings import option_name, validate
from cifar_mlflow.verb_config import (
    EvaluateConfig,
    ExportConfig,
    RegisterConfig,
    TrainVerbConfig,
    split_minutes,
)
from cifar_mlflow.verb_group import Verbs

HELP_WIDTH = 100
FEWER_COLLECTIONS = 10_000  # new objects between two collections; Python's default is 700 or 2,000
# The format object of each `--format`, `package.module:object`, imported by name, because this package does
# not depend on serving.
EXPORT_FORMATS = {
    "onnx": "cifar_mlflow.export.onnx:ONNX",
    "web": "serving.web.format:WEB",
    "savedmodel": "cifar_mlflow.export.keras:SAVEDMODEL",
    "keras": "cifar_mlflow.export.keras:KERAS",
    "h5": "cifar_mlflow.export.keras:H5",
    "litert": "cifar_mlflow.export.litert:LITERT",
    "executorch": "cifar_mlflow.export.executorch:EXECUTORCH",
    "safetensors": "cifar_mlflow.export.weights_formats:SAFETENSORS",
    "pt2": "cifar_mlflow.export.pt2:PT2",
    "hdf5-weights": "cifar_mlflow.export.weights_formats:HDF5_WEIGHTS",
}


@click.group(
    cls=Verbs,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": HELP_WIDTH,
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.version_option(package_name="cifar-mlflow")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Image classification on CIFAR-10, tracked with MLflow.

    `cifar-mlflow COMMAND --help` describes a command, its options and their defaults.
    """
    set_up_logging()
    if world_size() > 1 and ctx.invoked_subcommand != "train":
        raise UsageError(
            f"torchrun started {world_size()} processes of {ctx.invoked_subcommand}, but only train divides "
            "its work among processes: start this command without torchrun"
        )
    try:
        Path.home()
    except RuntimeError:  # no HOME and no account, as in some containers: MLflow could not be imported
        os.environ["HOME"] = tempfile.gettempdir()


@verb("data", DataConfig, common=("dataset", "data_dir", "picture"))
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a figure with samples to this file.",
)
def data(given: dict[str, Any], picture: Path | None) -> None:
    """Summarize a data set: images per class and split, mean and standard deviation per channel.

    \b
    Examples:
      cifar-mlflow data --dataset sample --picture samples.png
      cifar-mlflow data --dataset folder --data-dir photos
    """
    config = validate(DataConfig, given)
    with loading():
        from cifar_mlflow.data import load_dataset
        from cifar_mlflow.data.split import divide_lazily
        from cifar_mlflow.data.summary import channel_stats, log_notes, summarize

    dataset = load_dataset(config)
    log_notes(dataset)
    images = dataset.split("train")
    counts = summarize(dataset, config)
    counts.loc["total"] = counts.sum()
    click.echo(f"{dataset.name}, {dataset.image_size}x{dataset.image_size}, sha256 {dataset.digest}\n")
    whose = "training" if dataset.own_val else "training and validation"
    click.echo(f"{counts.to_string()}\n\nPixels of the {whose} images, in 0..1:")
    click.echo(channel_stats(images.images).round(4).to_string())
    if picture:
        from cifar_mlflow.evaluation.figures import sample_grid

        train_split, _ = divide_lazily(dataset, config)
        title = f"{dataset.name}: training images, without those for validation"
        try:
            sample_grid(train_split.images, train_split.labels, dataset.classes, title).savefig(picture)
        except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown suffix
            raise UsageError(f"--picture {picture}: {error}") from error
        click.echo(f"\nSamples: {printable(str(picture))}")


@verb(
    "train",
    TrainVerbConfig,
    defaults=recipe_defaults(),
    common=("model", "recipe", "dataset", "data_dir", "epochs", "minutes", "lr", "batch_size", "register"),
)
@switch("--register", "Register the model as a new version when the training has finished.")
@click.option("--resume", metavar="RUN_ID", help="Continue an interrupted run from its checkpoint.")
@click.option(
    "--settings-of",
    metavar="RUN_ID",
    help="Take the settings of another training, or of a trial of a search; options override them.",
)
@click.option("--print-config", is_flag=True, help="Print all settings as YAML and exit.")
@click.pass_context
def train(
    ctx: click.Context,
    given: dict[str, Any],
    register: bool,
    resume: str | None,
    settings_of: str | None,
    print_config: bool,
) -> None:
    """Train a model and track it as an MLflow run.

    \b
    Examples:
      cifar-mlflow train --recipe fast
      cifar-mlflow train --dataset sample --model cnn --epochs 10
      cifar-mlflow train --dataset folder --data-dir photos --image-size 64 --register
      cifar-mlflow train --settings-of RUN_ID --epochs 30
    """
    given, registration = split_settings(given, TrainConfig, RegisterConfig)
    config, minutes = None, None
    if settings_of:
        given = _like_run(settings_of, given, resume)
    if not resume:
        given, minutes = split_minutes(given)
        if given.get("weights"):
            with loading():
                from cifar_mlflow.export.reference import with_model_of_weights

            given = with_model_of_weights(given)
        config = resolve_train_config(given)
        check_tta(config)
        if print_config:
            return _print_config(minutes, registration, config)
    gc.set_threshold(FEWER_COLLECTIONS)
    with loading(for_a_job=True):
        from cifar_mlflow import pipeline
        from cifar_mlflow.tracking.result import next_steps, registration_options
        from cifar_mlflow.tracking.resume import resumable_config
        from cifar_mlflow.training.distributed import this_world

    with this_world() as world:
        world.check_same({"resume": resume})  # before the ranks take different ways
        config = config or resumable_config(str(resume), given)
        if print_config:
            return _print_config(None, registration, config)
        adapt = not resume and "batch_size" not in given
        with stoppable() if register else nullcontext():
            result = pipeline.train(config, resume, minutes=minutes, adapt_batch_size=adapt)
    if rank() > 0:  # the first process of torchrun has the results
        return None
    click.echo(result.summary())
    if register:
        run_verb(ctx, "register", run_id=result.run_id, **registration)
    name = registered_name(config.dataset, data_name(config.dataset, config.data_dir))
    name = registration.get("registered_model") or name
    if register:
        command = f"promote{model_option(name)}"
    else:
        command = f"register {result.run_id}{registration_options(registration)} --promote"
    click.echo(next_steps(result.run_id, name, command))
    return None


def _like_run(run_id: str, given: dict[str, Any], resume: str | None) -> dict[str, Any]:
    """Return the settings of another training, overridden by the given ones."""
    if resume:
        raise UsageError("--resume takes the settings of its own run: leave out --settings-of")
    with loading():
        from cifar_mlflow.tracking.settings import settings_of_run

    settings = settings_of_run(run_id)
    if "minutes" in given:
        del settings["epochs"]
    return {**settings, **given}


@verb(
    "evaluate",
    EvaluateConfig,
    defaults={"dataset": None},
    common=("model_uri", "dataset", "data_dir", "split", "tta"),
    hidden=("image_size",),  # the model has one
)
def evaluate(given: dict[str, Any]) -> None:
    """Evaluate a saved model on a split, in an MLflow run of its own.

    \b
    Examples:
      cifar-mlflow evaluate --model-uri RUN_ID --tta crops
      cifar-mlflow evaluate --model-uri models:/cifar10@champion --split val
    """
    config = validate(EvaluateConfig, given)
    with loading(for_a_job=True):
        from cifar_mlflow.evaluation import job

    on_training_data = not {"dataset", "data_dir"} & given.keys()
    click.echo(job.evaluate(config, on_training_data=on_training_data).summary())


@verb(
    "export",
    ExportConfig,
    common=("format", "output", "precision", "overwrite"),
    hidden=("system_metrics",),
)
@click.argument("model", metavar="RUN_ID|runs:/...|models:/...|FILE")
def export(given: dict[str, Any], model: str) -> None:
    """Write a trained model to files for other programs, each verified on the validation images.

    \b
    Examples:
      cifar-mlflow export RUN_ID --format onnx --output exported
      cifar-mlflow export models:/cifar10@champion --output model.safetensors
    """
    config = validate(ExportConfig, given)
    if _is_one_file_of_weights(config):
        return _export_weights(model, config)
    with loading(for_a_job=True):
        from cifar_mlflow.export import job

    formats, left_out = job.choose_formats(EXPORT_FORMATS, config)
    exported = job.export(model, formats, config)
    click.echo(str(exported))
    for reason in left_out:
        click.echo(f"Left out: {reason}")
    if exported.failures:
        raise CifarError("\n".join(exported.failures))
    return None


for command in (data, train, evaluate, export):
    main.add_command(command)


def _is_one_file_of_weights(config: ExportConfig) -> bool:
    """Return whether to write a single file of weights, the only kind of export in earlier releases."""
    if not config.format:
        return True
    of_weights = config.format in (("safetensors",), ("hdf5-weights",), ("hdf5",))
    return of_weights and (config.output is None or config.output.suffix != "")


def _export_weights(model: str, config: ExportConfig) -> None:
    only_for_folders = {"precision", "with_preprocessing", "overwrite", "license"} & config.model_fields_set
    if only_for_folders:
        options = ", ".join(option_name(name) for name in sorted(only_for_folders))
        raise UsageError(f"{options}: not for a single file of weights; name a --format and a folder")
    with loading():
        from cifar_mlflow.export import format_for, write_weights
        from cifar_mlflow.export.reference import load_classifier

    file_format = format_for(config.output, config.format[0] if config.format else None)
    classifier, card = load_classifier(model)
    output = config.output or Path(f"{card.file_stem}{file_format.suffixes[0]}")
    write_weights(output, file_format, classifier, card)
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    click.echo(f"{printable(str(output))}  {size}, {card.model}, {len(card.classes)} classes")


def _print_config(minutes: float | None, registration: dict[str, Any], config: TrainConfig) -> None:
    """Print YAML that `--config` reads back to the same settings, except for passwords."""
    if rank() > 0:
        return
    settings = validate(RegisterConfig, registration).model_dump(mode="json") | config.model_dump(mode="json")
    if minutes:  # the number of epochs is planned when the training starts
        del settings["epochs"]
        settings["minutes"] = minutes
    click.echo(redact(yaml.safe_dump(settings, sort_keys=False)), nl=False)
