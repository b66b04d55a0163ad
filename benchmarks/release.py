"""`python -m benchmarks release RUN_ID`: write the network of a run into the package, as released weights.

The weights are rounded to fp16, and the rounded ones are exported, measured on the run's validation images,
and given their thresholds, as `cifar-mlflow register` does it.
"""

import dataclasses
import tempfile
from pathlib import Path

import click
import mlflow
from mlflow.entities import Run

from benchmarks.results import counts, result_of
from cifar_mlflow.errors import UsageError
from cifar_mlflow.export.images import load_images
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.verb_config import RegisterConfig
from serving.registry.pretrained import FOLDER, write_release
from serving.registry.register import prepare

JPEG_CAVEAT = (
    "The JPEG copy (quality about 75) has the 60,000 photos of CIFAR-10, but not its pixels: accuracy on it "
    "is some points below what the same training reaches on the lossless images."
)


@click.command()
@click.argument("run_id")
def release(run_id: str) -> None:
    """Make the network of a finished training the released one."""
    classifier, card = load_classifier(run_id)
    run = mlflow.MlflowClient().get_run(run_id)
    if not (counts(run) and card.val_size):
        raise UsageError(f"run {run_id} is not a full training of a recipe with test and validation images")
    classifier = classifier.half().float()
    training, eval_set = load_images(card, run.data.params, {})
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(classifier, card, training.images, eval_set, RegisterConfig(), Path(scratch))
        prepared = dataclasses.replace(prepared, text=f"{prepared.text}\n\n{provenance(run)}")
        write_release(prepared, classifier, card)
    for file in sorted(path for path in FOLDER.rglob("*") if path.is_file()):
        click.echo(f"{file.relative_to(FOLDER)}: {file.stat().st_size / 1e6:.2f} MB")


def provenance(run: Run) -> str:
    """Return how the network was trained, in Markdown."""
    result = result_of(run)
    with_tta = f" ({result.accuracy_tta:.2%} with test-time augmentation)" if result.accuracy_tta else ""
    caveat = f"\n\n{JPEG_CAVEAT}" if "JPEG" in result.data else ""
    # MLflow's pages break a line where the text has a newline.
    return (
        "## The released training\n"
        f"`{result.command}` on {result.data}, one seed, commit {result.commit}, {result.hardware}, "
        f"{result.date[:10]}: {result.accuracy:.2%} of the test images right{with_tta}, macro F1 "
        f"{result.f1_macro:.4f}, ECE {result.ece:.4f}, {result.train_seconds:.0f} s of training. The times "
        f"of fp32 and int8 were measured there, too. The files hold its weights in fp16.{caveat}"
    )
