"""The job of `train`: from images to a finished MLflow run.

The modules for what follows the training (metrics, figures, export) are imported late: it takes seconds.
"""

import logging
import time
from typing import TYPE_CHECKING

import pandas as pd
import torch

from cifar_mlflow.config import MOST_EPOCHS, PlacesConfig, TrackingConfig, TrainConfig, is_backbone
from cifar_mlflow.console import Steps
from cifar_mlflow.data import ImageDataset, Selection, Split, load_dataset
from cifar_mlflow.data.split import divide_lazily, image_ids, warn_of_small_splits
from cifar_mlflow.data.summary import describe_training, log_notes
from cifar_mlflow.effective import default_run_name
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.models.backbones import check_backbone
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.tracking.artifacts import (
    datasets_of_training,
    description,
    log_curves,
    log_data,
    log_program,
    log_start,
    log_weights,
)
from cifar_mlflow.tracking.lifecycle import (
    close_run_of_killed_process,
    close_stale_runs,
    tracked_run,
)
from cifar_mlflow.tracking.result import Result
from cifar_mlflow.tracking.run import TrackedRun, now_ms
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.checkpoint import CheckpointError
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.distributed import PeerLostError, World, this_world
from cifar_mlflow.training.initial import build_classifier
from cifar_mlflow.training.loop import History, NoRecorder, Training, no_pruning
from cifar_mlflow.training.plan import lower_batch_size, plan_epochs

if TYPE_CHECKING:
    from cifar_mlflow.evaluation.calibration import Labels
    from cifar_mlflow.evaluation.report import Report

logger = logging.getLogger(__name__)

# torchrun kills processes 30 seconds after it has asked them to stop.
SECONDS_TO_END_A_RUN = 20


class TrainingCallbacks:
    """Hooks that a search passes to `train`; by default they do nothing.

    Attributes:
        study: name of the study.
        tags: tags of the run.
        skip_model_export: leave out the exported program, and the data summary that all trials share.
    """

    study: str
    tags: dict[str, str]
    skip_model_export = False

    def on_start(self, run_id: str) -> None:
        """Receive the id of the run before the first step."""

    def prune(self, history: History) -> bool:
        """Return whether to stop after these epochs; the run is then evaluated like any other."""
        return False

    def measure(self, classifier: ImageClassifier, device: torch.device) -> dict[str, float]:
        """Return further metrics of the trained network."""
        return {}

    def defer_plots(self, run_id: str, report: "Report", labels: "Labels", history: pd.DataFrame) -> bool:
        """Return whether the search draws the figures of the validation split and the history itself."""
        return False


