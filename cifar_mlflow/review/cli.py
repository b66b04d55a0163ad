"""The `review` command."""

import shlex
from typing import Any

import click

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.console import loading
from cifar_mlflow.errors import UsageError
from cifar_mlflow.options import recipe_defaults, split_settings, verb
from cifar_mlflow.settings import option_name, validate
from cifar_mlflow.verb_config import WITH_TRAINED_MODEL, ReviewConfig, ReviewVerbConfig

WITHOUT_EFFECT = ("val_size", "split_seed", "extra_dir", "skip_unreadable", "patience", "test")


@verb(
    "review",
    ReviewVerbConfig,
    defaults={**recipe_defaults(), "recipe": "fast for cifar10, else demo"},
    common=("output", "apply", "dataset", "data_dir", "folds", "recipe", "epochs"),
    hidden=WITHOUT_EFFECT,
)
def review(given: dict[str, Any]) -> None:
    """Find wrong labels, near-duplicates, leaks between splits and unreadable files in a data set.

    Fill in the column decision of the table (keep, drop or a class), and apply it to get a cleaned copy.

    \b
    Examples:
      cifar-mlflow review --dataset folder --data-dir photos --output review.csv
      cifar-mlflow review --dataset folder --data-dir photos --apply review.csv --output cleaned
      cifar-mlflow review --trained-model pretrained --output cifar10.csv
    """
    training, of_review = split_settings(given, TrainConfig, ReviewConfig)
    reviewing = validate(ReviewConfig, of_review)
    if reviewing.trained_model and (
        idle := sorted((given.keys() & {"folds", *training}) - WITH_TRAINED_MODEL)
    ):
        raise UsageError(f"--trained-model trains nothing: leave out {', '.join(map(option_name, idle))}")
    if not {"model", "recipe"} & training.keys():
        training["recipe"] = "fast" if training.get("dataset", "cifar10") == "cifar10" else "demo"
    config = resolve_train_config(training)
    with loading(for_a_job=True):
        from cifar_mlflow.review import job

    if reviewing.apply:
        assert reviewing.output is not None
        click.echo(job.apply_decisions(config, reviewing.apply, reviewing.output))
        return
    done = job.review(config, reviewing, adapt_batch_size="batch_size" not in training)
    click.echo(done.summary())
    data = {name: training[name] for name in ("dataset", "data_dir", "image_size") if name in training}
    options = "".join(f" {option_name(name)} {shlex.quote(str(value))}" for name, value in data.items())
    click.echo(
        f"\nWhat next: fill in the column decision, then\n"
        f"  cifar-mlflow review{options} --apply {shlex.quote(str(done.output))} --output cleaned"
    )
