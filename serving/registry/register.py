"""From a finished training run to a new version of the registered model.

The network is exported, quantized if that costs hardly any accuracy, and told when to be unsure. All of it
is checked before there is a version: the exported form against the trained one, and at last the very MLflow
model that was logged, fed with pictures.
"""

import hashlib
import io
import json
import logging
import re
import shutil
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from cifar_mlflow.config import DataConfig, PlacesConfig, RegisterConfig, validate
from cifar_mlflow.data import Split, load_dataset
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.evaluation.calibration import expected_calibration_error, softmax
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.models.card import AbstentionInfo, ModelCard, OodInfo, ServedCard
from cifar_mlflow.pipeline import divide
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.scorer.predictor import CARD_FILE, FORMAT, MODEL_FILE
from cifar_mlflow.tracking.retry import call_mlflow, first_line
from serving.monitoring.drift import reference_of
from serving.registry.abstention import Doubts, auroc, energy, find_doubts, strange_images
from serving.registry.candidates import Candidate, EvalSet, choose, make_forms
from serving.registry.mlflow_model import code_digest, download, log_model
from serving.registry.versions import Version

logger = logging.getLogger("cifar_mlflow.register")

# As many training images judge the forms of a run that held none out.
TRAINING_JUDGES = 2_000
PICTURES = 16
AUROC_METRIC = "serve/ood_auroc_"  # followed by the kind of picture
# Of 0.5 a coin does as well.
USEFUL_AUROC = 0.7


@dataclass(frozen=True)
class RegisteredVersion:
    """A new version of the registered model `name`, and what it is in a sentence."""

    name: str
    number: str
    run_id: str
    precision: Literal["fp32", "int8"]
    message: str