def train(
    config: TrainConfig,
    resume: str | None = None,
    callbacks: TrainingCallbacks | None = None,
    minutes: float | None = None,
    *,
    adapt_batch_size: bool = False,
) -> Result:
    """Train, evaluate, and log everything as one run.

    Under torchrun each process calls this; the first one writes the run, and the result of the others has no
    metrics.

    Args:
        resume: id of a run to continue; `config` is then that of `resumable_config`.
        callbacks: hooks of the search that the training belongs to.
        minutes: time for the training; the number of epochs that fit into it replaces `config.epochs`.
        adapt_batch_size: the batch size is the recipe's, so lower it if the user's own images are too few.

    Raises:
        CifarError: something failed; a run that was started is FAILED and has the error as a tag.
        Interrupted: a signal arrived; the run is KILLED and can be resumed.
    """
    with this_world() as world:
        if is_backbone(config.model):
            check_backbone(config.model)  # before the images are decoded
        hardware = set_up_hardware(config, config.precision, world)
        announced = callbacks is None and world.is_main
        dataset, train_split, val_split = _load_splits(config, world, announced=announced)
        if adapt_batch_size and config.dataset == "folder":
            config = lower_batch_size(config, len(train_split), world.size)
        if config.dataset == "folder" and announced:
            for line in describe_training(dataset, config, train_split.labels, val_split.labels):
                logger.info("%s", line)
        # Only the first process uses MLflow; places and threads may differ between machines.
        own = {*PlacesConfig.model_fields, *TrackingConfig.model_fields, "threads"}
        world.check_same(
            {**config.model_dump(exclude=own), "minutes": minutes, "sha256 of the images": dataset.digest}
        )

        def new_training(config: TrainConfig, weights: str | None) -> Training:
            torch.manual_seed(config.seed)
            initial = config.model_copy(update={"weights": weights})
            classifier = build_classifier(initial, dataset, train_split, hardware)
            return Training(classifier, dataset.classes, train_split, val_split, config, hardware, world)

        start = time.monotonic()
        if minutes:
            longest = config.model_copy(update={"epochs": MOST_EPOCHS})
            epochs = plan_epochs(new_training(longest, weights=None), minutes)
            config = config.model_copy(update={"epochs": epochs})
        # A resumed run has its weights in the checkpoint; the file that it started from may be gone.
        training = new_training(config, None if resume or not world.is_main else config.weights)
        if not world.is_main:
            return _train_with_main(training, resume)
        connect(config.experiment, resume)
        close_stale_runs(config.cache_dir, resume)

        name = config.run_name or default_run_name(config, dataset.name)
        with (
            StopRequest() as stop,
            tracked_run(
                kind="train",
                name=name,
                cache_dir=config.cache_dir,
                resume=resume,
                study=callbacks.study if callbacks else None,
                tags={
                    "dataset": dataset.name,
                    "dataset.digest": dataset.digest,
                    **(callbacks.tags if callbacks else {}),
                },
                system_metrics=config.system_metrics,
            ) as (run, directory),
        ):
            if callbacks:
                callbacks.on_start(run.run_id)
            logger.info("Training %s, run %s", run.name, run.run_id)
            slow = hardware.device.type == "cpu" and hardware.precision == "fp32" != config.precision
            why = " (this CPU has no bf16, which would be about twice as fast)" if slow else ""
            logger.info("%s, %s%s", hardware.name, hardware.precision, why)
            world.broadcast(Result(run.run_id, run.name, {}))
            if resume:
                run.set_tags({"resumed_on": world.machines})
                training.load_state_dict(world.broadcast(directory.checkpoint.load()))
                for row in run.missing_epochs(training.history):
                    metrics = {name: value for name, value in row.items() if name not in ("epoch", "seconds")}
                    run.log_metrics(metrics, step=int(row["epoch"]))
            else:
                log_start(run, config, dataset, val_split, hardware, world)
                if minutes:
                    run.log_params({"minutes": minutes})
                directory.checkpoint.save(training.state_dict())
            try:
                best = training.fit(
                    run, directory.checkpoint, stop, callbacks.prune if callbacks else no_pruning
                )
            except (CheckpointError, PeerLostError) as error:
                # The command that continues a study is printed once, by the search, and not for each trial.
                hint = "" if callbacks else directory.resume_hint
                raise type(error)(f"{error}{hint}") from error
            taken = (time.monotonic() - start) / 60
            if minutes and taken > minutes:
                logger.warning(
                    "The training took %.1f minutes instead of %g: the machine has become slower since the "
                    "plan was made",
                    taken,
                    minutes,
                )
            steps = Steps(announced=callbacks is None)
            with stop.at_once():  # the last epoch is in the checkpoint
                if not (callbacks and callbacks.skip_model_export):
                    with steps.step("figures", "Drawing samples of the training images"):
                        log_data(run, config, dataset, train_split)
                metrics = finish(run, config, dataset, val_split, training, best, callbacks, steps)
            return Result(run.run_id, run.name, metrics, steps.seconds)


def _load_splits(
    config: TrainConfig, world: World, *, announced: bool
) -> tuple[ImageDataset, Selection, Split]:
    """Return the data set with its training and validation images.

    Args:
        announced: log the notes and warnings about the data, which a search logs once for all its trials.
    """
    dataset = load_dataset(config)
    if announced:
        log_notes(dataset)
    train_split, val_split = divide_lazily(dataset, config)
    if config.test and world.is_main:
        dataset.split("test")  # decode it now: a damaged file should not show up only after the training
    if announced:
        test_size = len(dataset.split("test")) if config.test else 0
        warn_of_small_splits({"validation": len(val_split), "test": test_size})
    if world.is_main and not len(val_split):
        logger.warning(
            "The confidences will not be calibrated, because no images are held out for that: give a "
            "--val-size above 0, for example 0.1, if you need them"
        )
    return dataset, train_split, val_split


def _train_with_main(training: Training, resume: str | None) -> Result:
    """Take part in the training of the first process, which writes the run and the checkpoint."""
    world, config = training.world, training.config
    with StopRequest() as stop:
        result: Result = world.broadcast(None)
        logger.info("takes part in run %s on %s", result.run_id, training.hardware.name)
        try:
            if resume:
                training.load_state_dict(world.broadcast(None))
            training.fit(NoRecorder(), None, stop)
        except PeerLostError:
            close_run_of_killed_process(config.cache_dir, result.run_id, SECONDS_TO_END_A_RUN)
            raise
        return result


