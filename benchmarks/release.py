"""`python -m benchmarks release RUN_ID`: write the network of a run into the package, as released weights.

The weights are rounded to fp16, and the rounded ones are exported, measured on the run's validation images,
and given their thresholds, as `cifar-mlflow register` does it.
"""

import tempfile
from pathlib import Path

import click
import mlflow

from cifar_mlflow.export.images import load_images
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.verb_config import RegisterConfig
from serving.registry.pretrained import FOLDER, write_release
from serving.registry.register import prepare


@click.command()
@click.argument("run_id")
def release(run_id: str) -> None:
    """Make the network of a finished training the released one."""
    classifier, card = load_classifier(run_id)
    classifier = classifier.half().float()
    training, eval_set = load_images(card, mlflow.MlflowClient().get_run(run_id).data.params, {})
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(classifier, card, training.images, eval_set, RegisterConfig(), Path(scratch))
        write_release(prepared, classifier, card)
    for file in sorted(path for path in FOLDER.rglob("*") if path.is_file()):
        click.echo(f"{file.relative_to(FOLDER)}: {file.stat().st_size / 1e6:.2f} MB")
