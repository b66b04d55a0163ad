"""The job of `review`: train networks, find errors in the data, and log them as one run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.console import Steps
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.summary import log_notes
from cifar_mlflow.effective import effective_settings
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.extras import import_extra, install_command
from cifar_mlflow.files import temporary_sibling, write_errors
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.markdown import markdown_table
from cifar_mlflow.names import printable
from cifar_mlflow.review.clean import write_cleaned
from cifar_mlflow.review.duplicates import find_duplicates
from cifar_mlflow.review.findings import as_table, make_findings, read_decisions, write_findings
from cifar_mlflow.review.gallery import duplicate_gallery, label_error_gallery
from cifar_mlflow.review.images import ReviewedImages
from cifar_mlflow.review.label_errors import find_label_errors
from cifar_mlflow.review.out_of_fold import (
    Predictions,
    assign_folds,
    predict_out_of_fold,
    predict_unseen,
    unseen_images,
)
from cifar_mlflow.tracking.datasets import dataset_entities
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.device import Hardware, set_up_hardware
from cifar_mlflow.training.plan import lower_batch_size
from cifar_mlflow.verb_config import WITH_TRAINED_MODEL, ReviewConfig

logger = logging.getLogger(__name__)

# The worst of ten popular data sets has 10 % of wrong labels, the mean is 3.3 %: C. Northcutt et al.,
# "Pervasive Label Errors in Test Sets Destabilize Machine Learning Benchmarks" (2021, arXiv 2103.14749).
MOST_WRONG_LABELS = 0.1
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
        judged: number of images whose labels were judged, by networks that were not trained on them.
        accuracy: share of these for which the networks predict the label.
        output: the file with the findings.
    """

    run_id: str
    run_name: str
    counts: dict[str, int]
    judged: int
    accuracy: float
    output: Path

    def summary(self) -> str:
        """Return a short table for the terminal."""
        return "\n".join(
            [
                f"\nRun {self.run_name} ({self.run_id})",
                f"  {self.accuracy:6.1%}  {self._accuracy_of()}",
                *(f"  {count:6,}  {ISSUES[issue]}" for issue, count in self.counts.items()),
                f"Written to {printable(str(self.output))}",
                *([f"\nWarning: {self.warning}"] if self.warning else []),
            ]
        )

    def description(self) -> str:
        """Return the description of the run for MLflow's page, in Markdown."""
        rows = [[f"{count:,}", ISSUES[issue]] for issue, count in self.counts.items()]
        table = markdown_table(["findings", ""], rows)
        sentence = f"{self.accuracy:.1%} {self._accuracy_of()}."
        return "\n\n".join([*([f"**{self.warning}**"] if self.warning else []), sentence, table])

    def _accuracy_of(self) -> str:
        return f"of {self.judged:,} labels were predicted by networks not trained on the image"

    @property
    def warning(self) -> str | None:
        """Why most of the suggested labels are probably right as they are; None if there is no such sign."""
        share = self.counts["label"] / self.judged
        if share <= MOST_WRONG_LABELS:
            return None
        return (
            f"{share:.0%} of the labels are listed as wrong. Even in carelessly labelled data sets, hardly "
            f"more than {MOST_WRONG_LABELS:.0%} are, so most of these are probably mistakes of the networks "
            f"({self.accuracy:.1%} right). Believe the first rows at most, or repeat the review with better "
            "networks: more --epochs, another --recipe, or pretrained ones, as --recipe finetune --freeze"
        )


@dataclass(frozen=True)
class _Judgement:
    """The images under review, and how networks judge their labels.

    Attributes:
        settings: what the run records.
        predict: judges the labels; the trainings that this takes are logged to the run.
    """

    config: TrainConfig
    settings: dict[str, Any]
    dataset: ImageDataset
    reviewed: ReviewedImages
    predict: Callable[[TrackedRun, StopRequest], Predictions]


