"""Turn a finished training run into a new version of the registered model.

The network is exported, quantized if that costs no accuracy, and given thresholds for uncertain answers.
Everything is checked before the version is created: the export against the trained network, and finally the
logged MLflow model, which has to classify image files.
"""

import io
import logging
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelInput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from numpy.typing import NDArray
from PIL import Image

from cifar_mlflow.config import PlacesConfig
from cifar_mlflow.console import percent, spinner
from cifar_mlflow.data import SelectedImages
from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.metrics import evaluate_logits
from cifar_mlflow.export.images import EvalSet, load_images
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.models.card import ModelCard, ServedCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.names import PRETRAINED, RUN_ID, registered_name
from cifar_mlflow.tracking.datasets import LONGEST_DIGEST
from cifar_mlflow.tracking.lifecycle import create_run
from cifar_mlflow.tracking.locations import check_training, versions_of
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.run import now_ms
from cifar_mlflow.verb_config import RegisterConfig, ServedPrecision
from serving.registry.candidates import Decision, build_candidates, choose
from serving.registry.mlflow_model import code_digest, download, log_model
from serving.registry.model_card import MODEL_NAME, model_card, registered_model_description, shorten
from serving.registry.scorer_folder import describe, sha256, write_scorer_folder
from serving.registry.versions import RegisteredModel, version_tags

logger = logging.getLogger("cifar_mlflow.register")

