"""The job of `evaluate`: the metrics and figures of a saved model on a split, in a run of its own."""

import logging

import torch

from cifar_mlflow.console import Steps
from cifar_mlflow.data import ImageDataset, Split, load_dataset
from cifar_mlflow.data.split import divide, divide_lazily, image_ids
from cifar_mlflow.data.summary import log_notes
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.report import log_predictions, log_report, report_on
from cifar_mlflow.export.images import data_of_run, params_of_training
from cifar_mlflow.export.reference import load_model
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.names import data_name, listed
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.artifacts import PROGRAM_NAME
from cifar_mlflow.tracking.datasets import dataset_entities
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.locations import find_logged_model
from cifar_mlflow.tracking.result import Result
from cifar_mlflow.tracking.run import now_ms
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.verb_config import EvaluateConfig

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, *, on_training_data: bool = False) -> Result:
    """Evaluate a saved model on a split, in a run of its own.

    Args:
        on_training_data: replace the data set of `config` with the one that the model was trained on.

    Raises:
        UsageError: there is no such model, its classes differ from those of the data set, or the location of
            its training data is unknown.
    """
    hardware = set_up_hardware(config)
    device = hardware.device
    model, card = load_model(config.model_uri)
    if on_training_data:
        config = _with_training_data(config, card)
    connect(config.experiment)
    if config.dataset == "folder":
        config = config.model_copy(update={"image_size": card.image_size})
    dataset = load_dataset(config)
    log_notes(dataset)
    if dataset.classes != card.classes:
        raise UsageError(
            f"{config.model_uri} has the classes {listed(card.classes)}; "
            f"{dataset.name} has {listed(dataset.classes)}"
        )
    if dataset.digest == card.data_digest:  # only images that it was not trained on may validate it
        config = config.model_copy(update={"val_size": card.val_size, "split_seed": card.split_seed})
    elif on_training_data or (config.dataset == "folder" and dataset.name == card.data):
        logger.warning(
            "The images of %s have changed since the training: some of this split may have been trained on",
            dataset.name,
        )
    data = _images_of(dataset, config)
    if isinstance(model, ImageClassifier):
        model = model.to(device)
    else:
        device = torch.device("cpu")  # an exported program runs only on the device it was exported on

    name = config.run_name or f"evaluate-{card.model}-{dataset.name}"
    with (
        StopRequest() as stop,
        tracked_run(
            kind="evaluate", name=name, cache_dir=config.cache_dir, system_metrics=config.system_metrics
        ) as (run, _),
        stop.at_once(),
    ):
        logger.info("Run %s (%s): %s on %s images", run.name, run.run_id, config.model_uri, f"{len(data):,}")
        run.log_settings(config)
        run.log_environment(hardware.name)
        run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest, "model_run_id": card.run_id})
        inputs = dataset_entities(dataset, config, [config.split])
        run.log_datasets(inputs)
        if model_id := find_logged_model(card.run_id, PROGRAM_NAME):
            run.log_model_input(model_id)
        steps, passes = Steps(), 1 if config.tta == "none" else 2
        with steps.step("evaluation", "Evaluating", passes * len(data)) as advance:
            report = report_on(
                model,
                data,
                dataset.classes,
                config.split,
                temperature=card.temperature,
                tta=config.tta,
                device=device,
                advance=advance,
            )
        with steps.step("figures", "Drawing the figures"):
            log_report(run, report, data)
        log_predictions(run, report, data.labels, image_ids(dataset, config, config.split))
        logged_at = now_ms()
        run.log_metrics(report.scalars(), step=0, timestamp=logged_at)
        if model_id:
            run.log_model_metrics(model_id, report.scalars(), inputs, step=0, timestamp=logged_at)
        return Result(run.run_id, run.name, report.scalars(), steps.seconds)


def _images_of(dataset: ImageDataset, config: EvaluateConfig) -> Split:
    if config.split == "test":
        data = dataset.split("test")
    elif config.split == "val":
        data = divide_lazily(dataset, config)[1]
    else:
        data = divide(dataset, config)[0]
    if not len(data):
        raise UsageError(
            f"the {config.split} split of {dataset.name} is empty: --val-size is {config.val_size:g}"
        )
    return data


def _with_training_data(config: EvaluateConfig, card: ModelCard) -> EvaluateConfig:
    """Return the config with the data set that the model was trained on, at the location its run recorded."""
    found = data_of_run(params_of_training(card), "dataset", "data_dir", "skip_unreadable")
    if found["dataset"] == "folder" and "data_dir" not in found:
        raise UsageError(
            f"{config.model_uri} was trained on {card.data or 'unknown images'}, whose location is not known "
            "here: give --dataset, and for your own images --data-dir"
        )
    replaced = {"dataset", "data_dir"}
    if config.experiment == data_name(config.dataset, config.data_dir):  # not another one that was given
        replaced.add("experiment")
    return validate(EvaluateConfig, {**config.model_dump(exclude=replaced), **found})
