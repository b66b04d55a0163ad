"""The released network, which becomes a registered version in seconds and without CIFAR-10's images.

`cifar_mlflow/pretrained/` holds its weights in fp16, and the scorer folder that was made from them, with the
thresholds from the validation images of its training. `python -m benchmarks release` writes both.
"""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from cifar_mlflow.config import DataConfig, TrackingConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import UsageError
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.models.card import ModelCard, ServedCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.pretrained import RELEASED_WEIGHTS
from cifar_mlflow.names import CIFAR10, PRETRAINED
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.scorer.predictor import CARD_FILE, MODEL_FILE
from cifar_mlflow.settings import option_name
from cifar_mlflow.tracking.artifacts import log_weights
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import now_ms
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.verb_config import RegisterConfig
from serving.registry.candidates import Decision, split_outputs
from serving.registry.mlflow_model import MODEL_CARD_FILE
from serving.registry.register import CHECKED_IMAGES, Prepared, RegisteredVersion, publish
from serving.registry.scorer_folder import write_scorer_folder

FOLDER = RELEASED_WEIGHTS.parent
SCORER = "scorer"
RECORD = "registration.json"
RECORDED = ("judged_by", "context", "metrics")  # of `Prepared`


def write_release(prepared: Prepared, classifier: ImageClassifier, card: ModelCard) -> None:
    """Replace the released network.

    Args:
        prepared: made from `classifier` and `card`.
        classifier: its weights must be representable in fp16, so that the file stores them exactly.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(prepared.folder, FOLDER / SCORER)
    save_weights(FOLDER / RELEASED_WEIGHTS.name, classifier.half(), card)
    record = {name: getattr(prepared, name) for name in RECORDED}
    record["decision"] = asdict(prepared.decision)
    (FOLDER / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (FOLDER / MODEL_CARD_FILE).write_text(prepared.text + "\n")


def register_pretrained(config: RegisterConfig) -> RegisteredVersion:
    """Make the released network a new version of the registered model.

    Its weights are logged to a run of their own, as if it had been trained here.

    Raises:
        UsageError: settings were given that only apply to a network that was trained here.
        CifarError: a check failed, or MLflow does not answer. No version is created.
    """
    if idle := sorted(config.model_fields_set - {"registered_model", "cache_dir"}):
        raise UsageError(
            f"{PRETRAINED} is registered in the form in which it was released: leave out "
            f"{', '.join(map(option_name, idle))}"
        )
    classifier, card = load_classifier(PRETRAINED)
    served = ServedCard.model_validate_json((FOLDER / SCORER / CARD_FILE).read_bytes())
    connect(TrackingConfig().experiment)
    with tracked_run(
        kind="train",
        name=f"{card.model}-pretrained",
        cache_dir=config.cache_dir,
        tags={"released": "true"},
    ) as (run, _):
        card = card.model_copy(update={"run_id": run.run_id})
        text = (FOLDER / MODEL_CARD_FILE).read_text().strip().replace(served.run_id, run.run_id)
        run.log_params({"model": card.model, "dataset": card.data, "val_size": card.val_size})
        run.set_tags(
            {
                "dataset": card.data,
                "dataset.digest": card.data_digest,
                "mlflow.note.content": f"Released with cifar_mlflow, not trained here\n\n{text}",
            }
        )
        run.log_metrics(card.metrics, step=0, timestamp=now_ms())
        log_weights(run, classifier, card)
    images = (
        load_dataset(DataConfig(dataset="sample", cache_dir=config.cache_dir))
        .split("test")
        .images[:CHECKED_IMAGES]
    )
    with tempfile.TemporaryDirectory() as scratch:
        scorer = Path(scratch, SCORER)
        served = served.model_copy(update={"run_id": run.run_id})
        write_scorer_folder(scorer, FOLDER / SCORER / MODEL_FILE, served)
        engine = Engine(scorer / MODEL_FILE)
        logits, _ = split_outputs(engine.run(images))
        engine.close()
        record = json.loads((FOLDER / RECORD).read_bytes())
        reason, figures = record.pop("decision").values()
        decision = Decision(reason, f"{figures}, measured where it was released")
        prepared = Prepared(scorer, served, text, decision=decision, images=images, logits=logits, **record)
        return publish(prepared, run.run_id, config.registered_model or CIFAR10)