def review(config: TrainConfig, reviewing: ReviewConfig, *, adapt_batch_size: bool) -> Review:
    """Look for errors in the data: one run, with the metrics of each training and all findings.

    Args:
        config: settings of each training.
        adapt_batch_size: the batch size is the recipe's, so lower it if the user's own images are too few.

    Raises:
        UsageError: the output file exists, cleanlab is missing, a class has too few images, or it is not
            known which images the given model was trained on.
        CifarError: something failed; a run that was started is FAILED and has the error as a tag.
        Interrupted: a signal arrived; the run is KILLED.
    """
    output = reviewing.output or DEFAULT_OUTPUT
    _check_output(output, reviewing)
    import_extra("cleanlab.filter", install_command("review"), "review")  # before minutes of training
    hardware = set_up_hardware(config, config.precision)
    if reviewing.trained_model:
        judgement = _by_trained_model(config, reviewing.trained_model, hardware)
    else:
        judgement = _by_trainings(config, reviewing.folds, hardware, adapt_batch_size=adapt_batch_size)
    config, dataset, reviewed = judgement.config, judgement.dataset, judgement.reviewed
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
        run.log_params(judgement.settings)
        run.log_environment(f"{hardware.name}, {hardware.precision}")
        run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest})
        contexts = ["validation" if split == "val" else split for split in reviewed.parts]
        run.log_datasets(dataset_entities(dataset, config, contexts))
        predictions = judgement.predict(run, stop)
        steps = Steps()
        with stop.at_once():
            with steps.step("search", "Looking for wrong labels and near-duplicates"):
                errors = find_label_errors(reviewed.labels, predictions)
                pairs = find_duplicates(predictions.embeddings, reviewed)
            table = as_table(make_findings(dataset, reviewed, errors, pairs))
            counts = {issue: int((table["issue"] == issue).sum()) for issue in ISSUES}
            given = reviewed.labels[predictions.judged]
            accuracy = float((predictions.probabilities.argmax(1) == given).mean())
            done = Review(run.run_id, run.name, counts, len(given), accuracy, output)
            run.set_tags({"mlflow.note.content": done.description()})
            metrics = {f"review/{issue}": float(count) for issue, count in counts.items()}
            run.log_metrics({**metrics, "review/accuracy": accuracy}, step=0)
            run.log_csv(table, "review/findings.csv")
            with steps.step("figures", "Drawing the findings"):
                run.log_figure(label_error_gallery(errors, dataset, reviewed), "review/labels.png")
                run.log_figure(duplicate_gallery(pairs, dataset, reviewed), "review/duplicates.png")
    try:
        _check_output(output, reviewing)  # another review may have written it in the meantime
        write_findings(output, table)
    except CifarError as error:
        raise CifarError(
            f"{error}. The findings are in the run: mlflow artifacts download -r {run.run_id} -a "
            "review/findings.csv"
        ) from error
    return done


def _by_trained_model(config: TrainConfig, model: str, hardware: Hardware) -> _Judgement:
    trained, card = load_classifier(model)
    config = config.model_copy(
        update={"image_size": card.image_size, "val_size": card.val_size, "split_seed": card.split_seed}
    )
    dataset, reviewed = _load(config)
    judged = unseen_images(dataset, reviewed, card, config)
    trained = trained.to(hardware.device)
    settings = {name: v for name, v in effective_settings(config).items() if name in WITH_TRAINED_MODEL}

    def predict(run: TrackedRun, stop: StopRequest) -> Predictions:
        with stop.at_once():
            return predict_unseen(trained, card.temperature, reviewed, judged, config, hardware)

    return _Judgement(config, {**settings, "trained_model": model}, dataset, reviewed, predict)


def _by_trainings(
    config: TrainConfig, folds: int, hardware: Hardware, *, adapt_batch_size: bool
) -> _Judgement:
    dataset, reviewed = _load(config)
    train = reviewed.parts["train"].labels
    fold_of = assign_folds(train, dataset.classes, folds, config.seed)
    if adapt_batch_size and config.dataset == "folder":
        config = lower_batch_size(config, int((fold_of != 0).sum()), processes=1)
    # No network is kept, so none needs validation images: it judges all images that it has not seen.
    config = config.model_copy(update={"val_size": 0.0, "patience": 0, "test": False})

    def predict(run: TrackedRun, stop: StopRequest) -> Predictions:
        return predict_out_of_fold(dataset, reviewed, fold_of, config, hardware, run, stop)

    return _Judgement(config, {**effective_settings(config), "folds": folds}, dataset, reviewed, predict)


def _check_output(output: Path, reviewing: ReviewConfig) -> None:
    """Check that the table can be written, and would not replace another one.

    Raises:
        UsageError: it exists.
        CifarError: its folder cannot be written.
    """
    if output.is_dir() or (output.exists() and not reviewing.overwrite):
        raise UsageError(
            f"--output: {output} exists and may hold decisions; name another file, or replace it with "
            "--overwrite"
        )
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(output) as file:
            file.touch()


def apply_decisions(config: TrainConfig, decisions: Path, folder: Path) -> str:
    """Apply the decisions, write the resulting data set to a new folder, and return a sentence about it.

    Raises:
        UsageError: see `read_decisions` and `write_cleaned`; or the folder lies in the data set.
        CifarError: a file cannot be read or written.
    """
    place = config.data_dir
    if place and folder.resolve().is_relative_to(place.resolve()):
        raise UsageError(f"--output: {folder} lies in {place}, which stays as it is; name a folder elsewhere")
    dataset, reviewed = _load(config)
    return write_cleaned(folder, dataset, reviewed, read_decisions(decisions, dataset, reviewed))


def _load(config: TrainConfig) -> tuple[ImageDataset, ReviewedImages]:
    """Return the data set without its unreadable files, which it lists."""
    if config.extra_dir:
        raise UsageError(
            "--extra-dir: review takes one data set; review the folder of extra images on its own"
        )
    dataset = load_dataset(config.model_copy(update={"skip_unreadable": True}))
    log_notes(dataset)
    return dataset, ReviewedImages(dataset)
