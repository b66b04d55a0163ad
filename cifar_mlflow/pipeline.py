"""The two jobs of the training side, from images to a finished MLflow run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mlflow
import pandas as pd
import torch

from cifar_mlflow.config import DataConfig, EvaluateConfig, PlacesConfig, TrainConfig, validate
from cifar_mlflow.data import ImageDataset, Split, load_dataset
from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.data.summary import mean_std
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.calibration import Labels
from cifar_mlflow.evaluation.report import Report, log_pictures, log_report, log_tables, report_on
from cifar_mlflow.export.reference import load_classifier, load_model
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.fast import Fast
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.models.pretrained import load_weights
from cifar_mlflow.tracking.artifacts import (
    description,
    log_curves,
    log_data,
    log_program,
    log_start,
    log_weights,
)
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.run import TrackedRun, close_stale_runs, connect, tracked_run
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.loop import History, Training, no_pruning

logger = logging.getLogger(__name__)

# As many images as tell the whitening layer what patches look like.
IMAGES_FOR_INITIALIZATION = 5_000
HEADLINES = ("accuracy", "accuracy_tta", "f1_macro", "loss", "ece")


@dataclass(frozen=True)
class Result:
    """What a job has to show: the run, and its metrics by the names they have there."""

    run_id: str
    run_name: str
    metrics: dict[str, float]

    def summary(self) -> str:
        """Return a short table for a person; the run holds the rest."""
        lines = [f"\nRun {self.run_name} ({self.run_id})"]
        for split in ("val", "test", "train"):
            values = {name: self.metrics.get(f"{split}/{name}") for name in HEADLINES}
            found = [f"{name} {value:.4f}" for name, value in values.items() if value is not None]
            if found:
                lines.append(f"  {split:5s} " + "  ".join(found))
        if seconds := self.metrics.get("train_seconds"):
            lines.append(f"  trained in {seconds:.0f} s")
        return "\n".join(lines)


class TrainingCallbacks(Protocol):
    """Hooks that a search passes to `train`."""

    study: str
    tags: dict[str, str]  # for the run
    skip_model_export: bool  # leave out of the run what is the same in each of many, and the exported program

    def on_start(self, run_id: str) -> None:
        """The training has this run; told before its first step."""

    def prune(self, history: History) -> bool:
        """Whether to leave it at these epochs. The run is then evaluated like any other."""

    def measure(self, classifier: ImageClassifier, device: torch.device) -> dict[str, float]:
        """Further metrics of the trained network."""

    def defer_plots(self, run_id: str, report: Report, labels: Labels, history: pd.DataFrame) -> bool:
        """Whether the pictures of the validation split and of the `history` are left to it, not drawn now."""


def train(
    config: TrainConfig, resume: str | None = None, callbacks: TrainingCallbacks | None = None
) -> Result:
    """Train, evaluate, and log all of it as one run.

    Args:
        resume: the id of a run to continue; `config` is then the one of `resumable_config`.
        callbacks: hooks of the search that the training belongs to, if any.

    Raises:
        CifarError: something failed; the run, if it was begun, is FAILED and says why.
        Interrupted: a signal came; the run is KILLED and can be resumed.
    """
    hardware = set_up_hardware(config, config.precision)
    dataset = load_dataset(config)
    train_split, val_split = divide(dataset, config)
    if config.test:
        dataset.split("test")  # decoded now: a damaged file should not wait for the end of the training
    torch.manual_seed(config.seed)
    # Those of a run to resume are in its checkpoint; the file that they began with may be gone.
    beginning = config.model_copy(update={"weights": None}) if resume else config
    classifier = build_classifier(beginning, dataset, train_split)
    training = Training(classifier, dataset.classes, train_split, val_split, config, hardware)
    connect(config.experiment, resume)
    close_stale_runs(config.cache_dir, resume)

    name = config.run_name or f"{config.model}-{dataset.name}"
    with (
        StopRequest() as stop,
        tracked_run(
            kind="train",
            name=name,
            cache_dir=config.cache_dir,
            resume=resume,
            study=callbacks.study if callbacks else None,
            tags=callbacks.tags if callbacks else None,
        ) as (run, directory),
    ):
        if callbacks:
            callbacks.on_start(run.run_id)
        logger.info("Run %s (%s) on %s, %s", run.name, run.run_id, hardware.name, hardware.precision)
        if resume:
            training.load_state_dict(directory.checkpoint.load())
            for row in run.missing_epochs(training.history):
                metrics = {name: value for name, value in row.items() if name not in ("epoch", "seconds")}
                run.log_metrics(metrics, step=int(row["epoch"]))
        else:
            log_start(run, config, dataset, val_split, hardware)
            if not (callbacks and callbacks.skip_model_export):
                log_data(run, config, dataset, train_split)
            directory.checkpoint.save(training.state_dict())
        best = training.fit(run, directory.checkpoint, stop, callbacks.prune if callbacks else no_pruning)
        with stop.at_once():  # the last epoch is in the checkpoint
            metrics = finish(run, config, dataset, val_split, training, best, callbacks)
        return Result(run.run_id, run.name, metrics)


def resumable_config(run_id: str, given: Mapping[str, object], study: str | None = None) -> TrainConfig:
    """The settings of a run that can go on, from its checkpoint.

    Only where its data are may be `given` anew; anything else would make it another run. A trial goes on in
    its `study` only, which waits for its result.

    Raises:
        UsageError: there is nothing to resume, or another setting is given.
    """
    if others := sorted(set(given) - {*PlacesConfig.model_fields}):
        raise UsageError(f"--resume takes the settings of the run: leave out {', '.join(others)}")
    cache_dir = validate(TrainConfig, dict(given)).cache_dir
    directory = RunDirectory.of(cache_dir, run_id)
    if not directory.checkpoint.path.exists():
        known = [run.path.name for run in RunDirectory.all(cache_dir) if run.checkpoint.path.exists()]
        raise UsageError(
            f"run {run_id} cannot be resumed: it has no checkpoint in {directory.path.parent} "
            f"(a finished run needs none). Resumable there: {', '.join(known) or 'none'}"
        )
    if directory.owner is None:
        raise UsageError(f"run {run_id} cannot be resumed: {directory.path}/owner.json is missing or damaged")
    if directory.owner.study != study:
        raise UsageError(f"run {run_id} is a trial of a study{directory.resume_hint}")
    mlflow.set_tracking_uri(directory.owner.tracking_uri)
    settings = directory.checkpoint.load()["config"]
    return validate(TrainConfig, {**settings, **given, "cache_dir": cache_dir})


def divide(dataset: ImageDataset, config: DataConfig) -> tuple[Split, Split]:
    """The training images without those held out, and those held out."""
    images = dataset.split("train")
    train_index, val_index = train_val_indices(images.labels, config.val_size, config.split_seed)
    return (
        Split(images.images[train_index], images.labels[train_index]),
        Split(images.images[val_index], images.labels[val_index]),
    )


def build_classifier(config: TrainConfig, dataset: ImageDataset, train_split: Split) -> ImageClassifier:
    """A network for the data set, normalized by its training images, with `config.weights` if given."""
    mean, std = (values.tolist() for values in mean_std(train_split.images))
    network = build_network(config.model, len(dataset.classes), width=config.width, dropout=config.dropout)
    classifier = ImageClassifier(network, mean, std)
    if isinstance(network, Fast):
        pixels = torch.from_numpy(train_split.images[:IMAGES_FOR_INITIALIZATION]).permute(0, 3, 1, 2)
        network.initialize_from((pixels / 255 - classifier.mean) / classifier.std)
    if config.weights:
        pretrained, _ = load_classifier(config.weights)
        fresh = load_weights(network, pretrained.network.state_dict())
        news = f"; new for {len(dataset.classes)} classes: {', '.join(fresh)}" if fresh else ""
        logger.info("Starts from %s%s", config.weights, news)
    return classifier


def finish(
    run: TrackedRun,
    config: TrainConfig,
    dataset: ImageDataset,
    val_split: Split,
    training: Training,
    best: ImageClassifier,
    callbacks: TrainingCallbacks | None = None,
) -> dict[str, float]:
    """Evaluate the weights to keep, and log results and model. Metrics are of the last epoch's step."""
    device = training.hardware.device
    history = pd.DataFrame(training.history).set_index("epoch")
    metrics = {"train_seconds": training.seconds}
    if callbacks:
        metrics |= callbacks.measure(best, device)
    temperature, drawn = 1.0, False
    if len(val_split):
        report = report_on(best, val_split, dataset.classes, "val", device=device)
        temperature = report.temperature
        log_tables(run, report)
        drawn = callbacks is not None and callbacks.defer_plots(run.run_id, report, val_split.labels, history)
        if not drawn:
            log_pictures(run, report, val_split)
        metrics |= report.scalars() | {"temperature": temperature}
    if config.test:
        test_split = dataset.split("test")
        report = report_on(
            best, test_split, dataset.classes, "test", temperature=temperature, tta=config.tta, device=device
        )
        log_report(run, report, test_split)
        metrics |= report.scalars()
    run.log_metrics(metrics, step=training.epoch)
    if not drawn:
        log_curves(run, history)
    run.log_csv(history, "history.csv", index=True)

    card = ModelCard(
        model=config.model,
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=channels(best.mean),
        std=channels(best.std),
        width=config.width,
        dropout=config.dropout,
        temperature=temperature,
        data=dataset.name,
        data_digest=dataset.digest,
        val_size=config.val_size,
        split_seed=config.split_seed,
        run_id=run.run_id,
        metrics=metrics,
    )
    run.set_tags({"mlflow.note.content": description(card)})
    best = best.cpu().to(memory_format=torch.contiguous_format)
    log_weights(run, best, card)
    if not (callbacks and callbacks.skip_model_export):
        log_program(run, best, card, dataset.split("train").images[:2])
    return metrics