def register(run_id: str, config: RegisterConfig) -> RegisteredVersion:
    """Make the network of a finished training run a new version of the registered model.

    The model is made if there is none. The images are looked for where they were when the run was trained,
    except for the places that were given to `config`.

    Raises:
        UsageError: there is no such run, it has no weights, or the images are not those it was trained on.
        CifarError: a check failed, or MLflow does not answer. Then there is no new version.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise UsageError(f"not the id of a run, which has 32 digits 0-9a-f: {run_id}")
    name, precision, target_accuracy = (
        config.registered_model,
        config.serve_precision,
        config.target_accuracy,
    )
    missing = f"there is no run {run_id} in {mlflow.get_tracking_uri()}"
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing).info
    call_mlflow(lambda: mlflow.set_experiment(experiment_id=run.experiment_id))
    if run.status == "RUNNING" or run.lifecycle_stage == "deleted":
        state = "deleted" if run.lifecycle_stage == "deleted" else "not finished"
        raise UsageError(f"run {run_id} is {state}: what would be registered is not what it is, or will be")
    classifier, card = load_classifier(run_id)
    places = config.model_dump(include={*PlacesConfig.model_fields}, exclude_unset=True)
    training, judges = _load_images(card, places)
    logger.info("Exporting %s of run %s, judged by %s", card.model, run_id, judges)
    with tempfile.TemporaryDirectory() as scratch:
        forms = make_forms(classifier, card, training.images, judges, precision, Path(scratch))
        form, decision = choose(forms, precision)
        logger.info("Served as %s", decision)
        labels = judges.images.labels if judges.held_out else None
        doubts = find_doubts(form.logits, labels, card.temperature, target_accuracy)
        metrics = _metrics(forms, form, doubts, card, judges)
        _warn_of_what_passes(metrics)
        folder = Path(scratch, "scorer")
        _write_scorer_folder(folder, card, form, doubts, target_accuracy, metrics, judges)
        model_uri = call_mlflow(lambda: log_model(folder, run_id)).model_uri
        model = download(model_uri, Path(scratch, "logged"))
        _try_out(model, card, form, judges)
        version = Version(
            run_id=run_id,
            precision=form.precision,
            classes=card.classes,
            data=card.data,
            data_digest=card.data_digest,
            val_size=card.val_size,
            split_seed=card.split_seed,
            val_accuracy=form.accuracy if judges.held_out else None,
            agreement=form.agreement,
            files={path.name: _sha256(path) for path in folder.iterdir()},
            code=code_digest(model),
        )
    now = int(time.time() * 1000)
    logged = [Metric(key, value, now, 0) for key, value in metrics.items()]
    call_mlflow(lambda: mlflow.MlflowClient().log_batch(run_id, metrics=logged))
    number = _create_version(name, model_uri, version, card, judges, decision)
    message = f"version {number} of {name}: {card.model} as {decision}"
    logger.info("Registered %s", message)
    return RegisteredVersion(name, number, run_id, form.precision, message)


def _load_images(card: ModelCard, places: dict[str, Any]) -> tuple[Split, EvalSet]:
    """The training images of the run, and those that judge it.

    Raises:
        UsageError: they are not the ones it was trained on.
    """
    params = call_mlflow(lambda: mlflow.MlflowClient().get_run(card.run_id)).data.params
    known = {
        key: params[key]
        for key in ("dataset", "data_dir", "mirrors")
        if params.get(key) not in (None, "None")
    }
    division = {"image_size": card.image_size, "val_size": card.val_size, "split_seed": card.split_seed}
    config = validate(DataConfig, {**known, **division, **places})
    dataset = load_dataset(config)
    if dataset.digest != card.data_digest:
        raise UsageError(
            f"run {card.run_id} was trained on other images than those of {config.data_dir or dataset.name} "
            f"(digest {card.data_digest[:12]}, found {dataset.digest[:12]}); "
            "--data-dir says where its own are"
        )
    training, validation = divide(dataset, config)
    if len(validation):
        return training, EvalSet("val", validation)
    some = np.sort(np.random.default_rng(0).permutation(len(training))[:TRAINING_JUDGES])
    return training, EvalSet("train", Split(training.images[some], training.labels[some]))


def _metrics(
    forms: list[Candidate], form: Candidate, doubts: Doubts, card: ModelCard, judges: EvalSet
) -> dict[str, float]:
    """What the run gets to know of its served form."""
    probabilities = softmax(form.logits, card.temperature)
    metrics = {
        "serve/agreement": form.agreement,
        f"serve/{judges.split}_ece": expected_calibration_error(probabilities, judges.images.labels),
    }
    for each in forms:
        metrics |= each.metrics(judges.split)
    if doubts.coverage is not None and doubts.accuracy is not None:
        metrics |= {"serve/val_coverage": doubts.coverage, "serve/val_certain_accuracy": doubts.accuracy}
    known = energy(form.logits, card.temperature)
    engine = Engine(form.model)
    for kind, images in strange_images(card.image_size).items():
        metrics[f"{AUROC_METRIC}{kind}"] = auroc(known, energy(engine.run(images), card.temperature))
    engine.close()
    return metrics


def _aurocs(metrics: dict[str, float]) -> dict[str, float]:
    """How well each kind of strange picture is told from those that the network knows."""
    return {key.removeprefix(AUROC_METRIC): metrics[key] for key in metrics if key.startswith(AUROC_METRIC)}


def _warn_of_what_passes(metrics: dict[str, float]) -> None:
    aurocs = _aurocs(metrics).items()
    missed = [f"{kind} (AUROC {auroc:.2f})" for kind, auroc in aurocs if auroc < USEFUL_AUROC]
    if missed:
        logger.warning(
            "It does not tell from the pictures it knows, and may be sure of: %s", ", ".join(missed)
        )


def _write_scorer_folder(
    folder: Path,
    card: ModelCard,
    form: Candidate,
    doubts: Doubts,
    target_accuracy: float,
    metrics: dict[str, float],
    judges: EvalSet,
) -> None:
    folder.mkdir()
    shutil.copy(form.model, folder / MODEL_FILE)
    served = ServedCard(
        **card.model_dump(include={*ServedCard.model_fields} - {"metrics"}),
        format=FORMAT,
        precision=form.precision,
        fit="crop",  # like the images of a folder in training
        uncertain=AbstentionInfo(
            confidence_below=doubts.confidence_below,
            target_accuracy=target_accuracy,
            coverage=doubts.coverage,
            accuracy=doubts.accuracy,
        ),
        ood=OodInfo(above=doubts.energy_above, auroc=_aurocs(metrics)),
        metrics={**card.metrics, **metrics},
        reference=reference_of(
            judges.images.images, softmax(form.logits, card.temperature), card.classes, judges.split
        ),
        files={MODEL_FILE: _sha256(folder / MODEL_FILE)},
    )
    (folder / CARD_FILE).write_text(json.dumps(served.model_dump(mode="json"), indent=2, ensure_ascii=False))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _try_out(model: Path, card: ModelCard, form: Candidate, judges: EvalSet) -> None:
    """Have the logged model classify pictures, and compare with what the network makes of their pixels.

    Raises:
        CifarError: it does not load, or answers otherwise.
    """
    pictures = []
    for pixels in judges.images.images[:PICTURES]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        pictures.append(file.getvalue())
    try:
        answers = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"image": pictures}))
    except Exception as error:  # whatever MLflow or the code that was logged comes up with
        raise CifarError(f"the logged model does not work: {first_line(error)}") from error
    expected = softmax(form.logits[: len(pictures)], card.temperature)
    for probabilities, answer in zip(expected, answers, strict=True):
        # Not the labels: of two equally likely classes, a batch of another size may favour the other.
        chosen = probabilities[answer["class_index"]]
        if (
            card.classes[answer["class_index"]] != answer["label"]
            or abs(chosen - answer["confidence"]) > 1e-3
        ):
            raise CifarError(
                f"the logged model takes a picture for {answer['label']} with a probability of "
                f"{answer['confidence']:.4f}, for which the network finds {chosen:.4f}"
            )


def _create_version(
    name: str, model_uri: str, version: Version, card: ModelCard, judges: EvalSet, decision: str
) -> str:
    """A new version in the registry; its number."""
    tags = {**version.tags(), "model": card.model, "judged_by": str(judges), "decision": decision}
    if "test/accuracy" in card.metrics:
        tags["test_accuracy"] = repr(card.metrics["test/accuracy"])
    client = mlflow.MlflowClient()

    def create() -> ModelVersion:
        # Where the answer to the first attempt was lost, there is a version already.
        made = [each for each in client.search_model_versions(f"name = '{name}'") if each.source == model_uri]
        if made:
            return made[0]
        with redirect_stderr(io.StringIO()):  # MLflow announces there what we say ourselves
            return mlflow.register_model(model_uri, name, tags=tags)

    number = str(call_mlflow(create).version)
    text = _description(version, card, judges, decision)
    call_mlflow(lambda: client.update_model_version(name, number, description=text))
    return number


def _description(version: Version, card: ModelCard, judges: EvalSet, decision: str) -> str:
    """What the page of the version says, in Markdown."""
    figures = []
    if version.val_accuracy is not None:
        figures.append(f"| validation, as served | {version.val_accuracy:.4f} |")
    if "test/accuracy" in card.metrics:
        figures.append(f"| test, as trained | {card.metrics['test/accuracy']:.4f} |")
    table = "\n".join(["| | accuracy |", "| --- | --- |", *figures])
    return (
        f"**{card.model}** on {card.data}, served as {version.precision}; run {card.run_id}\n\n{table}\n\n"
        f"Judged by {judges}: the same label as the trained network for {version.agreement:.2%}. "
        f"Chosen: {decision}."
    )