def finish(
    run: TrackedRun,
    config: TrainConfig,
    dataset: ImageDataset,
    val_split: Split,
    training: Training,
    best: ImageClassifier,
    callbacks: TrainingCallbacks | None = None,
    steps: Steps | None = None,
) -> dict[str, float]:
    """Evaluate the weights to keep; log results and model.

    Metrics that exist for each epoch have the step of the last one, the others step 0: MLflow then draws the
    latter as bars, one for each run, instead of lines through a single point.
    """
    from cifar_mlflow.evaluation.report import (
        log_pictures,
        log_predictions,
        log_report,
        log_tables,
        report_on,
    )

    steps = steps or Steps(announced=False)
    device = training.hardware.device
    history = pd.DataFrame(training.history).set_index("epoch")
    metrics = {"train_seconds": training.seconds, "peak_memory_mib": float(training.peak_memory_mib)}
    if callbacks:
        metrics |= callbacks.measure(best, device)
    temperature, deferred = 1.0, False
    calibration = "none, because no images were held out; train with --val-size 0.1 to calibrate confidences"
    if len(val_split):
        text = f"Evaluating on {len(val_split):,} validation images"
        with steps.step("evaluation", text, len(val_split)) as advance:
            report = report_on(best, val_split, dataset.classes, "val", device=device, advance=advance)
        temperature = report.temperature
        calibration = report.calibration
        log_tables(run, report)
        if callbacks is None:
            log_predictions(run, report, val_split.labels, image_ids(dataset, config, "val"))
        else:
            deferred = callbacks.defer_plots(run.run_id, report, val_split.labels, history)
        if not deferred:
            with steps.step("figures", "Drawing the figures of the validation images"):
                log_pictures(run, report, val_split)
        metrics |= report.scalars() | {"temperature": temperature}
    if config.test:
        test_split = dataset.split("test")
        text, passes = f"Evaluating on {len(test_split):,} test images", 1 if config.tta == "none" else 2
        with steps.step("evaluation", text, passes * len(test_split)) as advance:
            report = report_on(
                best,
                test_split,
                dataset.classes,
                "test",
                temperature=temperature,
                tta=config.tta,
                tta_precision=training.hardware.precision,
                device=device,
                advance=advance,
            )
        with steps.step("figures", "Drawing the figures of the test images"):
            log_report(run, report, test_split)
        log_predictions(run, report, test_split.labels, image_ids(dataset, config, "test"))
        metrics |= report.scalars()
    logged_at = now_ms()
    curves = metrics.keys() & set(history)
    by_step = {
        training.epoch: {name: metrics[name] for name in curves},
        0: {name: value for name, value in metrics.items() if name not in curves},
    }
    for step, values in by_step.items():
        run.log_metrics(values, step=step, timestamp=logged_at)
    if not deferred:
        log_curves(run, history)
    run.log_csv(history, "history.csv", index=True)

    card = _card(run.run_id, config, dataset, best, temperature, metrics)
    if callbacks is None:
        logger.info("Calibration: %s", calibration)
    run.set_tags({"mlflow.note.content": description(card, calibration), "calibration": calibration})
    best = best.cpu().to(memory_format=torch.contiguous_format)
    with steps.step("export", "Exporting the network"):
        log_weights(run, best, card)
        if not (callbacks and callbacks.skip_model_export):
            model_id = log_program(run, best, card, dataset.split("train").images[:2])
            inputs = datasets_of_training(dataset, config, with_validation=len(val_split) > 0)
            inputs = {"val" if name == "validation" else name: data for name, data in inputs.items()}
            for step, values in by_step.items():
                run.log_model_metrics(model_id, values, inputs, step=step, timestamp=logged_at)
    return metrics


def _card(
    run_id: str,
    config: TrainConfig,
    dataset: ImageDataset,
    classifier: ImageClassifier,
    temperature: float,
    metrics: dict[str, float],
) -> ModelCard:
    return ModelCard(
        model=config.model,
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=_channels(classifier.mean),
        std=_channels(classifier.std),
        width=config.width,
        dropout=config.dropout,
        temperature=temperature,
        data=dataset.name,
        data_digest=dataset.digest,
        val_size=config.val_size,
        split_seed=config.split_seed,
        run_id=run_id,
        metrics=metrics,
    )


def _channels(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue
