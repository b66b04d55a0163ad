"""The job of `review`: train networks, find errors in the data, and log them as one run."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.console import Steps
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.summary import log_notes
from cifar_mlflow.effective import effective_settings
from cifar_mlflow.errors import UsageError
from cifar_mlflow.extras import import_extra
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.names import printable
from cifar_mlflow.review.clean import write_cleaned
from cifar_mlflow.review.duplicates import find_duplicates
from cifar_mlflow.review.findings import as_table, make_findings, read_decisions, write_findings
from cifar_mlflow.review.gallery import duplicate_gallery, label_error_gallery
from cifar_mlflow.review.images import ReviewedImages
from cifar_mlflow.review.label_errors import find_label_errors
from cifar_mlflow.review.out_of_fold import assign_folds, predict_out_of_fold
from cifar_mlflow.tracking.datasets import dataset_entities
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.plan import lower_batch_size
from cifar_mlflow.verb_config import ReviewConfig

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = Path("review.csv")
ISSUES = {
    "label": "labels that are probably wrong",
    "leak": "images with a near-duplicate in another split",
    "duplicate": "near-duplicates within a split",
    "unreadable": "files that cannot be read",
}


@dataclass(frozen=True)
class Review:
    """The outcome of a review.

    Attributes:
        counts: number of findings by issue.
        accuracy: share of the images for which networks that were not trained on them predict the label.
        output: the file with the findings.
    """

    run_id: str
    run_name: str
    counts: dict[str, int]
    accuracy: float
    output: Path

    def summary(self) -> str:
        """Return a short table for the terminal."""
        rows = [f"  {count:6,}  {ISSUES[issue]}" for issue, count in self.counts.items()]
        return "\n".join(
            [
                f"\nRun {self.run_name} ({self.run_id})",
                f"  {self.accuracy:6.1%}  of the labels were predicted by networks not trained on the image",
                *rows,
                f"Written to {printable(str(self.output))}",
            ]
        )


def review(config: TrainConfig, reviewing: ReviewConfig, *, adapt_batch_size: bool) -> Review:
    """Look for errors in the data: one run, with the metrics of each training and all findings.

    Args:
        config: settings of each training.
        adapt_batch_size: the batch size is the recipe's, so lower it if the user's own images are too few.

    Raises:
        UsageError: the output file exists, cleanlab is missing, or a class has too few images.
        CifarError: something failed; a run that was started is FAILED and has the error as a tag.
        Interrupted: a signal arrived; the run is KILLED.
    """
    output = reviewing.output or DEFAULT_OUTPUT
    if output.is_dir() or (output.exists() and not reviewing.overwrite):
        raise UsageError(
            f"output: {output} exists and may hold decisions; name another file, or replace it with "
            "--overwrite"
        )
    import_extra("cleanlab.filter", "cifar-mlflow[review]", "review")  # before minutes of training
    hardware = set_up_hardware(config, config.precision)
    dataset, reviewed = _load(config)
    train = reviewed.parts["train"].labels
    fold_of = assign_folds(train, dataset.classes, reviewing.folds, config.seed)
    if adapt_batch_size and config.dataset == "folder":
        config = lower_batch_size(config, int((fold_of != 0).sum()), processes=1)
    # No network is kept, so none needs validation images: it judges all images that it was not trained on.
    config = config.model_copy(update={"val_size": 0.0, "patience": 0, "test": False})
    connect(config.experiment)
    with (
        StopRequest() as stop,
        tracked_run(
            kind="review",
            name=config.run_name or f"review-{dataset.name}",
            cache_dir=config.cache_dir,
            system_metrics=config.system_metrics,
        ) as (run, _),
    ):
        logger.info("Run %s (%s) on %s, %s", run.name, run.run_id, hardware.name, hardware.precision)
        run.log_params({**effective_settings(config), "folds": reviewing.folds})
        run.log_environment(f"{hardware.name}, {hardware.precision}")
        run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest})
        contexts = ["validation" if split == "val" else split for split in reviewed.parts]
        run.log_datasets(dataset_entities(dataset, config, contexts))
        predictions = predict_out_of_fold(dataset, reviewed, fold_of, config, hardware, run, stop)
        steps = Steps()
        with stop.at_once():
            with steps.step("search", "Looking for wrong labels and near-duplicates"):
                errors = find_label_errors(reviewed.labels, predictions.probabilities)
                pairs = find_duplicates(predictions.embeddings, reviewed)
            table = as_table(make_findings(dataset, reviewed, errors, pairs))
            counts = {issue: int((table["issue"] == issue).sum()) for issue in ISSUES}
            accuracy = float((predictions.probabilities.argmax(1) == reviewed.labels).mean())
            metrics = {f"review/{issue}": float(count) for issue, count in counts.items()}
            run.log_metrics({**metrics, "review/accuracy": accuracy}, step=0)
            run.log_csv(table, "review/findings.csv")
            with steps.step("figures", "Drawing the findings"):
                run.log_figure(label_error_gallery(errors, dataset, reviewed), "review/labels.png")
                run.log_figure(duplicate_gallery(pairs, dataset, reviewed), "review/duplicates.png")
    write_findings(output, table)
    return Review(run.run_id, run.name, counts, accuracy, output)


def apply_decisions(config: TrainConfig, decisions: Path, folder: Path) -> str:
    """Apply the decisions, write the resulting data set to a new folder, and return a sentence about it.

    Raises:
        UsageError: see `read_decisions` and `write_cleaned`; or the folder lies in the data set.
        CifarError: a file cannot be read or written.
    """
    place = config.data_dir
    if place and folder.resolve().is_relative_to(place.resolve()):
        raise UsageError(f"output: {folder} lies in {place}, which stays as it is; name a folder elsewhere")
    dataset, reviewed = _load(config)
    return write_cleaned(folder, dataset, reviewed, read_decisions(decisions, dataset, reviewed))


def _load(config: TrainConfig) -> tuple[ImageDataset, ReviewedImages]:
    """Return the data set without its unreadable files, which it lists."""
    if config.extra_dir:
        raise UsageError("extra_dir: review takes one data set; review the folder of extra images on its own")
    dataset = load_dataset(config.model_copy(update={"skip_unreadable": True}))
    log_notes(dataset)
    return dataset, ReviewedImages(dataset)