# Images that the logged model has to classify.
CHECKED_IMAGES = 16
CONFIDENCE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RegisteredVersion:
    """A new version of the registered model `name`, with a sentence that describes it."""

    name: str
    number: str
    run_id: str
    precision: ServedPrecision
    message: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scorer folder and its description, ready to be published.

    Attributes:
        text: the model card for people.
        judged_by: the images that `metrics` were measured on, in words.
        context: their data set in MLflow, `validation` or `train`.
        metrics: of the served network, by the names in MLflow.
        images: uint8 (N, S, S, 3), which the logged model has to classify.
        logits: float32 (N, classes), the expected output for them.
    """

    folder: Path
    card: ServedCard
    text: str
    judged_by: str
    context: str
    decision: Decision
    metrics: dict[str, float]
    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


def register(run_id: str, config: RegisterConfig) -> RegisteredVersion:
    """Make the network of a finished training run a new version of the registered model.

    The registered model is created if it does not exist. The images are read from the places that the run
    used, unless `config` gives other ones.

    Raises:
        UsageError: there is no such run, it has no weights, or the images differ from its training data.
        CifarError: a check failed, or MLflow does not answer. No version is created.
    """
    _check_run(run_id)
    params = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id)).data.params
    classifier, card = load_classifier(run_id)
    name = config.registered_model or registered_name(params.get("dataset", "").partition("+")[0], card.data)
    for version in RegisteredModel(name).list_versions():
        if version.run_id == run_id:
            logger.warning(
                "Run %s is %s of %s already; this makes another version of it", run_id, version, name
            )
    places = config.model_dump(include={*PlacesConfig.model_fields}, exclude_unset=True)
    training, eval_set = load_images(card, params, places)
    with tempfile.TemporaryDirectory() as scratch:
        with spinner(f"Exporting {card.model} of run {run_id}, evaluated on {eval_set}"):
            prepared = prepare(classifier, card, training.images, eval_set, config, Path(scratch))
        return publish(prepared, run_id, name)


def prepare(
    classifier: ImageClassifier,
    card: ModelCard,
    training_images: NDArray[np.uint8] | SelectedImages,
    eval_set: EvalSet,
    config: RegisterConfig,
    scratch: Path,
) -> Prepared:
    """Export and measure a network, choose its precision, and write the scorer folder into `scratch`.

    Args:
        training_images: uint8 (N, S, S, 3), to calibrate the ranges of int8.

    Raises:
        CifarError: the exported network does not give the labels of the trained one.
    """
    candidates = build_candidates(
        classifier, card, training_images, eval_set, config.serve_precision, scratch
    )
    chosen, decision = choose(candidates, config.serve_precision)
    served = describe(chosen, candidates, card, eval_set, config.target_accuracy)
    evaluation = evaluate_logits(chosen.logits, eval_set.images.labels, card.classes, card.temperature)
    folder = scratch / "scorer"
    write_scorer_folder(folder, chosen.model, served)
    figures = {key: getattr(evaluation, key) for key in ("accuracy", "f1_macro", "ece")}
    # Own images lie class by class, so the first ones would be of one class.
    checked = np.linspace(0, len(chosen.logits) - 1, CHECKED_IMAGES).astype(int)
    return Prepared(
        folder,
        served,
        model_card(served, eval_set, evaluation, str(decision)),
        str(eval_set),
        "validation" if eval_set.held_out else "train",
        decision,
        {f"{eval_set.split}/{key}": value for key, value in figures.items()},
        eval_set.images.images[checked],
        chosen.logits[checked],
    )


def publish(prepared: Prepared, run_id: str, name: str) -> RegisteredVersion:
    """Log a scorer folder as a model of its run, check it, and create a version of the registered model.

    Raises:
        CifarError: the logged model does not work, or MLflow does not answer. No version is created.
    """
    card, text = prepared.card, prepared.text
    with (
        spinner(f"Logging and checking the new version of {name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        model_id = call_mlflow(lambda: log_model(prepared.folder, run_id, MODEL_NAME, text)).model_id
        model_uri = f"models:/{model_id}"
        logged = download(model_uri, Path(scratch, "logged"))
        _check_logged_model(logged, prepared)
        digest = code_digest(logged)
    files = {path.name: sha256(path) for path in prepared.folder.iterdir()}
    tags = version_tags(card, files, digest, prepared.judged_by, str(prepared.decision))
    _log_metrics(run_id, model_id, prepared)
    number = _create_version(name, model_uri, tags)
    _describe(name, number, text, card)
    # The figures are in the model card.
    message = f"version {number} of {name}: {card.model} as {prepared.decision.reason}"
    if accuracy := prepared.metrics.get("val/accuracy"):
        message += f", validation accuracy {percent(accuracy).strip()}"
    return RegisteredVersion(name, number, run_id, card.precision, message)


def _check_run(run_id: str) -> None:
    """Check that the run is finished, and select its experiment, to which MLflow logs the model.

    Raises:
        UsageError: there is no such run, or it is not finished or deleted.
    """
    if not RUN_ID.fullmatch(run_id):
        hint = f"; did you mean {PRETRAINED}?" if get_close_matches(run_id, [PRETRAINED]) else ""
        raise UsageError(f"not the id of a run, which has 32 digits 0-9a-f: {run_id}{hint}")
    missing = f"there is no run {run_id} in {mlflow.get_tracking_uri()}"
    found = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)
    check_training(found)
    run = found.info
    if run.lifecycle_stage == "deleted":
        raise UsageError(f"run {run_id} is deleted: restore it with mlflow runs restore, or register another")
    if run.status == "RUNNING":
        raise UsageError(f"run {run_id} is not finished: wait for its end, or resume it if it was killed")
    call_mlflow(lambda: mlflow.set_experiment(experiment_id=run.experiment_id))


def _check_logged_model(model: Path, prepared: Prepared) -> None:
    """Let the logged model classify PNG files, and compare its answers with the expected logits.

    Raises:
        CifarError: the model does not load, or its answers differ.
    """
    card, files = prepared.card, []
    for pixels in prepared.images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        files.append(file.getvalue())
    try:
        answers = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"image": files}))
    except Exception as error:  # MLflow and the logged code raise errors of any kind
        raise CifarError(f"the logged model does not work: {first_line(error)}") from error
    expected = softmax(prepared.logits, card.temperature)
    for probabilities, answer in zip(expected, answers, strict=True):
        # The probability of the given label is compared, not the label: rounding, which differs by batch
        # size, may swap two equally likely classes.
        probability = probabilities[answer["class_index"]]
        if (
            card.classes[answer["class_index"]] != answer["label"]
            or abs(probability - answer["confidence"]) > CONFIDENCE_TOLERANCE
        ):
            raise CifarError(
                f"the logged model classifies an image as {answer['label']} with probability "
                f"{answer['confidence']:.4f}, to which the network gives {probability:.4f}"
            )


def _log_metrics(run_id: str, model_id: str, prepared: Prepared) -> None:
    """Log the metrics of the scorer to the logged model.

    MLflow requires a run for metrics. They get a separate one, nested in the training run: on the page of the
    training run, they would push the learning curves down.
    """
    client, now, card = mlflow.MlflowClient(), now_ms(), prepared.card
    training = call_mlflow(lambda: client.get_run(run_id)).info
    tags = {**resolve_tags(), MLFLOW_PARENT_RUN_ID: run_id, "kind": "register", "model_run_id": run_id}
    name = f"register-{training.run_name}"
    run = create_run(training.experiment_id, tags, name)
    data = {
        "dataset_name": f"{card.data}-{prepared.context}",
        "dataset_digest": card.data_digest[:LONGEST_DIGEST],
    }
    served = {key: value for key, value in card.metrics.items() if key.startswith("serve/")}
    metrics = [
        Metric(key, value, now, 0, model_id=model_id, **data)
        for key, value in (prepared.metrics | served).items()
    ]
    status = "FAILED"
    try:
        call_mlflow(lambda: client.log_inputs(run, models=[LoggedModelInput(model_id)]))
        call_mlflow(lambda: client.log_batch(run, metrics=metrics))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        call_mlflow(lambda: client.set_terminated(run, status))


def _create_version(name: str, model_uri: str, tags: dict[str, str]) -> str:
    """Create a version in the registry and return its number."""

    def create() -> ModelVersion:
        # If the response to an earlier attempt was lost, the version exists already.
        if existing := [version for version in versions_of(name) if version.source == model_uri]:
            return existing[0]
        with redirect_stderr(io.StringIO()):  # MLflow announces the version there, as we do below
            return mlflow.register_model(model_uri, name, tags=tags)

    return str(call_mlflow(create).version)


def _describe(name: str, number: str, text: str, card: ServedCard) -> None:
    """Describe a version by its model card, and the registered model unless it has a description."""
    client = mlflow.MlflowClient()
    call_mlflow(lambda: client.update_model_version(name, number, description=shorten(text)))
    if not call_mlflow(lambda: client.get_registered_model(name)).description:
        about = shorten(registered_model_description(card, name))
        call_mlflow(lambda: client.update_registered_model(name, description=about))