def channels(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue


def evaluate(config: EvaluateConfig) -> Result:
    """Evaluate a saved model on a split, in a run of its own.

    Raises:
        UsageError: there is no such model, or its classes are not those of the data set.
    """
    hardware = set_up_hardware(config)
    device = hardware.device
    connect(config.experiment)
    model, card = load_model(config.model_uri)
    if config.dataset == "folder":
        config = config.model_copy(update={"image_size": card.image_size})
    dataset = load_dataset(config)
    if dataset.classes != card.classes:
        raise UsageError(
            f"{config.model_uri} knows {', '.join(card.classes)}; "
            f"{dataset.name} has {', '.join(dataset.classes)}"
        )
    if dataset.digest == card.data_digest:  # its own data: only what it was not trained on is validation
        config = config.model_copy(update={"val_size": card.val_size, "split_seed": card.split_seed})
    if config.split == "test":
        data = dataset.split("test")
    else:
        data = dict(zip(("train", "val"), divide(dataset, config), strict=True))[config.split]
    if not len(data):
        raise UsageError(
            f"the {config.split} split of {dataset.name} is empty: val_size is {config.val_size:g}"
        )
    if isinstance(model, ImageClassifier):
        model = model.to(device)
    else:
        device = torch.device("cpu")  # an exported program stays where it was exported

    name = config.run_name or f"evaluate-{card.model}-{dataset.name}"
    with (
        StopRequest() as stop,
        tracked_run(kind="evaluate", name=name, cache_dir=config.cache_dir) as (run, _),
        stop.at_once(),
    ):
        logger.info("Run %s (%s): %s on %s images", run.name, run.run_id, config.model_uri, f"{len(data):,}")
        run.log_settings(config)
        run.log_environment(hardware.name)
        run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest, "model_run_id": card.run_id})
        run.log_dataset(dataset.name, dataset.digest, [config.split])
        report = report_on(
            model,
            data,
            dataset.classes,
            config.split,
            temperature=card.temperature,
            tta=config.tta,
            device=device,
        )
        log_report(run, report, data)
        run.log_metrics(report.scalars(), step=0)
        return Result(run.run_id, run.name, report.scalars())
